# SPDX-License-Identifier: Apache-2.0
"""The demo: three processes over real topics, and what is left afterwards."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from needs import missing
from PIL import Image
from rich.console import Console
from ros_graph import PATIENCE_S, REPOSITORY, TINY_MODEL, NodeProcess
from rosbags.rosbag2 import Reader

from sicm_ros.bags.types import typestore
from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.data.kitti import read_object_calib, write_object_calib
from sicm_ros.preprocessing import InputError

MISSING = missing("rclpy", "sicm_ros.msg")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    from sicm_ros.conversion.stamps import nanoseconds
    from sicm_ros.jobs.demo import run
    from sicm_ros.jobs.demo_files import JOURNAL, FolderError, claim
    from sicm_ros.jobs.demo_watcher import DemoError

MARK = "SICM_ROS_TEST"  # in the environment of a demo of these tests, and so in that of its nodes


def nodes_running(mark):
    """Command lines of the node processes of a demo; another demo may run on this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if "__ns:=/sicm_demo" in line and f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append(line)
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo of three rendered pairs as ``sicm demo`` runs it; its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo")
    code = f"import sys; from sicm_ros.jobs.demo import run; sys.exit(run(None, {str(out)!r}, {str(TINY_MODEL)!r}, 3))"
    environment = {**os.environ, MARK: str(out)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result.stdout


@pytest.mark.slow
def test_every_pair_comes_back_and_is_drawn(demo):
    out, printed = demo
    assert "3 pairs sent, 3 box arrays received, 0 lost" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["pairs_sent"], summary["arrays_received"], summary["lost"]) == (3, 3, 0)
    for frame in summary["frames"]:
        assert frame["raw_bytes"] == 2 * 3 * 1242 * 375
        assert frame["bits_per_pixel"] == pytest.approx(8 * frame["packet_bytes"] / (2 * 1242 * 375))
        stages = sum(frame["encoder_ms"].values()) + sum(frame["decoder_ms"].values())
        assert 0 < stages < frame["total_ms"] and len(frame["encoder_ms"]) == 4 and len(frame["decoder_ms"]) == 3
    for name in ("frame_000000", "frame_000001", "frame_000002", "overview"):
        picture = np.asarray(Image.open(out / f"{name}.png"))
        assert picture.shape[1] > 900 and picture.std() > 10
    assert nodes_running(out) == []


@pytest.mark.slow
def test_the_bag_holds_packets_and_boxes_and_a_decoder_can_use_it(demo, tmp_path):
    out, _ = demo
    store, decoder = typestore(), StereoDecoder(TINY_MODEL, engine="auto")
    with Reader(out / "bag") as bag:
        counts = {c.topic: c.msgcount for c in bag.connections}
        messages = [(c.topic.rsplit("/", 1)[1], store.deserialize_cdr(raw, c.msgtype)) for c, _, raw in bag.messages()]
    assert counts == {
        "/sicm_demo/stereo_bitstream": 3,
        "/sicm_demo/codec_info": 1,
        "/sicm_demo/detections": 3,
        "/sicm_demo/detection_markers": 3,
        "/sicm_demo/label_info": 1,
        "/sicm_demo/left/camera_info": 3,
        "/sicm_demo/right/camera_info": 3,
        "/tf_static": 1,
    }
    arrays = {nanoseconds(m.header.stamp): m for kind, m in messages if kind == "detections"}
    packets = [m for kind, m in messages if kind == "stereo_bitstream"]
    assert [p.sequence for p in packets] == [0, 1, 2]
    for packet in packets:
        boxes = arrays[nanoseconds(packet.header.stamp)].detections
        assert len(boxes) == len(decoder.decode(packet.data.tobytes()).objects) > 0


@pytest.mark.slow
def test_the_bag_can_be_played_to_a_decoder(demo, tmp_path):
    """Packets alone, without images: what a recorder at the far end of a link would keep."""
    out, _ = demo
    decoder = NodeProcess(
        "decoder", {"model": TINY_MODEL, "threads": 1, "bitstream_reliability": "reliable"}, "/replay", tmp_path
    )
    patience = {"wait_timeout": PATIENCE_S, "lockstep_timeout": PATIENCE_S}
    player = NodeProcess("kitti_player", {"path": out / "bag", "lockstep": True, **patience}, "/replay", tmp_path)
    try:
        assert player.wait() == 0, player.output
        assert "sent 3 pairs" in player.output and "boxes of 3 came back" in player.output
    finally:
        player.stop()
        assert decoder.stop() == 0


