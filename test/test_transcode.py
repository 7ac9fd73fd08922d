# SPDX-License-Identifier: Apache-2.0
"""Bags transcoded offline: images to packets, packets to boxes, resumed after a kill, on several processes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dask_cluster import cluster, content
from full_disk import full_disk
from needs import missing
from PIL import Image as PilImage
from ros_graph import PATIENCE_S

from sicm_ros.bags.from_kitti import from_kitti
from sicm_ros.bags.reader import open_bag
from sicm_ros.bags.types import BagError
from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.data.kitti import open_source, write_object_calib
from sicm_ros.model_store import ModelError
from sicm_ros.render.layouts import KITTI_RIG

MISSING = missing("rclpy", "sicm_ros.msg")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    from sicm_ros.jobs.transcode import transcode

TINY = str(Path(__file__).parent / "data" / "models" / "tame")


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    """Five small noise pairs; each frame has a rig of its own."""
    root = tmp_path_factory.mktemp("kitti") / "training"
    rng = np.random.default_rng(8)
    for folder in ("image_2", "image_3", "calib"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        for folder in ("image_2", "image_3"):
            PilImage.fromarray(rng.integers(0, 256, (188, 621, 3), np.uint8)).save(root / folder / f"{i:06d}.png")
        write_object_calib(root / "calib" / f"{i:06d}.txt", replace(KITTI_RIG, fx=KITTI_RIG.fx + i))
    return root.parent


@pytest.fixture(scope="module")
def bag(kitti, tmp_path_factory):
    path = tmp_path_factory.mktemp("bags") / "images"
    from_kitti(kitti, path)
    return path


def read(path):
    """Topic -> list of (recording time, message)."""
    found = {}
    with open_bag(path) as reader:
        for connection, stamp, raw in reader.messages():
            found.setdefault(connection.topic, []).append((stamp, reader.deserialize(raw, connection.msgtype)))
    return found


def packets_of(path):
    return [bytes(m.data) for _, m in read(path)["/stereo_bitstream"]]


def test_images_become_the_packets_of_the_encoder(kitti, bag, tmp_path):
    progress = []
    done = transcode(bag, tmp_path / "out", model=TINY, progress=lambda *p: progress.append(p))
    source, found = open_source(kitti), read(tmp_path / "out")
    assert set(found) == {"/stereo_bitstream", "/codec_info", "/left/camera_info", "/right/camera_info", "/tf_static"}
    encoder = StereoEncoder(TINY)
    expected = [encoder.encode(f.left, f.right, f.rig).packet for f in source]
    assert packets_of(tmp_path / "out") == expected
    messages = [m for _, m in found["/stereo_bitstream"]]
    assert [m.sequence for m in messages] == [0, 1, 2, 3, 4] and len({m.session for m in messages}) == 1
    assert [stamp for stamp, _ in found["/stereo_bitstream"]] == [10**9 + i * 10**8 for i in range(5)]
    assert messages[3].header.stamp.nanosec == 300_000_000 and messages[3].header.frame_id == "camera_0_optical"
    # Times would tell of the machine that did the work, and make every bag another one.
    assert {m.sync_ms + m.preprocess_ms + m.backbone_ms + m.smfc_ms + m.entropy_ms for m in messages} == {0.0}
    assert len(found["/codec_info"]) == 1
    assert progress == [(i, 5) for i in range(1, 6)]
    assert (done.pairs, done.packet_bytes, done.boxes) == (5, sum(map(len, expected)), 0)
    assert done.raw_bytes == 5 * 2 * 188 * 621 * 3 and done.copied == 11 and done.dropped == {}
    assert not (tmp_path / "out.part").exists()


def test_another_engine_codes_as_well(bag, tmp_path):
    plain, fast = (
        transcode(bag, tmp_path / engine, "detections", TINY, threshold=0.0, engine=engine)
        for engine in ("torch", "openvino")
    )
    assert fast.pairs == plain.pairs and fast.packet_bytes == pytest.approx(plain.packet_bytes, rel=0.05)
    for target in ("packets", "detections"):
        with pytest.raises(ValueError, match="engine: expected one of"):
            transcode(bag, tmp_path / "none", target, TINY, engine="none")


def test_packets_become_boxes_and_stay(bag, tmp_path):
    transcode(bag, tmp_path / "packets", model=TINY, namespace="car1", storage="mcap")
    done = transcode(tmp_path / "packets", tmp_path / "boxes", "detections", TINY, threshold=0.0)
    found = read(tmp_path / "boxes")
    assert {
        "/car1/stereo_bitstream",
        "/car1/codec_info",
        "/car1/detections",
        "/car1/detection_markers",
        "/car1/label_info",
        "/tf_static",
    } <= set(found)
    decoder = StereoDecoder(TINY, score_threshold=0.0)
    boxes = [decoder.decode(bytes(m.data)).objects for _, m in found["/car1/stereo_bitstream"]]
    assert sum(map(len, boxes)) == done.boxes > 0
    for (_, array), objects in zip(found["/car1/detections"], boxes, strict=True):
        assert [d.bbox.center.position.z for d in array.detections] == pytest.approx([o.z for o in objects])
        assert array.header.frame_id == "camera_0_optical"


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bag(bag, tmp_path):
    whole = tmp_path / "whole"
    transcode(bag, whole, "detections", TINY)

    def kill(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transcode(bag, tmp_path / "out", "detections", TINY, progress=kill)
    assert not (tmp_path / "out").exists()
    progress = []
    done = transcode(bag, tmp_path / "out", "detections", TINY, progress=lambda *p: progress.append(p))
    assert progress == [(3, 5), (4, 5), (5, 5)] and done.pairs == 5
    assert packets_of(tmp_path / "out") == packets_of(whole)
    assert [t for t, _ in read(tmp_path / "out")["/detections"]] == [t for t, _ in read(whole)["/detections"]]


def test_a_failure_leaves_nothing_or_what_the_next_run_goes_on_from(bag, tmp_path):
    out, part = tmp_path / "out", tmp_path / "out.part"
    with pytest.raises(ValueError, match="rate: expected 0 to 5"):
        transcode(bag, out, model=TINY, rate=9, workers=2)
    with pytest.raises(BagError, match="no image topic"):
        transcode(bag, out, model=TINY, left_topic="/none")
    assert list(tmp_path.iterdir()) == []
    states = set()
    for limit in range(4096, 200_000, 8192):
        try:
            with full_disk(limit):
                transcode(bag, out, model=TINY, rate=5)
        except BagError as error:
            words = str(error)
            assert "\n" not in words and ("cannot write the bag" in words or "cannot keep the finished" in words), words
            kept = f"pairs are kept in {part}: the same command goes on from there" in words
            assert list(tmp_path.iterdir()) == [part] * kept
            states.add(kept)
        else:
            break
    assert states == {True, False} and len(read(out)["/stereo_bitstream"]) == 5
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_of_the_user_with_the_name_of_unfinished_work_stays(bag, tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine").write_text("mine")
    with pytest.raises(BagError, match="this one holds something else"):
        transcode(bag, tmp_path / "out", model=TINY)
    assert (tmp_path / "out.part" / "mine").read_text() == "mine"


def test_unfinished_work_of_another_command_is_not_mixed_in(bag, tmp_path):
    def kill(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transcode(bag, tmp_path / "out", model=TINY, progress=kill)
    with pytest.raises(BagError, match="another bag, model or option"):
        transcode(bag, tmp_path / "out", model=TINY, namespace="other")


@pytest.mark.slow
def test_processes_share_the_work_and_keep_the_order(bag, tmp_path):
    transcode(bag, tmp_path / "one" / "out", "detections", TINY, threshold=0.0)
    transcode(bag, tmp_path / "two" / "out", "detections", TINY, threshold=0.0, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two") and len(content(tmp_path / "one")) == 2


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes_although_a_worker_is_killed(bag, tmp_path, capfd):
    transcode(bag, tmp_path / "here" / "out", "detections", TINY, threshold=0.0)
    with cluster(tmp_path) as (address, processes):
        progress = []

        def kill(*numbers):
            progress.append(numbers)
            processes[1].kill()

        transcode(bag, tmp_path / "there" / "out", "detections", TINY, threshold=0.0, progress=kill, cluster=address)
        assert processes[1].wait() == -signal.SIGKILL and processes[2].poll() is None
    assert progress == [(i, 5) for i in range(1, 6)]
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_another_model_of_that_name_on_a_cluster_is_one_line(bag, tmp_path, monkeypatch):
    here, there = tmp_path / "models", tmp_path / "others"
    shutil.copytree(TINY, here / "mine")
    shutil.copytree(Path(TINY).with_name("tiny"), there / "mine")
    monkeypatch.setenv("SICM_MODEL_PATH", str(here))
    with cluster(tmp_path, 1, {"SICM_MODEL_PATH": str(there)}) as (address, _):
        with pytest.raises(ModelError, match="model mine: expected the fingerprint [0-9a-f]{16}, as where the command"):
            transcode(bag, tmp_path / "out", model="mine", cluster=address)
    assert not (tmp_path / "out.part").exists()


def test_images_that_cannot_be_decoded_are_dropped_and_counted(bag, tmp_path):
    from sicm_ros.bags.writer import BagWriter

    with open_bag(bag) as reader, BagWriter(tmp_path / "bad") as writer:
        for connection, stamp, raw in reader.messages():
            data = bytes(raw)
            if connection.topic == "/right/image_rect" and stamp == 1_200_000_000:
                data = data.replace(b"rgb8", b"none")
            writer.write(connection.topic, connection.msgtype, stamp, data)
    done = transcode(tmp_path / "bad", tmp_path / "out", model=TINY)
    assert done.pairs == 4 and list(done.dropped.values()) == [1] and "encoding" in next(iter(done.dropped))
    assert [m.sequence for _, m in read(tmp_path / "out")["/stereo_bitstream"]] == [0, 1, 3, 4]


def test_a_damaged_packet_is_dropped_and_counted(bag, tmp_path):
    from sicm_ros.bags.writer import BagWriter

    transcode(bag, tmp_path / "good", model=TINY)
    with open_bag(tmp_path / "good") as reader, BagWriter(tmp_path / "bad") as writer:
        for connection, stamp, raw in reader.messages():
            data = bytes(raw)
            if connection.topic == "/stereo_bitstream" and stamp == 1_200_000_000:
                data = data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]
            writer.write(connection.topic, connection.msgtype, stamp, data)
    done = transcode(tmp_path / "bad", tmp_path / "boxes", "detections", TINY)
    assert done.pairs == 4 and sum(done.dropped.values()) == 1 and "CRC" in next(iter(done.dropped))
    found = read(tmp_path / "boxes")
    assert len(found["/stereo_bitstream"]) == 5 and len(found["/detections"]) == 4


def test_wrong_requests_are_one_line(bag, kitti, tmp_path):
    transcode(bag, tmp_path / "packets", model=TINY)
    for message, arguments in {
        "has packets already": (tmp_path / "packets", tmp_path / "x", "packets", TINY),
        "expected a bag that does not exist yet": (bag, tmp_path / "packets", "packets", TINY),
        "namespace: expected a name of ROS 2": (bag, tmp_path / "x", "packets", TINY, None, None, 1, "mcap", "1 bad"),
        "no such bag": (tmp_path / "none", tmp_path / "x", "packets", TINY),
    }.items():
        with pytest.raises(BagError, match=message) as error:
            transcode(*arguments)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["the first one is there", "one loads PyTorch"])
def test_ctrl_c_while_workers_start_is_one_line(bag, tmp_path, moment):
    for out in (tmp_path / f"out{i}" for i in range(5)):
        status, output = interrupted(bag, out, moment)
        if status != 0:  # else this process was held up for so long that the other one had finished
            break
    assert (status, output) == (130, "interrupted\n")
    transcode(bag, out, model=TINY)


def interrupted(bag, out, moment):
    """Exit status and output of a command that got Ctrl-C at that moment; all its processes have ended."""
    command = [sys.executable, "-m", "sicm_ros.cli.app", "bag", "transcode", str(bag), str(out)]
    process = subprocess.Popen(
        [*command, "--model", TINY, "--workers", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # as in a terminal, Ctrl-C goes to the workers, too
    )

    seen = {}  # when each worker was first there; importing PyTorch takes it the second after that, or more

    def reached():
        now = time.monotonic()
        workers = [pid for pid, words in group(process.pid).items() if "spawn_main" in words]
        age = max((now - seen.setdefault(pid, now) for pid in workers), default=-1.0)
        return age >= (0.0 if moment == "the first one is there" else 0.4)

    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and not reached():
        assert time.monotonic() < end
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE_S)
    while group(process.pid):
        assert time.monotonic() < end, group(process.pid)
        time.sleep(0.05)
    return process.returncode, output


def group(leader):
    """The living processes of a process group, each with its command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, pgrp = path.joinpath("stat").read_text().rsplit(") ", 1)[1].split()[:3]
            if int(pgrp) == leader and state != "Z":
                found[int(path.name)] = path.joinpath("cmdline").read_text()
    return found
