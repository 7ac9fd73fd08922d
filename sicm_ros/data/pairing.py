# SPDX-License-Identifier: Apache-2.0
"""Pairs left and right images by their stamps, counts what it drops and why, and survives jumps of time.

No ROS: ``nodes/stereo_sync.py`` makes a filter of ``message_filters`` of it, ``bags/reader.py`` pairs recorded images.
The synchronisers of ``message_filters`` do not report what they drop, hold a lock while the user's callback runs, and
get stuck when a bag starts over. This pairer returns a pair instead of calling back.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar

from sicm_ros.data.source import Side

__all__ = ["DROP_REASONS", "StereoMatch", "StereoPairer"]

T = TypeVar("T")

DROP_REASONS = {
    "unmatched": "no partner within the tolerance before a later pair was complete",
    "overflow": "the queue was full",
    "late": "older than a pair that was already complete",
    "duplicate": "the same stamp came twice",
    "time_jump": "time jumped back",
}

# A stream that goes back by more than this was restarted (a bag in a loop); by less, two messages changed places.
REORDER_NS = 20_000_000


@dataclass(frozen=True)
class StereoMatch(Generic[T]):
    """One stereo pair: both items, their stamps in nanoseconds, and when the first of them arrived (caller's clock)."""

    left: T
    right: T
    left_stamp_ns: int
    right_stamp_ns: int
    first_arrival_ns: int


class StereoPairer(Generic[T]):
    """Two bounded queues of stamped items, one for each view.

    ``add`` returns the pair that the new item completes, or None. A partner is the item of the other side with the
    nearest stamp, at most ``tolerance_s`` seconds away (0 for an exact match). Pairs are formed at once, without
    waiting for a better partner, which is right as long as the tolerance is below half of the frame period
    (``ambiguous`` tells). Pairs come out in the order of time; whatever is older than a pair is dropped with it. Safe
    to call from any thread.
    """

    def __init__(self, tolerance_s: float = 0.0, depth: int = 10) -> None:
        if not tolerance_s >= 0:
            raise ValueError(f"tolerance_s: expected a number of seconds >= 0, got {tolerance_s}")
        if depth < 1:
            raise ValueError(f"depth: expected at least 1, got {depth}")
        self.tolerance_ns = round(tolerance_s * 1e9)
        self.depth = depth
        self.pairs = 0
        self.received: Counter[Side] = Counter()
        self.drops: Counter[tuple[Side, str]] = Counter()
        self.jumps = 0
        self.nearest_miss_ns: int | None = None  # since the last pair: how far the nearest partner was off
        self._lock = threading.Lock()
        self._queues: dict[Side, list[tuple[int, int, T]]] = {"left": [], "right": []}
        self._newest: dict[Side, int | None] = {"left": None, "right": None}
        self._last_pair: dict[Side, int | None] = {"left": None, "right": None}
        self._shortest_period_ns: int | None = None

    def waiting(self, side: Side) -> int:
        """How many items of one side wait for a partner."""
        with self._lock:
            return len(self._queues[side])

    @property
    def ambiguous(self) -> bool:
        """Whether the tolerance exceeds half of the shortest frame period seen, so that frames could be mismatched."""
        period = self._shortest_period_ns
        return period is not None and 2 * self.tolerance_ns >= period

    def add(self, side: Side, stamp_ns: int, item: T, arrival_ns: int = 0) -> StereoMatch[T] | None:
        """Take one item; the pair it completes, or None."""
        other: Side = "right" if side == "left" else "left"
        with self._lock:
            self.received[side] += 1
            newest = self._newest[side]
            if newest is not None and stamp_ns < newest - REORDER_NS:
                self._jump_back(stamp_ns)
            elif newest is not None and stamp_ns > newest:
                period = stamp_ns - newest
                self._shortest_period_ns = min(period, self._shortest_period_ns or period)
            newest = self._newest[side]
            self._newest[side] = stamp_ns if newest is None else max(newest, stamp_ns)

            last = self._last_pair[side]
            queue = self._queues[side]
            if stamp_ns == last or any(entry[0] == stamp_ns for entry in queue):
                self.drops[side, "duplicate"] += 1
                return None
            if last is not None and stamp_ns < last:
                self.drops[side, "late"] += 1
                return None

            candidates = self._queues[other]
            best = min(range(len(candidates)), key=lambda i: abs(candidates[i][0] - stamp_ns), default=None)
            distance = None if best is None else abs(candidates[best][0] - stamp_ns)
            if best is None or distance is None or distance > self.tolerance_ns:
                if distance is not None:
                    self.nearest_miss_ns = min(distance, self.nearest_miss_ns or distance)
                insort(queue, (stamp_ns, arrival_ns, item), key=lambda entry: entry[0])
                if len(queue) > self.depth:
                    del queue[0]
                    self.drops[side, "overflow"] += 1
                return None

            partner_stamp, partner_arrival, partner = candidates[best]
            self._drop_until(side, stamp_ns)
            self._drop_until(other, partner_stamp)
            self._last_pair = {side: stamp_ns, other: partner_stamp}  # type: ignore[dict-item]
            self.pairs += 1
            self.nearest_miss_ns = None
            first = min(arrival_ns, partner_arrival)
            if side == "left":
                return StereoMatch(item, partner, stamp_ns, partner_stamp, first)
            return StereoMatch(partner, item, partner_stamp, stamp_ns, first)

    def reset(self) -> None:
        """Forget what waits (counted as a time jump) and what was paired."""
        with self._lock:
            for side, queue in self._queues.items():
                self.drops[side, "time_jump"] += len(queue)
                queue.clear()
                self._newest[side] = self._last_pair[side] = None

    def _jump_back(self, stamp_ns: int) -> None:
        # The other side may have jumped first: what it already sent of the new time stays.
        self.jumps += 1
        for side, queue in self._queues.items():
            kept = [entry for entry in queue if entry[0] <= stamp_ns + self.tolerance_ns]
            self.drops[side, "time_jump"] += len(queue) - len(kept)
            queue[:] = kept
            self._newest[side] = kept[-1][0] if kept else None
            self._last_pair[side] = None

    def _drop_until(self, side: Side, stamp_ns: int) -> None:
        """Remove everything up to ``stamp_ns``; what is older than that was never matched."""
        queue = self._queues[side]
        self.drops[side, "unmatched"] += sum(entry[0] < stamp_ns for entry in queue)
        queue[:] = [entry for entry in queue if entry[0] > stamp_ns]
