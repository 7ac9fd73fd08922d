# SPDX-License-Identifier: Apache-2.0
"""A worker thread with short queues in which the newest work wins."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Worker"]

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs ``handle(items)`` for submitted items off the caller's thread.

    Items of different keys wait in queues of their own, so that a sender of many does not displace those of others.
    ``handle`` gets the oldest item of at most ``batch`` keys; those that waited longest for their turn go first.
    At most ``depth`` items of a key wait; when one more comes, the oldest waiting one is dropped and counted in
    ``dropped``. An exception in ``handle`` goes to ``on_error`` with the items, and the thread carries on.
    """

    def __init__(
        self,
        handle: Callable[[list[T]], None],
        depth: int,
        on_error: Callable[[Exception, list[T]], None],
        name: str = "worker",
        batch: int = 1,
    ) -> None:
        if depth < 1 or batch < 1:
            raise ValueError(f"depth, batch: expected at least 1, got {depth}, {batch}")
        self.dropped: Counter[Hashable] = Counter()
        self._handle, self._on_error, self._depth, self._batch = handle, on_error, depth, batch
        self._queues: OrderedDict[Hashable, deque[T]] = OrderedDict()  # none of them empty
        self._condition = threading.Condition()
        self._closed = False
        # Not joined for ever at exit: a network that hangs in native code must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T, key: Hashable = None) -> bool:
        """Queue one item; False if an older one was dropped for it (or if the worker is closed)."""
        with self._condition:
            if self._closed:
                return False
            queue = self._queues.setdefault(key, deque())
            full = len(queue) >= self._depth
            if full:
                queue.popleft()
                self.dropped[key] += 1
            queue.append(item)
            self._condition.notify()
        return not full

    def close(self, timeout_s: float = 5.0) -> bool:
        """Drop what waits, let the current items finish; whether the thread ended within ``timeout_s``."""
        with self._condition:
            self._closed = True
            self._queues.clear()
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _take(self) -> list[T]:
        items = []
        for key in list(self._queues)[: self._batch]:
            queue = self._queues.pop(key)
            items.append(queue.popleft())
            if queue:
                self._queues[key] = queue  # at the end: the others come first
        return items

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._queues and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                items = self._take()
            try:
                self._handle(items)
            except Exception as error:  # noqa: BLE001 - one bad item must not end the thread
                self._on_error(error, items)
