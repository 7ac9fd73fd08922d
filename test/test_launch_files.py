# SPDX-License-Identifier: Apache-2.0
"""The launch files with ros2 launch, where a ROS 2 install has it: arguments, and what becomes of the processes."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY_MODEL = ROOT / "test" / "data" / "models" / "tame"
PATIENCE_S = 180.0
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [word.split(":=") for word in sys.argv[2:]]
include = IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)
service = LaunchService(argv=sys.argv[2:], noninteractive=True)  # no terminal sends Ctrl-C to the nodes, too
service.include_launch_description(LaunchDescription([include]))
sys.exit(service.run())
"""


@pytest.fixture(autouse=True)
def ros2_launch():
    pytest.importorskip("launch_ros", reason="ros2 launch is not in this environment")
    pytest.importorskip("sicm_ros.msg", reason="the messages of sicm_ros are not built in this environment")


def description(name):
    path = ROOT / "launch" / f"{name}.launch.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


class Launched:
    """``ros2 launch`` of one of the files; the lines of its output as they come."""

    def __init__(self, name, **arguments):
        words = [f"{key}:={value}" for key, value in arguments.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(ROOT / "launch" / f"{name}.launch.py"), "namespace:=/launched", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
        self.watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        self.watchdog.start()
        self.lines = []

    def until(self, pattern):
        """Read up to a line with the pattern; its match."""
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{pattern} did not come:\n{self.output}")

    def finish(self):
        """The exit status."""
        self.lines += self.process.stdout
        status = self.process.wait()
        self.watchdog.cancel()
        return status

    @property
    def output(self):
        return "".join(self.lines)

    def started(self):
        return {int(pid) for pid in re.findall(r"process started with pid \[(\d+)\]", self.output)}


@pytest.mark.parametrize("name", ["vehicle", "remote", "kitti_replay"])
def test_launch_files_offer_just_the_arguments_that_they_declare(name):
    """An included file's would be offered, too, and reach one node of several."""
    text = (ROOT / "launch" / f"{name}.launch.py").read_text()
    offered = {argument.name for argument in description(name).get_launch_arguments()}
    assert offered == set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', text))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vehicle", {"rate": "high"}, "rate: expected a number, got 'high'"),
        ("remote", {"params_file": "/nowhere.yaml"}, "there is no /nowhere.yaml"),
        ("remote", {"vehicles": "[1]"}, "vehicles: expected names such as [car1, car2]"),
        ("kitti_replay", {"path": "x", "rviz": "false", "frequency": "often"}, "frequency: expected a number"),
        ("kitti_replay", {"path": "x", "player_params_file": "/nowhere.yaml"}, "there is no /nowhere.yaml"),
    ],
)
def test_a_bad_argument_is_told_before_anything_starts(name, arguments, words):
    launched = Launched(name, **arguments)
    assert launched.finish() == 1
    assert launched.started() == set() and words in launched.output and "Traceback" not in launched.output


def test_without_rviz_the_nodes_are_there(monkeypatch):
    from ament_index_python.packages import PackageNotFoundError

    from sicm_ros.ros import launch_nodes

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(launch_nodes, "get_package_prefix", missing)
    assert [action.node_executable for action in started("kitti_replay", path="x")] == [
        "encoder_node",
        "decoder_node",
        "kitti_player_node",
        "overlay_node",
    ]
    assert [action.node_executable for action in started("remote", rviz="true")] == ["decoder_node"]


def started(name, **arguments):
    """The actions of a launch file for these arguments; nothing is started."""
    from launch.actions import OpaqueFunction

    from launch import LaunchContext

    context = LaunchContext()
    context.launch_configurations.update(arguments)
    actions = []
    for entity in description(name).entities:
        made = entity.execute(context)
        if isinstance(entity, OpaqueFunction):
            actions += made
    return actions


def test_rviz_gets_the_view_of_its_arguments(monkeypatch):
    from launch.utilities import perform_substitutions

    from launch import LaunchContext
    from sicm_ros.ros import launch_nodes

    monkeypatch.setattr(launch_nodes, "get_package_prefix", lambda name: "/opt")

    def view(name, **arguments):
        (action,) = (a for a in started(name, **arguments) if a.node_executable == "rviz2")
        # After the executable, its path and -d.
        words = [perform_substitutions(LaunchContext(), part) for part in action.cmd[1:3]]
        assert words[0] == "-d"
        text = Path(words[1]).read_text()
        Path(words[1]).unlink()
        return text

    remote = view("remote", rviz="true")
    assert "rviz_default_plugins/Image" not in remote and "/class_colours.yaml" in remote
    chosen = view("remote", rviz="true", image="stereo/left/image/compressed", fixed_frame="map")
    assert "Value: stereo/left/image/compressed" in chosen and "Fixed Frame: map" in chosen
    assert "Value: detections_image" in view("kitti_replay", path="x")
    assert "Value: left/image_rect" in view("kitti_replay", path="x", overlay="false")


def test_a_parameter_file_is_overridden_by_given_arguments_only(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"/**:\n  ros__parameters:\n    model: {TINY_MODEL}\n    rate: 2.0\n    sync: exact\n    sync_tolerance: 0.02\n"
    )
    launched = Launched("vehicle", params_file=tmp_path / "mine.yaml", sync="approximate", rate="0")
    pid = launched.until(r"started with pid \[(\d+)\]")[1]
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    files = [Path(command[i + 1]) for i, word in enumerate(command) if word == "--params-file"]
    given = files[1].read_text()
    assert files[0] == tmp_path / "mine.yaml"
    assert "rate: 0.0" in given and "sync: approximate" in given and "model" not in given
    launched.until("encoder_node.: active")
    launched.process.send_signal(signal.SIGINT)
    assert launched.finish() == 0 and "escalating" not in launched.output


def test_a_misspelt_model_ends_the_node_for_good():
    launched = Launched("vehicle", model="sicm-compat")
    assert launched.finish() == 0
    assert len(launched.started()) == 1 and "model 'sicm-compat' not found" in launched.output


@pytest.mark.slow
def test_a_crashed_node_is_started_again():
    launched = Launched("remote", model=TINY_MODEL)
    first = int(launched.until(r"started with pid \[(\d+)\]")[1])
    launched.until("decoder_node.: active")
    os.kill(first, signal.SIGKILL)
    launched.until(r"started with pid \[\d+\]")
    launched.until("decoder_node.: active")
    launched.process.send_signal(signal.SIGINT)
    assert launched.finish() == 0
    assert len(launched.started()) == 2 and "escalating" not in launched.output


@pytest.mark.slow
def test_a_replay_ends_when_one_of_its_nodes_has_a_bad_configuration():
    launched = Launched("kitti_replay", path="/nowhere", model=TINY_MODEL, rviz="false")
    assert launched.finish() == 0
    assert len(launched.started()) == 4 and "kitti_player_node" in launched.output
    assert not any(Path(f"/proc/{pid}").exists() for pid in launched.started())


def test_ctrl_c_while_the_model_loads_is_not_escalated():
    launched = Launched("vehicle", model=TINY_MODEL)
    pid = launched.until(r"started with pid \[(\d+)\]")[1]
    end = time.monotonic() + PATIENCE_S
    while "libtorch" not in Path(f"/proc/{pid}/maps").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    launched.process.send_signal(signal.SIGINT)
    assert launched.finish() == 0
    assert "escalating" not in launched.output and "Traceback" not in launched.output
    assert "]: active" not in launched.output  # else it was too late to tell anything
