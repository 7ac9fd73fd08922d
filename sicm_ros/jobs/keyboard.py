# SPDX-License-Identifier: Apache-2.0
"""Single keys of a terminal while a command runs."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["on_key"]


@contextmanager
def on_key(key: str, callback: Callable[[], None]) -> Iterator[bool]:
    """Call ``callback``, in a thread, whenever ``key`` is pressed; yields whether there is a terminal at all."""
    try:
        import termios
        import tty

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        if os.tcgetpgrp(terminal) != os.getpgrp():
            raise OSError("in the background, where touching the terminal would stop the process")
    except (ImportError, OSError, ValueError, termios.error):
        yield False  # input from a file or from nowhere
        return
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            if not select.select([terminal], [], [], 0.1)[0]:
                continue
            pressed = os.read(terminal, 1)
            if not pressed:
                return
            if pressed.decode(errors="replace") == key:
                callback()

    thread = threading.Thread(target=read, name="keyboard", daemon=True)
    tty.setcbreak(terminal)
    try:
        thread.start()
        yield True
    finally:
        stop.set()
        thread.join(1.0)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
