# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM while a node starts: real processes, from the first line of ours that they run."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from needs import NODES, missing
from ros_graph import PATIENCE_S, TINY_MODEL

MISSING = missing(*NODES)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

PARAMETERS = {"encoder": ["-p", f"model:={TINY_MODEL}"], "decoder": ["-p", f"model:={TINY_MODEL}"]}


class Started:
    """A node's process, once it handles signals. SIGTERM tells: Python itself handles no more than SIGINT."""

    def __init__(self, module, *options):
        command = [sys.executable, *options, "-m", f"sicm_ros.nodes.{module}", "--ros-args", "-r", "__ns:=/stopped"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, *PARAMETERS.get(module, [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        status = Path(f"/proc/{self.process.pid}/status")
        end = time.monotonic() + PATIENCE_S
        while not self._handled(status.read_text()):
            assert time.monotonic() < end and self.process.poll() is None, self.finish()
            time.sleep(0.001)

    @staticmethod
    def _handled(text):
        return int(re.search(r"^SigCgt:\t(\w+)$", text, re.M)[1], 16) >> (signal.SIGTERM - 1) & 1

    def finish(self):
        """The exit status and the output."""
        try:
            output, _ = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
        return self.process.returncode, output


@pytest.mark.parametrize(
    "delay", [0.0, 0.05, 0.1, 0.2, 1.6, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.4, 0.8, 3.2))]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_start_ends_a_node_with_status_0(number, delay):
    started = Started("encoder")
    time.sleep(delay)
    started.process.send_signal(number)
    status, output = started.finish()
    assert status == 0 and "Traceback" not in output, output


@pytest.mark.parametrize("module", ["decoder", "encoder", "kitti_player", "overlay", "viewer"])
def test_the_handlers_are_there_before_the_imports(module):
    """What takes long in a node's start are its imports; none of them comes before the first lines of ours."""
    started = Started(module, "-X", "importtime")
    started.process.send_signal(signal.SIGINT)
    status, output = started.finish()
    assert status == 0 and "Traceback" not in output, output
    names = re.findall(r"^import time:[ \d|]+\| +([\w.]+)$", output, re.M)
    before = names[: names.index("sicm_ros.ros.stop_signals")]
    assert {"encodings", "runpy"} <= set(before)
    packages = {name.partition(".")[0] for name in before}
    assert not packages & {"rclpy", "numpy", "torch", "cv2", "std_msgs"}


def test_importing_the_nodes_leaves_the_signals_of_another_program_alone():
    code = (
        "import signal, sicm_ros.nodes; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, "
        "signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
