# SPDX-License-Identifier: Apache-2.0
"""A worker thread with a short queue in which the newest work wins."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Worker"]

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs ``handle(item)`` for submitted items, one after another, off the caller's thread.

    At most ``depth`` items wait; when one more comes, the oldest waiting one is dropped and counted in ``dropped``. An
    exception in ``handle`` goes to ``on_error`` and the thread carries on.
    """

    def __init__(
        self, handle: Callable[[T], None], depth: int, on_error: Callable[[Exception], None], name: str = "worker"
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth: expected at least 1, got {depth}")
        self.dropped = 0
        self._handle, self._on_error, self._depth = handle, on_error, depth
        self._items: deque[T] = deque()
        self._condition = threading.Condition()
        self._closed = False
        # Not joined for ever at exit: a network that hangs in native code must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T) -> bool:
        """Queue one item; False if an older one was dropped for it (or if the worker is closed)."""
        with self._condition:
            if self._closed:
                return False
            full = len(self._items) >= self._depth
            if full:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._condition.notify()
        return not full

    def close(self, timeout_s: float = 5.0) -> bool:
        """Drop what waits, let the current item finish; whether the thread ended within ``timeout_s``."""
        with self._condition:
            self._closed = True
            self._items.clear()
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._items and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                item = self._items.popleft()
            try:
                self._handle(item)
            except Exception as error:  # noqa: BLE001 - one bad item must not end the thread
                self._on_error(error)
