# SPDX-License-Identifier: Apache-2.0
"""The parts of the nodes that need no running graph: images, camera infos, boxes as messages, worker, diagnostics."""

import array
import io
import math
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sicm_ros.conversion.camera_info import CameraInfoError, RigCache, camera_info_fields
from sicm_ros.conversion.frames import static_transforms
from sicm_ros.conversion.images import (
    SUPPORTED_ENCODINGS,
    ImageError,
    rgb_from_compressed,
    rgb_to_message_fields,
    to_rgb,
)
from sicm_ros.data.kitti import read_labels, read_object_calib
from sicm_ros.geometry import Object3D, StereoRig, project
from sicm_ros.nodes.packet_sequence import PacketSequence
from sicm_ros.ros.worker import Worker

RIG = StereoRig(
    721.5377, 721.5377, 609.5593, 172.854, (44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905)
)


def image(encoding, pixels, bigendian=0, padding=0):
    """A message of (H, W, C) samples, with ``padding`` bytes at the end of each row."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    rows = np.concatenate([rows, np.full((height, padding), 77, np.uint8)], 1)
    return SimpleNamespace(
        width=width, height=height, encoding=encoding, is_bigendian=bigendian, step=rows.shape[1], data=rows.tobytes()
    )


# ------------------------------------------------------------------------------------------------------------ images

PICTURE = np.random.default_rng(5).integers(0, 256, (6, 8, 3), np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "channels"),
    [
        ("rgb8", (0, 1, 2)),
        ("bgr8", (2, 1, 0)),
        ("8UC3", (2, 1, 0)),
        ("rgba8", (0, 1, 2, 0)),
        ("bgra8", (2, 1, 0, 0)),
        ("8UC4", (2, 1, 0, 0)),
    ],
)
def test_colour_orders(encoding, channels, padding):
    assert np.array_equal(to_rgb(image(encoding, PICTURE[..., list(channels)], padding=padding)), PICTURE)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey(encoding):
    grey = PICTURE[..., :1]
    assert np.array_equal(to_rgb(image(encoding, grey)), grey.repeat(3, 2))


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_and_rounded_in_either_byte_order(encoding, order):
    samples = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=order)[..., None]
    result = to_rgb(image(encoding, samples, bigendian=int(order == ">u2")))
    assert result[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255] and result.shape == (1, 6, 3)


def test_sixteen_bit_colours():
    wide = PICTURE.astype(np.uint16) * 257
    assert np.array_equal(to_rgb(image("rgb16", wide)), PICTURE)
    assert np.array_equal(to_rgb(image("bgr16", wide[..., ::-1])), PICTURE)
    assert np.array_equal(to_rgb(image("bgra16", wide[..., [2, 1, 0, 0]])), PICTURE)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_bayer_patterns_by_their_first_row(pattern, bits):
    colour = np.array([200, 120, 40], np.uint16)
    mosaic = np.empty((16, 16), np.uint16)
    for i, channel in enumerate(pattern):
        mosaic[i // 2 :: 2, i % 2 :: 2] = colour["rgb".index(channel)]
    mosaic = mosaic.astype(np.uint8) if bits == 8 else mosaic * np.uint16(257)
    inner = to_rgb(image(f"bayer_{pattern}{bits}", mosaic[..., None]))[4:-4, 4:-4]
    assert (inner == colour).all()


def test_yuv_422():
    # Y of 82 with U 90, V 240 is BT.601's pure red.
    uyvy = np.tile(np.array([[90, 82], [240, 82]], np.uint8), (2, 2, 1)).reshape(2, 4, 2)
    red = to_rgb(image("yuv422", uyvy))
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 3
    assert np.array_equal(to_rgb(image("yuv422_yuy2", uyvy[..., ::-1])), red)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "32FC1"}, "encoding: expected one of .*'32FC1'"),
        ({"encoding": ""}, "encoding"),
        ({"step": 23}, "step: expected at least 24 bytes .* got 23"),
        ({"data": b"x" * 143}, "data: expected 144 bytes .* got 143"),
        ({"data": b""}, "data: expected 144 bytes .* got 0"),
        ({"width": 0}, "width and height"),
        ({"height": 0}, "width and height"),
        ({"width": 2**31}, "width and height"),
        ({"step": 2**32 - 1}, "data: expected"),
    ],
)
def test_broken_images_are_named(change, words):
    message = image("rgb8", PICTURE)
    vars(message).update(change)
    with pytest.raises(ImageError, match=words) as caught:
        to_rgb(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_compressed_images(kind):
    colours = np.kron(np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
    data = cv2.imencode(kind, colours[..., ::-1])[1].tobytes()
    image = rgb_from_compressed(
        SimpleNamespace(format=f"rgb8; {kind[1:]} compressed bgr8", data=array.array("B", data))
    )
    assert image.dtype == np.uint8 and image.shape == colours.shape
    assert np.abs(image.astype(int) - colours)[2:-2].mean() < (6 if kind == ".jpg" else 1e-9)
    for cut in (0, 5, len(data) // 2):
        try:
            cut_image = rgb_from_compressed(SimpleNamespace(format=kind, data=array.array("B", data[:cut])))
        except ImageError as error:
            assert f"({kind!r}, {cut} bytes)" in str(error) and "\n" not in str(error)
        else:
            assert cut > 5 and cut_image.shape == image.shape  # libjpeg fills up what is missing


def test_compressed_images_that_are_none():
    large = io.BytesIO()
    PIL.Image.new("1", (20000, 1)).save(large, "PNG")
    for form, data, words in (
        ("jpeg", b"", "expected data"),
        ("jpeg", b"no image at all", "not an image"),
        ("16UC1; compressedDepth png", b"\x00" * 12, "got depth"),
        ("png", large.getvalue(), "expected sides of at most 16384, got 20000x1"),
    ):
        with pytest.raises(ImageError, match=words):
            rgb_from_compressed(SimpleNamespace(format=form, data=array.array("B", data)))


def test_the_last_row_may_lack_its_padding():
    message = image("rgb8", PICTURE, padding=8)
    message.data = message.data[:-8]
    assert np.array_equal(to_rgb(message), PICTURE)


@settings(max_examples=200)
@given(
    st.sampled_from([*SUPPORTED_ENCODINGS, "nv21", "x"]),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 200),
    st.binary(max_size=2000),
    st.integers(0, 1),
)
def test_any_message_gives_an_image_or_an_image_error(encoding, width, height, step, data, bigendian):
    message = SimpleNamespace(
        width=width, height=height, encoding=encoding, step=step, data=data, is_bigendian=bigendian
    )
    try:
        result = to_rgb(message)
    except ImageError:
        return
    assert result.shape == (height, width, 3) and result.dtype == np.uint8


def test_message_fields_of_an_array():
    assert np.array_equal(to_rgb(SimpleNamespace(**rgb_to_message_fields(PICTURE))), PICTURE)
    assert np.array_equal(to_rgb(SimpleNamespace(**rgb_to_message_fields(PICTURE[:, ::2]))), PICTURE[:, ::2])


# ------------------------------------------------------------------------------------------------------ camera infos


def info(side, rig=RIG, width=1242, height=375, stamp=(0, 0), **change):
    fields = {
        "header": SimpleNamespace(stamp=SimpleNamespace(sec=stamp[0], nanosec=stamp[1])),
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
        **camera_info_fields(rig, side, width, height),
        **change,
    }
    return SimpleNamespace(**fields)


def test_rig_survives_the_camera_infos_left_translation_included():
    cache = RigCache()
    cache.update("left", info("left"))
    assert cache.missing() == ["right"]
    cache.update("right", info("right"))
    assert cache.rig(1242, 375, 0, 0) == RIG
    assert cache.rig(1242, 375, 0, 0).baseline == pytest.approx(0.5327, abs=1e-4)


@pytest.mark.parametrize(
    ("side", "change", "words"),
    [
        ("left", {"p": [0.0] * 12}, "left/camera_info: p: expected positive focal lengths"),
        ("right", {"p": [1.0] * 11}, "right/camera_info: p: expected 12 finite numbers"),
        ("right", {"p": [math.nan] * 12}, "right/camera_info: p: expected 12 finite numbers"),
        ("left", {"binning_x": 2}, "left/camera_info: binning"),
        ("left", {"roi": SimpleNamespace(x_offset=10, y_offset=0, width=100, height=100)}, "left/camera_info: roi"),
    ],
)
def test_bad_camera_infos_are_refused_and_the_last_good_one_stays(side, change, words):
    cache = RigCache()
    for each in ("left", "right"):
        cache.update(each, info(each))
    with pytest.raises(CameraInfoError, match=words):
        cache.update(side, info(side, **change))
    assert cache.rig(1242, 375, 0, 0) == RIG


def test_camera_infos_that_make_no_rig():
    cache = RigCache()
    with pytest.raises(CameraInfoError, match="left/camera_info: no message yet; right/camera_info: no message yet"):
        cache.rig(1242, 375, 0, 0)
    cache.update("left", info("left"))
    cache.update("right", info("left"))
    with pytest.raises(CameraInfoError, match="baseline"):
        cache.rig(1242, 375, 0, 0)
    cache.update("right", info("right", width=640, height=480))
    with pytest.raises(CameraInfoError, match="right/camera_info: width, height: expected 1242x375, .* got 640x480"):
        cache.rig(1242, 375, 0, 0)


def test_a_pair_uses_the_calibration_of_its_own_stamp_else_the_latest():
    """KITTI's object benchmark has another calibration for each frame."""
    other = StereoRig(707.0, 707.0, 600.0, 180.0, (45.0, 0.0, 0.0), (-330.0, 0.0, 0.0))
    cache = RigCache(depth=2)
    for second, rig in enumerate((RIG, other)):
        for side in ("right", "left"):
            cache.update(side, info(side, rig, stamp=(second, 5)))
    assert cache.rig(1242, 375, 5, 5) == RIG
    assert cache.rig(1242, 375, 1_000_000_005, 1_000_000_005) == other
    assert cache.rig(1242, 375, 77, 77) == other
    for side in ("right", "left"):
        cache.update(side, info(side, other, stamp=(2, 5)))
    assert cache.rig(1242, 375, 5, 5) == other  # two are kept


