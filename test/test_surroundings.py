# SPDX-License-Identifier: Apache-2.0
"""A process in a bad place: no working directory, no HOME, no disk, no GPU. One line, exit status 2, nothing left."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import full_disk
from PIL import Image

from sicm_ros.data.kitti import write_object_calib
from sicm_ros.render.layouts import KITTI_RIG

REPOSITORY = Path(__file__).resolve().parents[1]
TAME = str(REPOSITORY / "test" / "data" / "models" / "tame")
SICM = [sys.executable, "-m", "sicm_ros.cli.app"]


def run(command, folder, **variables):
    """Exit status and standard error of a command, in a folder and an environment of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


@pytest.fixture
def kitti(tmp_path):
    """An object folder with two pairs of noise."""
    root, rng = tmp_path / "kitti" / "training", np.random.default_rng(8)
    for folder in ("image_2", "image_3", "calib"):
        (root / folder).mkdir(parents=True)
    for i in range(2):
        for folder in ("image_2", "image_3"):
            Image.fromarray(rng.integers(0, 256, (188, 621, 3), np.uint8)).save(root / folder / f"{i:06d}.png")
        write_object_calib(root / "calib" / f"{i:06d}.txt", KITTI_RIG)
    return root.parent


@pytest.mark.parametrize("process", ["sicm", "module", "executable"])
def test_a_deleted_working_directory(tmp_path, process):
    if process != "sicm":
        pytest.importorskip("sicm_ros.msg")
    executable = tmp_path / "encoder_node"  # as it is installed, but for the handlers of signals that it begins with
    executable.write_text("from sicm_ros.nodes.encoder import main\n\nmain()\n")
    command = {
        "sicm": [*SICM, "inspect", "a.sicm"],
        "module": [sys.executable, "-m", "sicm_ros.nodes.encoder"],
        "executable": [sys.executable, str(executable)],
    }[process]
    (tmp_path / "gone").mkdir()
    shell = ["bash", "-c", 'rmdir "$PWD"; exec "$@"', "bash", *command]
    status, err = run(shell, tmp_path / "gone")
    assert (status, err) == (2, "error: the working directory does not exist any more: change to another one\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables, words",
    [
        ({"HOME": None}, "HOME is not set"),
        ({"HOME": "/proc/nowhere"}, "/proc/nowhere/.ros/log (HOME): ROS 2 cannot write its logs"),
        ({"ROS_LOG_DIR": "/dev/null/logs"}, "/dev/null/logs (ROS_LOG_DIR): ROS 2 cannot write its logs"),
    ],
)
def test_no_place_for_the_logs_of_ros(tmp_path, kitti, variables, words):
    pytest.importorskip("sicm_ros.msg")
    base = {"ROS_LOG_DIR": None, "ROS_HOME": None}
    for command in (
        [sys.executable, "-m", "sicm_ros.nodes.kitti_player", "--ros-args", "-p", "path:=kitti"],
        [*SICM, "demo", "-m", TAME, "--kitti", "kitti", "--out", "out"],
    ):
        status, err = run(command, tmp_path, **{**base, **variables})
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_demo_without_the_gpu_that_was_asked_for(tmp_path, kitti):
    pytest.importorskip("sicm_ros.msg")
    command = [*SICM, "demo", "-m", TAME, "--kitti", "kitti", "--out", "out", "--device", "cuda"]
    status, err = run(command, tmp_path)
    assert status == 2 and err.startswith("error: device 'cuda': expected cpu, or a GPU") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_from_kitti_on_a_full_disk(tmp_path, kitti, storage):
    from sicm_ros.bags.from_kitti import from_kitti
    from sicm_ros.bags.types import BagError

    with full_disk(500_000), pytest.raises(BagError, match="bag: cannot write the bag: ") as error:
        from_kitti(kitti, tmp_path / "bag", storage)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["kitti"]
    assert from_kitti(kitti, tmp_path / "bag", storage) == 2


@pytest.mark.slow
def test_the_demo_on_a_full_disk(tmp_path, kitti):
    """Of the bag, of the pictures, and of the journal."""
    pytest.importorskip("sicm_ros.msg")
    from sicm_ros.jobs.demo import run as demo

    with full_disk(10), pytest.raises(OSError, match="File too large") as error:
        demo(kitti, tmp_path / "out", TAME)
    assert error.value.filename == str(tmp_path / "out" / ".sicm_demo.json")
    code = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "test")!r})
from full_disk import full_disk
from sicm_ros.cli.app import main
with full_disk(40_000):
    main(["demo", "-m", {TAME!r}, "--kitti", "kitti", "--out", "out"])
"""
    status, err = run([sys.executable, "-c", code], tmp_path)
    assert status == 2 and err.startswith("error: out/") and err.count("\n") == 1, err
    assert not (tmp_path / "out" / "bag").exists() or (tmp_path / "out" / "bag" / "metadata.yaml").is_file()