@pytest.mark.slow
def test_a_node_that_dies_is_named_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv(MARK, str(tmp_path))
    with pytest.raises(DemoError, match=r"(?s)the decoder ended with status 2; its last words.*score_threshold"):
        run(None, tmp_path, TINY_MODEL, frames=1, score_threshold=5.0)
    assert nodes_running(tmp_path) == []


def test_a_demo_of_somebody_else_is_none_of_ours(tmp_path):
    code = "import time; print(flush=True); time.sleep(1e6)"
    command = [sys.executable, "-c", code, "-r", "__ns:=/sicm_demo"]
    for mark, count in (("ours", 1), ("theirs", 0)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, MARK: mark}) as process:
            process.stdout.readline()
            assert len(nodes_running("ours")) == count
            process.kill()


def test_only_what_a_demo_wrote_is_replaced(tmp_path):
    names = ["frame_000107.png", "overview.png", "summary.json", "bag", "log"]
    for name in names:
        out = tmp_path / name.replace(".", "_")
        out.mkdir()
        (out / name).mkdir() if "." not in name else (out / name).write_text("mine")
        with pytest.raises(FolderError, match=f"{name}: no demo wrote this, so it stays") as error:
            claim(out, names)
        assert "\n" not in str(error.value) and [p.name for p in out.iterdir()] == [name]
    out = tmp_path / "out"
    claim(out, names)
    for name in ("frame_000107.png", "frame_mine.png", "overview.png", "notes.txt"):
        (out / name).write_text(name)
    (out / "bag").mkdir()
    (out / "bag" / "metadata.yaml").write_text("of the demo")
    claim(out, ["frame_000108.png", *names[1:]])
    assert sorted(p.name for p in out.iterdir()) == [JOURNAL, "frame_mine.png", "notes.txt"]
    with pytest.raises(FolderError, match=r"frame_mine\.png: no demo wrote this"):
        claim(out, ["frame_mine.png"])
    (out / "bag").mkdir()
    (out / "bag" / "other.db3").write_text("mine")
    with pytest.raises(FolderError, match=r"other\.db3: no demo wrote this"):
        claim(out, names)
    for text in ("{", "{}", '["../../x"]', "[1]"):
        (out / JOURNAL).write_text(text)
        with pytest.raises(FolderError, match="expected the names of a demo's files"):
            claim(out, names)
    assert (out / "frame_mine.png").read_text() == "frame_mine.png" and (out / "bag" / "other.db3").is_file()


def test_a_demo_in_a_folder_of_the_user_refuses_before_it_starts(tmp_path, kitti_root):
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "metadata.yaml").write_text("mine")
    with pytest.raises(FolderError, match="bag: no demo wrote this"):
        run(kitti_root / "object", tmp_path, TINY_MODEL)
    assert (tmp_path / "bag" / "metadata.yaml").read_text() == "mine"


@pytest.mark.slow
def test_grey_swapped_pairs_play_with_a_warning_and_the_demo_says_how_many(tmp_path, kitti_root):
    """An odometry sequence with grey cameras only, whose views were exchanged by mistake."""
    source, sequence = kitti_root / "sequence_02", tmp_path / "sequence"
    sequence.mkdir()
    for grey, colour in (("image_0", "image_3"), ("image_1", "image_2")):
        (sequence / grey).mkdir()
        for i in range(21):
            name = f"{min(i, 19):06d}.jpg"
            Image.open(source / colour / name).convert("L").resize((620, 188)).save(sequence / grey / f"{i:06d}.PNG")
    write_object_calib(sequence / "calib.txt", read_object_calib(source / "calib.txt").scaled(0.5, 0.5))
    (sequence / "times.txt").write_text("".join(f"{i / 10}\n" for i in range(21)))
    console = Console(record=True, width=200)
    assert run(sequence, tmp_path / "out", TINY_MODEL, frames=2, console=console) == 0
    words = console.export_text()
    assert f"the first 2 of 21 stereo pairs of {sequence}" in words
    assert words.count("warning: pair 000000: left and right image seem to be swapped") == 1
    assert run(sequence, tmp_path / "out", TINY_MODEL, frames=1, console=console) == 0  # over what the first one wrote
    assert not (tmp_path / "out" / "frame_000001.png").exists()


def test_bad_arguments_are_found_before_anything_starts(tmp_path):
    with pytest.raises(InputError, match="rate: expected 0 to 5 for model tame, got 7"):
        run(None, tmp_path / "out", TINY_MODEL, rate=7.0)
    with pytest.raises(DemoError, match="frames: expected at least 1, got 0"):
        run(None, tmp_path / "out", TINY_MODEL, frames=0)
    with pytest.raises(ValueError, match="nowhere: expected a KITTI folder"):
        run(tmp_path / "nowhere", tmp_path / "out", TINY_MODEL)
    assert not (tmp_path / "out").exists()