def test_a_late_camera_info_is_waited_for_but_not_again_and_again():
    cache = RigCache()
    other = StereoRig(707.0, 707.0, 600.0, 180.0, (45.0, 0.0, 0.0), (-330.0, 0.0, 0.0))

    def send(second, rig):
        for side in ("left", "right"):
            cache.update(side, info(side, rig, stamp=(second, 0)))

    timer = threading.Timer(0.1, send, (1, RIG))
    timer.start()
    assert cache.rig(1242, 375, 10**9, 10**9, wait_s=30) == RIG
    timer.join()
    timer = threading.Timer(0.1, send, (2, other))
    timer.start()
    assert cache.rig(1242, 375, 2 * 10**9, 2 * 10**9, wait_s=30) == other
    timer.join()
    assert cache.rig(1242, 375, 99, 99, wait_s=0.05) == other
    begin = time.monotonic()
    assert cache.rig(1242, 375, 100, 100, wait_s=30) == other
    assert time.monotonic() - begin < 15
    # One that comes later than its pair was asked for shows that waiting is worth it again.
    assert cache.rig(1242, 375, 3 * 10**9, 3 * 10**9, wait_s=30) == other
    send(3, RIG)
    timer = threading.Timer(0.1, send, (4, other))
    timer.start()
    assert cache.rig(1242, 375, 4 * 10**9, 4 * 10**9, wait_s=30) == other
    timer.join()


