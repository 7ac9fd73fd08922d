# SPDX-License-Identifier: Apache-2.0
"""Single keys of a terminal."""

import os
import subprocess
import sys

KEYS = """
import sys, threading
from sicm_ros.jobs.keyboard import on_key
pressed = threading.Semaphore(0)
with on_key(" ", pressed.release) as terminal:
    print("terminal" if terminal else "none", flush=True)
    if terminal:
        assert pressed.acquire(timeout=180) and pressed.acquire(timeout=180)
print("done", flush=True)
"""


BACKGROUND = """
import os, subprocess
job = subprocess.Popen({command!r}, preexec_fn=os.setpgrp)
raise SystemExit(job.wait(400))
"""


def test_a_key_of_a_terminal_and_no_terminal():
    import fcntl
    import pty
    import termios

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KEYS]
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)

        def own_terminal():
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            command, stdin=theirs, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=own_terminal
        )
        assert process.stdout.readline() == "terminal\n"
        os.write(ours, b"x x ")
        assert process.communicate(timeout=400)[0] == "done\n" and process.returncode == 0
        # The terminal is left as it was found.
        assert termios.tcgetattr(theirs)[3] == before[3]
        # A job in the background has no say in it: the system would stop one that tried.
        background = subprocess.run(
            [sys.executable, "-c", BACKGROUND.format(command=command)],
            stdin=theirs,
            capture_output=True,
            text=True,
            env=environment,
            timeout=400,
            preexec_fn=own_terminal,
        )
        assert background.stdout == "none\ndone\n", background.stderr
    finally:
        os.close(ours)
        os.close(theirs)
    outcome = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    assert outcome.stdout == "none\ndone\n" and outcome.returncode == 0
