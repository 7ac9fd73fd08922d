# SPDX-License-Identifier: Apache-2.0
"""Bags: KITTI to rosbag2 and back, the stereo topics of other people's bags, broken bags, message definitions."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from sicm_ros.bags.from_kitti import from_kitti
from sicm_ros.bags.reader import BagStereo, is_bag, open_bag
from sicm_ros.bags.topics import TOPIC_SCHEMES, find_stereo_topics
from sicm_ros.bags.types import BagError, typestore
from sicm_ros.bags.writer import BagWriter
from sicm_ros.conversion.camera_info import camera_info_fields
from sicm_ros.data.kitti import open_source, write_object_calib
from sicm_ros.geometry import StereoRig

RIG = StereoRig(721.5, 721.5, 30.25, 10.5, (44.857, 0.2163, 0.00274), (-339.52, 2.1999, 0.00273))


@pytest.fixture
def source(tmp_path):
    """A KITTI object folder of three small noise images."""
    root = tmp_path / "kitti" / "training"
    rng = np.random.default_rng(2)
    for folder in ("image_2", "image_3", "calib"):
        (root / folder).mkdir(parents=True)
    for name in ("000000", "000004", "000009"):
        for folder in ("image_2", "image_3"):
            PilImage.fromarray(rng.integers(0, 256, (24, 64, 3), np.uint8)).save(root / folder / f"{name}.png")
        write_object_calib(root / "calib" / f"{name}.txt", replace(RIG, fx=RIG.fx + int(name)))
    return root.parent


def test_a_failed_or_interrupted_bag_leaves_nothing_and_the_next_try_works(source, tmp_path):
    def stop(done, total):
        assert not (tmp_path / "bag").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        from_kitti(source, tmp_path / "bag", progress=stop)
    assert list(tmp_path.iterdir()) == [source]
    # Killed: what is left has another name, and goes with the next try.
    (tmp_path / ".bag.part" / "bag").mkdir(parents=True)
    (tmp_path / ".bag.part" / "bag" / "bag.db3").write_bytes(b"half")
    assert from_kitti(source, tmp_path / "bag", frames=1) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"bag", "kitti"}
    with pytest.raises(BagError, match="exists already"):
        from_kitti(source, tmp_path / "bag", frames=1)
    # A source that breaks in its middle.
    (source / "training" / "image_3" / "000009.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"000009\.png"):
        from_kitti(source, tmp_path / "second")
    assert {p.name for p in tmp_path.iterdir()} == {"bag", "kitti"}


def test_two_writers_of_one_bag(tmp_path):
    with BagWriter(tmp_path / "bag"):
        with pytest.raises(BagError, match="another process is writing this bag"):
            BagWriter(tmp_path / "bag")
        assert not (tmp_path / "bag").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["bag"]


@pytest.mark.parametrize("end", [-1, -3000, 3000])
def test_a_cut_mcap_is_told_in_one_line(source, tmp_path, end):
    pytest.importorskip("sicm_ros.msg")
    from sicm_ros.nodes.player_source import PacketSource, is_packet_bag

    from_kitti(source, tmp_path / "bag", "mcap")
    path = tmp_path / "bag" / "bag.mcap"
    path.write_bytes(path.read_bytes()[:end])
    for bag in (path, path.parent):
        for use in (is_packet_bag, lambda p: PacketSource(p, 0.0, False), BagStereo):
            with pytest.raises(BagError) as error:
                use(str(bag))
            assert str(bag) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_kitti_to_bag_and_back_is_the_same(source, tmp_path, storage):
    progress = []
    bag = tmp_path / "bag"
    assert from_kitti(source, bag, storage, progress=lambda *p: progress.append(p)) == 3
    assert progress == [(1, 3), (2, 3), (3, 3)] and is_bag(bag)
    frames = list(BagStereo(bag))
    original = open_source(source)
    assert len(BagStereo(bag)) == len(frames) == 3
    for (frame, frame_id), expected in zip(frames, original, strict=True):
        assert np.array_equal(frame.left, expected.left) and np.array_equal(frame.right, expected.right)
        assert (frame.stamp_ns, frame.right_stamp_ns) == (expected.stamp_ns, expected.right_stamp_ns)
        assert frame_id == "camera_0_optical"
        assert frame.rig.baseline == pytest.approx(expected.rig.baseline, rel=1e-12)
        assert frame.rig.left_translation == pytest.approx(RIG.left_translation, rel=1e-12)
        assert frame.rig.fx == expected.rig.fx  # each frame has its own calibration
    assert frames[2][0].stamp_ns == 1_200_000_000 and frames[0][0].rig.fx != frames[2][0].rig.fx


def test_a_bag_holds_what_other_players_need(source, tmp_path):
    from_kitti(source, tmp_path / "bag", frames=2)
    with open_bag(tmp_path / "bag") as reader:
        counts = {c.topic: (c.msgtype, c.msgcount) for c in reader.connections}
        (tf,) = [c for c in reader.connections if c.topic == "/tf_static"]
        assert tf.ext.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL"
        _, _, raw = next(reader.messages([tf]))
        transforms = {t.child_frame_id: t for t in reader.deserialize(raw, tf.msgtype).transforms}
    assert counts == {
        "/tf_static": ("tf2_msgs/msg/TFMessage", 1),
        "/left/camera_info": ("sensor_msgs/msg/CameraInfo", 2),
        "/right/camera_info": ("sensor_msgs/msg/CameraInfo", 2),
        "/left/image_rect": ("sensor_msgs/msg/Image", 2),
        "/right/image_rect": ("sensor_msgs/msg/Image", 2),
    }
    assert set(transforms) == {"camera_0_optical", "camera_left_optical", "camera_right_optical"}
    baseline = (
        transforms["camera_right_optical"].transform.translation.x
        - transforms["camera_left_optical"].transform.translation.x
    )
    assert baseline == pytest.approx(RIG.baseline, abs=1e-6)


def test_real_sequence_through_a_bag(kitti_root, tmp_path):
    sequence = open_source(kitti_root / "sequence_02")
    from_kitti(kitti_root / "sequence_02", tmp_path / "bag", "mcap", frames=3)
    frames = [frame for frame, _ in BagStereo(tmp_path / "bag")]
    assert [f.stamp_ns for f in frames] == [sequence[i].stamp_ns for i in range(3)]
    assert all(np.array_equal(f.left, sequence[i].left) for i, f in enumerate(frames))


# --------------------------------------------------------------------------------------------- other people's bags


@pytest.mark.parametrize(
    ("topics", "expected"),
    [
        (["/left/image_rect", "/right/image_rect"], 0),
        (
            [
                "/kitti/camera_color_left/image",
                "/kitti/camera_color_right/image",
                "/kitti/camera_gray_left/image",
                "/kitti/camera_gray_right/image",
            ],
            0,
        ),
        (["/camera1/left/image_raw", "/camera2/right/image_raw"], 0),
        (["/kitti/left_camera/image", "/kitti/right_camera/image"], 0),
        (
            [
                "/stereo/left/image_raw",
                "/stereo/right/image_raw",
                "/stereo/left/image_rect",
                "/stereo/right/image_rect",
            ],
            2,
        ),
        (["/kitti/image_00", "/kitti/image_01", "/kitti/image_02", "/kitti/image_03"], 2),
        (["/cam0/image_raw", "/cam1/image_raw"], 0),
    ],
)
def test_stereo_topics_by_their_names(topics, expected):
    assert find_stereo_topics(topics) == (topics[expected], topics[expected + 1])
    assert find_stereo_topics(topics[::-1]) == (topics[expected], topics[expected + 1])


@pytest.mark.parametrize("scheme", TOPIC_SCHEMES)
def test_topics_as_converters_name_them(source, tmp_path, scheme):
    assert from_kitti(source, tmp_path / "bag", topics=scheme) == 3
    bag = BagStereo(tmp_path / "bag")
    assert (bag.topics["left"], bag.topics["right"]) == TOPIC_SCHEMES[scheme]
    assert [frame.rig.fx for frame, _ in bag] == [frame.rig.fx for frame in open_source(source)]


def test_an_unknown_scheme_of_topics(source, tmp_path):
    with pytest.raises(BagError, match="topics: expected one of sicm, kitti2bag, .*, got 'ros1'"):
        from_kitti(source, tmp_path / "bag", topics="ros1")


@pytest.mark.parametrize(
    ("topics", "words"),
    [
        ([], "no stereo pair"),
        (["/camera/image"], "no stereo pair .*/camera/image"),
        (["/a/left/image", "/a/right/image", "/b/left/image", "/b/right/image"], "more than one stereo pair"),
    ],
)
def test_unclear_topics_ask_for_their_names(topics, words):
    with pytest.raises(BagError, match=words):
        find_stereo_topics(topics)


def write_stereo(path, left, right, *, infos=True, shift_ns=0, encoding="bgr8", stamped=True, compressed=False):
    """A bag with one pair of mid-grey images per entry of ``left`` and ``right`` (milliseconds)."""
    with BagWriter(path) as bag:
        types = bag.store.types
        for side, times in (("left", left), ("right", right)):
            prefix = f"/kitti/camera_color_{side}"
            for ms in times:
                recorded = ms * 1_000_000 + (shift_ns if side == "right" else 0)
                header = bag.header(recorded if stamped else 0, f"camera_color_{side}")
                data = np.full(24 * 64 * 3, 100, np.uint8)
                data[::3] = 200
                if compressed:
                    import cv2

                    message = types["sensor_msgs/msg/CompressedImage"](
                        header=header, format="png", data=cv2.imencode(".png", data.reshape(24, 64, 3))[1].ravel()
                    )
                    bag.write(f"{prefix}/image/compressed", "sensor_msgs/msg/CompressedImage", recorded, message)
                else:
                    message = types["sensor_msgs/msg/Image"](
                        header=header, height=24, width=64, encoding=encoding, is_bigendian=0, step=192, data=data
                    )
                    bag.write(f"{prefix}/image", "sensor_msgs/msg/Image", recorded, message)
            if infos:
                fields = {
                    k: np.array(v) if isinstance(v, list) else v
                    for k, v in camera_info_fields(RIG, side, 64, 24).items()
                }
                roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
                info = types["sensor_msgs/msg/CameraInfo"](
                    header=bag.header(0, ""), binning_x=0, binning_y=0, roi=roi, **fields
                )
                bag.write(f"{prefix}/camera_info", "sensor_msgs/msg/CameraInfo", 0, info)
    return path


def test_own_stamps_for_each_camera_and_a_lost_image(tmp_path):
    bag = BagStereo(write_stereo(tmp_path / "bag", [0, 100, 200, 300], [0, 100, 300], shift_ns=3_000_000))
    frames = list(bag)
    assert [f.stamp_ns // 1_000_000 for f, _ in frames] == [0, 100, 300] and bag.drops == 1
    assert [f.right_stamp_ns - f.stamp_ns for f, _ in frames] == [3_000_000] * 3
    assert frames[0][1] == "camera_color_left"
    assert frames[0][0].left[5, 5].tolist() == [100, 100, 200]  # bgr8 became RGB


def test_unstamped_headers_take_the_recording_time(tmp_path):
    frames = [f for f, _ in BagStereo(write_stereo(tmp_path / "bag", [10, 110], [10, 110], stamped=False))]
    assert [f.stamp_ns // 1_000_000 for f in frames] == [10, 110]


def test_compressed_images(tmp_path):
    frames = [f for f, _ in BagStereo(write_stereo(tmp_path / "bag", [10, 110], [10, 110], compressed=True))]
    assert len(frames) == 2 and frames[0].left[5, 5].tolist() == [100, 100, 200]


def test_a_bag_without_camera_info_takes_a_kitti_calibration(tmp_path, source):
    path = write_stereo(tmp_path / "bag", [10], [10], infos=False)
    with pytest.raises(
        BagError,
        match="no camera_info beside /kitti/camera_color_left/image; name a KITTI calibration file .option --calib",
    ):
        BagStereo(path)
    ((frame, _),) = BagStereo(path, calib=source / "training" / "calib" / "000004.txt")
    assert frame.rig.fx == pytest.approx(RIG.fx + 4)


def test_a_topic_that_is_not_there_is_named_with_those_that_are(tmp_path):
    path = write_stereo(tmp_path / "bag", [10], [10])
    with pytest.raises(BagError, match="no image topic '/left'; there are: /kitti/camera_color_left/image, "):
        BagStereo(path, "/left", "/right")


# ------------------------------------------------------------------------------------------------------ broken bags


def test_broken_bags_are_one_line_each(tmp_path, source):
    bag = tmp_path / "bag"
    from_kitti(source, bag)
    with pytest.raises(BagError, match="exists already"):
        from_kitti(source, bag)
    with pytest.raises(BagError, match="storage: expected one of sqlite3, mcap"):
        from_kitti(source, tmp_path / "other", "zip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.mcap").write_bytes(b"not a bag at all")
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "metadata.yaml").write_text("rosbag2_bagfile_information: [1, 2\n")
    (bag / "metadata.yaml").rename(tmp_path / "metadata.yaml")
    for path in (tmp_path / "absent", tmp_path / "empty", tmp_path / "notes.mcap", tmp_path / "yaml", bag):
        with pytest.raises(BagError, match=path.name) as caught:
            BagStereo(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_cut_bag_is_an_error_and_no_crash(tmp_path, source, storage, part):
    from_kitti(source, tmp_path / "bag", storage)
    (data,) = [path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml"]
    content = data.read_bytes()
    data.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(BagError, match="bag: (not a readable bag|damaged|no )") as caught:
        list(BagStereo(tmp_path / "bag"))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ definitions


def test_our_types_have_the_hashes_of_the_generated_ones():
    """What a recorder writes into a bag is what a live subscriber would accept."""
    pytest.importorskip("sicm_ros.msg")
    store = typestore()
    checked = 0
    for package in ("sicm_ros", "vision_msgs"):
        for path in (Path(sys.prefix) / "share" / package / "msg").glob("*.json"):
            for entry in json.loads(path.read_text())["type_hashes"]:
                name = entry["type_name"]
                if name.split("/")[0] == package:
                    assert store.hash_rihs01(name) == entry["hash_string"], name
                    checked += 1
    if not checked:
        pytest.skip("no generated message definitions in this environment")
    assert "sicm_ros/msg/StereoBitstream" in store.types and "vision_msgs/msg/Detection3DArray" in store.types


@pytest.mark.slow
@pytest.mark.parametrize(("number", "words"), [(signal.SIGINT, "interrupted\n"), (signal.SIGTERM, "")])
def test_a_signal_while_a_bag_plays_is_told_by_the_status(source, tmp_path, number, words):
    pytest.importorskip("sicm_ros.msg", reason="the messages of sicm_ros are not built in this environment")
    from_kitti(source, tmp_path / "bag")
    process = subprocess.Popen(
        [sys.executable, "-m", "sicm_ros.cli.app", "bag", "play", str(tmp_path / "bag"), "--paused"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        first = process.stderr.readline()  # once the bag is open
        assert "pairs" in first
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == 128 + number and "Traceback" not in rest
    assert [line for line in rest.splitlines(keepends=True) if "[kitti_player_node]" not in line] == words.splitlines(
        keepends=True
    )