def test_baseline_parameter_stands_in_for_a_lost_translation():
    cache = RigCache(baseline=0.54)
    cache.update("left", info("left"))
    cache.update("right", info("left"))
    assert cache.rig(1242, 375, 0, 0).baseline == pytest.approx(0.54)


def test_cameras_stand_where_their_matrices_say():
    base, left, right = static_transforms(RIG)
    assert (base.parent, base.child) == ("base_link", "camera_0_optical")
    for transform, p in ((left, RIG.p_left), (right, RIG.p_right)):
        assert np.allclose(p @ [*transform.translation, 1.0], 0, atol=1e-9)
    assert left.translation[0] == pytest.approx(-0.0598, abs=1e-3)
    assert right.translation[0] == pytest.approx(0.473, abs=1e-3)


# ------------------------------------------------------------------------------------------------- boxes as messages


def rotate(q, v):
    x, y, z, w = q.x, q.y, q.z, q.w
    u = np.array([x, y, z])
    return v + 2 * np.cross(u, np.cross(u, v) + w * v)


def test_boxes_of_messages_are_the_labels_boxes(kitti_root):
    pytest.importorskip("vision_msgs")
    from std_msgs.msg import Header

    from sicm_ros.conversion.boxes import boxes_of, detection_array

    training = kitti_root / "object" / "training"
    labels = [label for label in read_labels(training / "label_2" / "000107.txt") if label.label != "DontCare"]
    rig = read_object_calib(training / "calib" / "000107.txt")
    header = Header(frame_id="camera")
    header.stamp.sec = 12
    array = detection_array(header, labels, "s-3")
    assert array.header == header and len(array.detections) == len(labels) == 8
    for index, (detection, label) in enumerate(zip(array.detections, labels, strict=True)):
        assert detection.header == header and detection.id == f"s-3-{index}"
        assert len(detection.results) == 1 and detection.results[0].hypothesis.class_id == label.label.lower()
        size, pose = detection.bbox.size, detection.bbox.center
        assert (size.x, size.y, size.z) == (label.length, label.width, label.height)
        centre = np.array([pose.position.x, pose.position.y, pose.position.z])
        corners = np.array(
            [
                centre + rotate(pose.orientation, np.array([x * size.x, y * size.y, z * size.z]) / 2)
                for x in (1, -1)
                for y in (1, -1)
                for z in (1, -1)
            ]
        )
        expected = label.corners()
        # The same eight corners, the top ones above (y down), the front ones where KITTI's front is.
        distance = np.linalg.norm(corners[:, None] - expected[None], axis=-1)
        assert (distance.min(1) < 1e-9).all() and len(set(distance.argmin(1))) == 8
        assert {int(i) for i in distance.argmin(1)[::2]} == {4, 5, 6, 7}  # z = +1: the top face
        assert {int(i) % 4 for i in distance.argmin(1)[:4]} == {0, 1}  # x = +1: the front
        assert {int(i) % 4 for i in distance.argmin(1)[[0, 1, 4, 5]]} == {0, 3}  # y = +1: the left side
        pixels, depth = project(rig.p_left, centre)
        assert depth > 0 and label.bbox[0] - 5 < pixels[0] < label.bbox[2] + 5
    for box, label in zip(boxes_of(array, ("Car", "Misc")), labels, strict=True):
        assert box.label == label.label and np.allclose(box.corners(), label.corners(), atol=1e-9)
        assert box.alpha == pytest.approx(label.alpha, abs=0.05) and box.score == 0.0


