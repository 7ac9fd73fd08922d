# SPDX-License-Identifier: Apache-2.0
"""Writes ``/diagnostics`` once a second, whether or not anything else happens in the node.

A small writer of our own rather than ``diagnostic_updater``, which exists only in ROS distributions, not on PyPI.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node

__all__ = ["DiagnosticsWriter", "ProblemKind", "Problems", "Status", "Window"]

K = TypeVar("K", bound=Hashable)
# What went wrong: the class of an error, or a word where there is none.
ProblemKind = type[Exception] | str

_LEVELS = {
    "OK": DiagnosticStatus.OK,
    "WARN": DiagnosticStatus.WARN,
    "ERROR": DiagnosticStatus.ERROR,
    "STALE": DiagnosticStatus.STALE,
}


@dataclass
class Status:
    """One status line: the worst level reported so far, the words that go with it, and figures.

    Every problem is a sentence that says what to do about it; ``report`` keeps those of the worst level.
    """

    name: str
    level: str = "OK"
    messages: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)

    def report(self, level: str, message: str) -> None:
        """Raise the level, or add words to it; a lower level than the present one is left out."""
        order = list(_LEVELS)
        if order.index(level) > order.index(self.level):
            self.level, self.messages = level, []
        if level == self.level:
            self.messages.append(message)

    def set(self, **values: object) -> None:
        """Add figures; floats are written with one decimal."""
        self.values.update(
            {name: f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in values.items()}
        )

    def to_message(self, hardware_id: str) -> DiagnosticStatus:
        """As ``diagnostic_msgs/DiagnosticStatus``."""
        return DiagnosticStatus(
            level=_LEVELS[self.level],
            name=self.name,
            message="; ".join(self.messages) or "ok",
            hardware_id=hardware_id,
            values=[KeyValue(key=key, value=value) for key, value in self.values.items()],
        )


class Window:
    """Counts and means since the last ``tick``: what happened in the last second, rather than since the start."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._totals: dict[Hashable, int] = {}
        self._samples: dict[str, list[float]] = {}

    def sample(self, values: Mapping[str, float]) -> None:
        """Add one measurement of each name."""
        for name, value in values.items():
            self._samples.setdefault(name, []).append(value)

    def tick(self, totals: Mapping[K, int]) -> tuple[dict[K, int], dict[str, list[float]], float]:
        """The increase of every total, the samples, and the seconds since the last call."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        increase = {name: value - self._totals.get(name, 0) for name, value in totals.items()}
        # A total that fell began anew: the node was activated again.
        increase = {name: change if change >= 0 else totals[name] for name, change in increase.items()}
        self._totals = {name: value for name, value in totals.items()}
        samples, self._samples = self._samples, {}
        return increase, samples, max(seconds, 1e-3)


class Problems:
    """Counts problems by kind, and logs each kind at once and then at most every ``period_s`` seconds."""

    def __init__(self, log: Callable[[str], object], period_s: float = 5.0) -> None:
        self.counts: Counter[ProblemKind] = Counter()
        self.latest: dict[ProblemKind, str] = {}
        self._log, self._period_s = log, period_s
        self._logged: dict[ProblemKind, tuple[float, int]] = {}
        self._seen: Counter[ProblemKind] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: ProblemKind, message: str) -> None:
        """Count one problem; ``message`` is the sentence for the log and the diagnostics."""
        with self._lock:
            self.counts[kind] += 1
            self.latest[kind] = message
            logged_at, logged_count = self._logged.get(kind, (float("-inf"), 0))
            now = time.monotonic()
            if now - logged_at < self._period_s:
                return
            more = self.counts[kind] - logged_count - 1
            self._logged[kind] = (now, self.counts[kind])
        self._log(message + (f" ({more} more of this kind since the last report)" if more else ""))

    def recent(self) -> Counter[ProblemKind]:
        """How many of each kind there were since the last call; kinds of which there were none are not in it."""
        with self._lock:
            new = self.counts - self._seen
            self._seen = self.counts.copy()
        return new


class DiagnosticsWriter:
    """Publishes what ``collect`` returns on ``/diagnostics`` every ``period_s`` seconds, by a clock that never
    stops."""

    def __init__(self, node: Node, collect: Callable[[], list[Status]], period_s: float = 1.0) -> None:
        self._node, self._collect = node, collect
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock: simulated time stands still when a bag is paused, and that is when somebody looks here.
        self._timer = node.create_timer(period_s, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Collect and publish now."""
        name = self._node.get_fully_qualified_name()
        statuses = [status.to_message(name) for status in self._collect()]
        for status in statuses:
            status.name = f"{name.lstrip('/')}: {status.name}"
        array = DiagnosticArray(status=statuses)
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)
