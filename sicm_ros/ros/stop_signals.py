# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM from the first line of a node's process to its last. Nothing of ROS is imported."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

__all__ = ["StopSignals", "end_at_once"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def end_at_once() -> None:
    """Until a ``StopSignals`` is made, SIGINT and SIGTERM end the process with status 0.

    For the imports, which take longer than anything else in a node's start: nothing is there yet that would have to be
    cleaned up, and an exception in the middle of an import prints a traceback.
    """
    for number in _NUMBERS:
        signal.signal(number, lambda number, frame: os._exit(0))


class StopSignals:
    """SIGINT and SIGTERM set an event instead of raising wherever the process happens to be.

    A launch file's Ctrl-C delivers SIGINT twice, at start-up and during clean-up too. The fourth one ends the process
    for those who really mean it.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._count = 0
        for number in _NUMBERS:
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """For the very end: Python takes its handlers away before the process ends, and a late signal would kill it."""
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stop.set()
        self._count += 1
        if self._count >= 4:
            os._exit(128 + number)