BOX = Object3D("Car", (0, 0, 1, 1), 1.5, 1.6, 4.0, 2.0, 1.7, 20.0, 0.3, 0.2, score=0.87)


def test_markers_begin_with_deleting_the_last_ones():
    pytest.importorskip("visualization_msgs")
    from std_msgs.msg import Header
    from visualization_msgs.msg import Marker

    from sicm_ros.conversion.boxes import marker_array

    header = Header(frame_id="camera")
    assert [m.action for m in marker_array(header, []).markers] == [Marker.DELETEALL]
    first, lines, text = marker_array(header, [BOX]).markers
    assert first.action == Marker.DELETEALL and lines.header.frame_id == "camera"
    assert len(lines.points) == 2 * (12 + 2) and max(p.x for p in lines.points) == 2.0
    assert lines.pose.position.y == pytest.approx(1.7 - 0.75) and text.text == "car 0.87  20 m"
    assert (lines.ns, lines.id) != (text.ns, text.id)


def test_label_info_lists_the_classes():
    pytest.importorskip("vision_msgs")
    from std_msgs.msg import Header

    from sicm_ros.conversion.boxes import label_info

    message = label_info(Header(), ("Car", "Pedestrian"), 0.25)
    assert [(c.class_id, c.class_name) for c in message.class_map] == [(0, "car"), (1, "pedestrian")]
    assert message.threshold == 0.25


