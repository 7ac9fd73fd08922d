# SPDX-License-Identifier: Apache-2.0
"""Worker processes that Ctrl-C ends without a word."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["worker_pool"]

T = TypeVar("T")


@contextmanager
def worker_pool(workers: int, initializer: Callable[..., None], arguments: tuple) -> Iterator[Callable[..., Future]]:
    """A function that submits work to so many processes: ``submit(function, *arguments)``, a future of its result.

    On an exception, KeyboardInterrupt among them, the processes are ended with what they have in hand.
    """
    # Not forked: a fork of a process with threads (of PyTorch, of DDS) may hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer, arguments)
    others = set(multiprocessing.active_children())

    def submit(function: Callable[..., T], *arguments: Any) -> Future[T]:
        with _sigint_kept_from_children():
            return pool.submit(function, *arguments)

    try:
        yield submit
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _sigint_kept_from_children() -> Iterator[None]:
    """Processes started in here never see SIGINT, which a terminal sends to all; for this one it comes afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True

    # The mask is inherited. It does not keep another thread from taking the signal, hence the handler, too.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt
