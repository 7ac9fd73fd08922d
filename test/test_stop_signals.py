# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM while a node starts: real processes, from the first line of ours that they run."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from needs import NODES, missing
from PIL import Image as PilImage
from ros_graph import PATIENCE_S, TINY_MODEL, Graph

from sicm_ros.data.kitti import write_object_calib
from sicm_ros.render.layouts import KITTI_RIG

MISSING = missing(*NODES)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

PARAMETERS = {"encoder": ["-p", f"model:={TINY_MODEL}"], "decoder": ["-p", f"model:={TINY_MODEL}"]}


class Started:
    """A node's process, once it handles signals. SIGTERM tells: Python itself handles no more than SIGINT."""

    def __init__(self, module, *options, parameters=()):
        command = [sys.executable, *options, "-m", f"sicm_ros.nodes.{module}", "--ros-args", "-r", "__ns:=/stopped"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, *PARAMETERS.get(module, []), *parameters],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.wait_for(lambda: int(re.search(r"^SigCgt:\t(\w+)$", self._file("status"), re.M)[1], 16) >> 14 & 1)

    def _file(self, name):
        return Path(f"/proc/{self.process.pid}/{name}").read_text()

    def wait_for(self, reached):
        end = time.monotonic() + PATIENCE_S
        while not reached():
            assert time.monotonic() < end and self.process.poll() is None, self.finish()
            time.sleep(0.001)

    def finish(self):
        """The exit status and the output."""
        try:
            output, _ = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
        return self.process.returncode, output


NODES = ["decoder", "encoder", "kitti_player", "overlay", "viewer"]


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    """A KITTI object folder with one pair of noise."""
    root = tmp_path_factory.mktemp("kitti") / "training"
    for folder in ("image_2", "image_3", "calib"):
        (root / folder).mkdir(parents=True)
    noise = PilImage.fromarray(np.random.default_rng(3).integers(0, 256, (188, 621, 3), np.uint8))
    for folder in ("image_2", "image_3"):
        noise.save(root / folder / "000000.png")
    write_object_calib(root / "calib" / "000000.txt", KITTI_RIG)
    return root.parent


MOMENTS = [
    *(("encoder", number, delay) for delay in (0.0, 0.1, 1.6) for number in (signal.SIGINT, signal.SIGTERM)),
    *(
        pytest.param(module, number, delay, marks=pytest.mark.slow)
        for module in NODES
        for number, delay in ((signal.SIGTERM, 0.05), (signal.SIGINT, 0.4), (signal.SIGTERM, 0.8), (signal.SIGINT, 3.2))
    ),
]


@pytest.mark.parametrize(("module", "number", "delay"), MOMENTS)
def test_a_signal_at_any_moment_of_the_start_ends_a_node_with_status_0(module, number, delay, kitti, tmp_path):
    if module == "viewer":
        pytest.importorskip("rerun", reason="no viewer in this environment")
    parameters = {"kitti_player": [f"path:={kitti}", "loop:=true"], "viewer": [f"view:={tmp_path / 'x.rrd'}"]}
    started = Started(module, parameters=[word for p in parameters.get(module, []) for word in ("-p", p)])
    time.sleep(delay)
    started.process.send_signal(number)
    status, output = started.finish()
    assert status == 0 and "Traceback" not in output, output


SLOW_MODEL = """
import sys, time
from sicm_ros import model_store
def load_model(*_, **__):
    print("loading", flush=True)
    time.sleep(600)  # as on a small computer, but for longer
model_store.load_model = load_model
from sicm_ros.nodes.{module} import main
main()
"""


@pytest.mark.parametrize("module", ["decoder", "encoder"])
@pytest.mark.parametrize("autostart", [True, False], ids=["by itself", "by a lifecycle manager"])
def test_ctrl_c_ends_a_node_that_loads_a_model(module, autostart, tmp_path):
    """Before ros2 launch sends SIGTERM, which is five seconds after SIGINT."""
    options = ["--ros-args", "-r", "__ns:=/loading", "-p", f"autostart:={str(autostart).lower()}"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_MODEL.format(module=module), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    graph = None if autostart else Graph("manager", "/loading")
    try:
        if graph is not None:
            client = graph.node.create_client(ChangeState, f"{module}_node/change_state")
            graph.wait(client.service_is_ready)
            client.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
        assert process.stdout.readline() == "loading\n", process.communicate()
        process.send_signal(signal.SIGINT)
        assert process.wait(5.0) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
        if graph is not None:
            graph.close()


@pytest.mark.parametrize("module", NODES)
def test_the_handlers_are_there_before_the_imports(module):
    """What takes long in a node's start are its imports; none of them comes before the first lines of ours."""
    started = Started(module, "-X", "importtime")
    started.process.send_signal(signal.SIGINT)
    status, output = started.finish()
    assert status == 0 and "Traceback" not in output, output
    names = re.findall(r"^import time:[ \d|]+\| +([\w.]+)$", output, re.M)
    before = names[: names.index("sicm_ros.nodes")] if "sicm_ros.nodes" in names else names
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