# ------------------------------------------------------------------------------------------------------------ worker


def test_newest_work_wins_and_the_rest_is_counted():
    begun, proceed, done = threading.Event(), threading.Event(), []

    def handle(items):
        begun.set()
        assert proceed.wait(10)
        done.extend(items)

    worker = Worker(handle, depth=1, on_error=pytest.fail)
    assert worker.submit(0)
    assert begun.wait(10)
    assert worker.submit(1)
    assert not worker.submit(2)
    assert not worker.submit(3)
    proceed.set()
    while len(done) < 2:
        threading.Event().wait(0.01)
    assert done == [0, 3] and worker.dropped.total() == 2
    assert worker.close() and not worker.submit(4)


def test_who_sends_much_takes_nothing_from_the_others():
    begun, proceed, batches = threading.Event(), threading.Event(), []

    def handle(items):
        begun.set()
        assert proceed.wait(10)
        batches.append(items)

    worker = Worker(handle, depth=2, on_error=pytest.fail, batch=2)
    worker.submit("first", "a")
    assert begun.wait(10)
    for i in range(100):
        worker.submit(f"a{i}", "a")
    for key in "bc":
        assert worker.submit(f"{key}0", key)
    proceed.set()
    while sum(map(len, batches)) < 5:
        threading.Event().wait(0.01)
    assert batches == [["first"], ["a98", "b0"], ["c0", "a99"]]
    assert worker.dropped == {"a": 98} and worker.close()


def test_a_deep_queue_drops_nothing():
    done = []
    worker = Worker(done.extend, depth=1000, on_error=pytest.fail)
    assert all(worker.submit(i) for i in range(1000))
    while len(done) < 1000:
        threading.Event().wait(0.01)
    assert done == list(range(1000)) and not worker.dropped and worker.close()


def test_an_exception_is_reported_and_the_thread_goes_on():
    errors, done = [], threading.Event()

    def handle(items):
        if items == ["bad"]:
            raise RuntimeError("boom")
        done.set()

    worker = Worker(handle, depth=2, on_error=lambda error, items: errors.append((str(error), items)))
    worker.submit("bad")
    worker.submit("good")
    assert done.wait(10) and errors == [("boom", ["bad"])] and worker.close()


# ---------------------------------------------------------------------------------------------------------- keyboard


KEYS = """
import sys, threading
from sicm_ros.jobs.keyboard import on_key
pressed = threading.Semaphore(0)
with on_key(" ", pressed.release) as terminal:
    print("terminal" if terminal else "none", flush=True)
    if terminal:
        assert pressed.acquire(timeout=20) and pressed.acquire(timeout=20)
print("done", flush=True)
"""


