# SPDX-License-Identifier: Apache-2.0
"""Sequence numbers of one encoder's packets: new, lost, repeated, late, or of a recording that starts over."""

from __future__ import annotations

from enum import Enum

__all__ = ["Arrival", "PacketSequence"]

WINDOW = 64  # packets back to which a repeated or late one is told from a recording that starts over


class Arrival(Enum):
    """The kind of a packet, by its sequence number."""

    NEW = "new"
    DUPLICATE = "duplicate"  # came before
    LATE = "late"  # was overtaken by a later one, and counted as lost until now
    RESTART = "restart"  # a recording, played again: as good as new


class PacketSequence:
    """Counters of one session, from its first packet on. ``lost`` is how many of its numbers have not come.

    A number that falls back is a recording that starts over where it is the first one again, beyond the window, or the
    second in a row that is known or older than the first. Else it is a packet that was overtaken on its way, or a
    repetition.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._first = self._last = -1
        self._recent: set[int] = set()
        self._fallen: int | None = None  # the last number, where it may have been the first of such two

    def add(self, number: int) -> tuple[Arrival, int]:
        """The kind of the packet ``number``, and how many numbers were skipped before it."""
        fallen, self._fallen = self._fallen, None
        if self._last < 0:
            return self._start(number, Arrival.NEW)
        if number > self._last:
            gap = number - self._last - 1
            self.lost += gap
            self._last = number
            self._recent.add(number)
            if len(self._recent) > 2 * WINDOW:
                self._recent = {n for n in self._recent if n > number - WINDOW}
            return Arrival.NEW, gap
        if number == self._last:
            return Arrival.DUPLICATE, 0
        suspicious = number in self._recent or number < self._first
        in_a_row = suspicious and fallen is not None and number == fallen + 1
        if number == self._first or self._last - number >= WINDOW or in_a_row:
            return self._start(number, Arrival.RESTART)
        if suspicious:
            self._fallen = number
        if number in self._recent:
            return Arrival.DUPLICATE, 0
        self._recent.add(number)
        self.lost -= number > self._first  # what came before the first was never counted
        return Arrival.LATE, 0

    def _start(self, number: int, arrival: Arrival) -> tuple[Arrival, int]:
        self._first = self._last = number
        self._recent = {number}
        return arrival, 0
