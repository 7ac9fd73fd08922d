# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM in a node's process, and its end. Nothing of ROS is imported."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import FrameType
from typing import NoReturn, TypeVar

__all__ = ["StopSignals", "Stopped", "end_process", "unless_stopped"]

T = TypeVar("T")

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_POLL_S, _GRACE_S = 0.05, 0.3  # ros2 launch waits 5 s after SIGINT


class Stopped(Exception):
    """The process is to end before something was done."""


class StopSignals:
    """SIGINT and SIGTERM set an event instead of raising wherever the process happens to be.

    A launch file's Ctrl-C delivers SIGINT twice, at start-up and during clean-up too. The fourth one ends the process
    for those who really mean it.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.number = 0  # the first signal
        self._count = 0
        for number in _NUMBERS:
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """For the very end: Python takes its handlers away before the process ends, and a late signal would kill it."""
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        self.stop.set()
        self._count += 1
        if self._count >= 4:
            os._exit(128 + number)


def unless_stopped(work: Callable[[], T], stop: threading.Event) -> T:
    """The result of ``work``, which runs in a thread, or its exception; Stopped soon after ``stop`` is set.

    For what takes seconds and cannot look at the event itself, such as loading a model. It goes on in its thread until
    the process ends, which must be by ``end_process``.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is taken
            future.set_exception(error)

    threading.Thread(target=run, name="starting", daemon=True).start()
    while not stop.is_set() and not future.done():
        wait([future], _POLL_S)
    if not wait([future], _GRACE_S).done:
        raise Stopped
    return future.result()


def end_process(status: int) -> NoReturn:
    """End this process now that everything is cleaned up.

    Taking Python and PyTorch down in order takes seconds, and may crash while a thread still loads a model.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