BACKGROUND = """
import os, subprocess
job = subprocess.Popen({command!r}, preexec_fn=os.setpgrp)
raise SystemExit(job.wait(50))
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
        assert process.communicate(timeout=30)[0] == "done\n" and process.returncode == 0
        # The terminal is left as it was found.
        assert termios.tcgetattr(theirs)[3] == before[3]
        # A job in the background has no say in it: the system would stop one that tried.
        background = subprocess.run(
            [sys.executable, "-c", BACKGROUND.format(command=command)],
            stdin=theirs,
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            preexec_fn=own_terminal,
        )
        assert background.stdout == "none\ndone\n", background.stderr
    finally:
        os.close(ours)
        os.close(theirs)
    outcome = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    assert outcome.stdout == "none\ndone\n" and outcome.returncode == 0


# --------------------------------------------------------------------------------------------------- packet sequence


def arrivals(numbers):
    sequence = PacketSequence()
    return [sequence.add(n)[0].value for n in numbers], sequence.lost


@pytest.mark.parametrize(
    ("numbers", "expected", "lost"),
    [
        ([5, 6, 9], "new new new", 2),
        ([0, 1, 3, 2, 4], "new new new late new", 0),
        ([0, 1, 2, 2, 1, 3], "new new new duplicate duplicate new", 0),
        ([0, 1, 4, 4, 5, 0, 1], "new new new duplicate new restart new", 2),
        ([7, 8, 9, 7, 8], "new new new restart new", 0),
        ([100, 101, 180, 103, 104], "new new new restart new", 78),
        # Played again from the middle: the first one looks repeated, the second one tells.
        ([0, 1, 2, 3, 4, 5, 2, 3, 4], "new new new new new new duplicate restart new", 0),
        ([3, 3], "new duplicate", 0),
        ([9, 2, 3], "new late restart", 0),
        # A decoder that joins a link which reorders.
        ([5, 4, 6], "new late new", 0),
        ([10, 11, 12, 9, 13], "new new new late new", 0),
    ],
)
def test_what_packet_numbers_say(numbers, expected, lost):
    assert arrivals(numbers) == (expected.split(), lost)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 300), st.data())
def test_a_shuffled_lossy_link_is_accounted_to_the_packet(count, data):
    """Packets that swap places within a few, some lost, some twice: each number that came is new or late once."""
    kept = [n for n in range(count) if n == 0 or data.draw(st.integers(0, 9)) > 2]
    order = sorted(kept[1:], key=lambda n: n + data.draw(st.integers(0, 6)))
    sent = [kept[0]]
    for n in order:
        sent += [n] * (2 if data.draw(st.integers(0, 9)) == 0 else 1)
    found, lost = arrivals(sent)
    assert found.count("new") + found.count("late") == len(kept) and "restart" not in found
    assert found.count("duplicate") == len(sent) - len(kept)
    assert lost == max(sent) + 1 - len(kept)


# ------------------------------------------------------------------------------------------------------- diagnostics


def test_status_keeps_the_worst_level_and_its_words():
    diagnostics = pytest.importorskip("sicm_ros.ros.diagnostics")
    status = diagnostics.Status("link")
    status.report("WARN", "2 lost")
    status.report("ERROR", "wrong model")
    status.report("WARN", "ignored")
    status.report("ERROR", "and more")
    status.set(lost=2, rate=9.96)
    message = status.to_message("/car/decoder_node")
    assert message.level == b"\x02" and message.message == "wrong model; and more" and message.name == "link"
    assert {v.key: v.value for v in message.values} == {"lost": "2", "rate": "10.0"}
    assert diagnostics.Status("x").to_message("").message == "ok"


def test_problems_are_logged_at_once_then_rarely_and_all_counted():
    diagnostics = pytest.importorskip("sicm_ros.ros.diagnostics")
    log = []
    problems = diagnostics.Problems(log.append, period_s=3600)
    for i in range(5):
        problems.add("cut", f"packet {i} cut")
    problems.add("other", "something else")
    assert log == ["packet 0 cut", "something else"]
    assert problems.counts == {"cut": 5, "other": 1} and problems.latest["cut"] == "packet 4 cut"
    problems = diagnostics.Problems(log.append, period_s=0)
    problems.add("cut", "a")
    problems.add("cut", "b")
    assert log[2:] == ["a", "b"]


def test_window_counts_since_the_last_look():
    diagnostics = pytest.importorskip("sicm_ros.ros.diagnostics")
    window = diagnostics.Window()
    window.sample({"ms": 1.0})
    window.sample({"ms": 3.0})
    increase, samples, _ = window.tick({"n": 5})
    assert increase == {"n": 5} and samples == {"ms": [1.0, 3.0]}
    increase, samples, _ = window.tick({"n": 7})
    assert increase == {"n": 2} and samples == {}
