# SPDX-License-Identifier: Apache-2.0
"""The viewer: what a live node writes for Rerun is read back, and the option of the commands that start it."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from needs import NODES, missing
from ros_graph import REPOSITORY, Graph, NodeProcess

from sicm_ros.bags.writer import BagWriter
from sicm_ros.cli.app import main
from sicm_ros.geometry import Object3D, project
from sicm_ros.pictures import class_colour
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE

MISSING = missing(*NODES, "rerun")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
if not MISSING:
    from rclpy.serialization import serialize_message
    from rclpy.time import Time
    from rerun import dataframe
    from sensor_msgs.msg import CameraInfo
    from sicm_ros.msg import DecodeStats, StereoBitstream
    from std_msgs.msg import Header
    from vision_msgs.msg import Detection3DArray

    from sicm_ros.conversion.boxes import detection_array
    from sicm_ros.conversion.camera_info import camera_info_fields
    from sicm_ros.ros import rerun_view

NAMESPACE = "/looked_at"
SECOND = 10**9
CAR = Object3D("Car", (0, 0, 0, 0), 1.5, 1.7, 4.1, -3.0, 1.7, 12.0, -1.4, -1.2, score=0.8)
WALKER = replace(CAR, label="Pedestrian", height=1.8, width=0.6, length=0.8, x=2.0, z=8.0, score=0.55)
BEHIND = replace(CAR, z=-12.0)


class Recording:
    """A recording as Rerun reads it: the rows of an entity, by their stamps in nanoseconds."""

    def __init__(self, path):
        self._recording = dataframe.load_recording(path)
        self.entities = {c.entity_path for c in self._recording.schema().component_columns()}

    def rows(self, entity, component):
        table = self._recording.view(index="stamp", contents=entity).select().read_all()
        values = table.column(f"{entity}:{component}").to_pylist()
        stamps = table.column("stamp").cast("int64").to_pylist()
        return {stamp: np.array(value) for stamp, value in zip(stamps, values, strict=True) if value is not None}


def header(stamp_ns):
    return Header(stamp=Time(nanoseconds=stamp_ns).to_msg(), frame_id="camera_0_optical")


def packet(stamp_ns, size):
    times = {"preprocess_ms": 1.0, "backbone_ms": 20.0, "smfc_ms": 3.0, "entropy_ms": 0.5}
    return StereoBitstream(header=header(stamp_ns), data=bytes(size), **times)


def stats(stamp_ns):
    # Whether an end to end time can be, the decoder knows.
    end_to_end_ms = 99.5 if stamp_ns == SECOND else math.nan
    return DecodeStats(header=header(stamp_ns), total_ms=40.25, end_to_end_ms=end_to_end_ms)


@pytest.fixture
def graph():
    graph = Graph("test_viewer", NAMESPACE)
    graph.listen_to_diagnostics()
    yield graph
    graph.close()


@pytest.mark.slow
def test_the_recording_holds_what_was_on_the_topics(graph, tmp_path):
    width, height = KITTI_SIZE
    path = tmp_path / "live.rrd"
    image = np.full((height, width, 3), (200, 80, 20), np.uint8)
    parameters = {
        "view": path,
        "image_delay": 60.0,
        **dict.fromkeys(("image_reliability", "bitstream_reliability"), "reliable"),
    }
    node = NodeProcess("viewer", parameters, NAMESPACE, tmp_path)
    try:
        graph.open_camera()
        graph.publisher(StereoBitstream, "stereo_bitstream")
        graph.publisher(Detection3DArray, "detections")
        graph.publisher(DecodeStats, "decode_stats")
        graph.wait_for_subscribers(
            "left/image_rect", "left/camera_info", *("stereo_bitstream", "detections", "decode_stats")
        )

        def images_shown(count):
            graph.wait_for_status(
                "viewer_node: viewer",
                lambda level, message, values: values["images"] == str(count),
                start=len(graph.received["/diagnostics"]),
            )

        def answer(stamp_ns, boxes, size):
            array = detection_array(header(stamp_ns), boxes, "")
            if boxes:
                array.detections[-1].results = []  # as of another detector, which names no class
            graph.publishers["stereo_bitstream"].publish(packet(stamp_ns, size))
            graph.publishers["detections"].publish(array)
            graph.publishers["decode_stats"].publish(stats(stamp_ns))

        graph.send_pair(1 * SECOND, image, image, KITTI_RIG)
        images_shown(0)  # it waits for its boxes
        answer(1 * SECOND, [CAR, WALKER, BEHIND], 3800)
        images_shown(1)
        graph.send_pair(2 * SECOND + 5, image, image, KITTI_RIG)
        answer(2 * SECOND + 5, [], 4100)
        images_shown(2)
        graph.send_pair(3 * SECOND, image, image, KITTI_RIG)
        graph.send_pair(4 * SECOND, image, image, KITTI_RIG, encoding="of no kind")
        graph.wait_for_status("viewer_node: viewer", lambda level, message, values: "not shown" in message)
        assert node.stop() == 0 and "Traceback" not in node.output, node.output
    finally:
        node.stop()

    recording = Recording(path)
    first, second = 1 * SECOND, 2 * SECOND + 5
    centres = recording.rows("/detections", "PoseTranslation3D")
    assert list(centres) == [first, second] and len(centres[second]) == 0
    boxes = (CAR, WALKER, BEHIND)
    np.testing.assert_allclose(centres[first], [(b.x, b.y - b.height / 2, b.z) for b in boxes], rtol=1e-5)
    sizes = 2 * recording.rows("/detections", "HalfSize3D")[first]
    np.testing.assert_allclose(sizes, [(b.length, b.width, b.height) for b in boxes], rtol=1e-5)
    # The eight corners by the quaternion are those of the box, in whatever order.
    x, y, z, w = recording.rows("/detections", "PoseRotationQuat")[first][0]
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
    corners = centres[first][0] + signs * sizes[0] / 2 @ turn.T
    distances = np.linalg.norm(corners[:, None] - CAR.corners()[None], axis=2)
    assert distances.min(0).max() < 1e-4 and distances.min(1).max() < 1e-4
    tags = ["Car 0.80 · 12.4 m", "Pedestrian 0.55 · 8.2 m", " 0.00 · 12.4 m"]
    assert recording.rows("/detections", "Text")[first].tolist() == tags
    colours = [int.from_bytes((*colour, 255), "big") for colour in map(class_colour, ("Car", "Pedestrian", ""))]
    assert recording.rows("/detections", "Color")[first].tolist() == colours

    # In the image, the tags of what is in it; the middle of the box lies where Rerun's camera puts it.
    assert recording.rows("/left/labels", "Text")[first].tolist() == tags[:2]
    assert ((recording.rows("/left/labels", "Position2D")[first] >= 0).all(0)).all()
    assert recording.rows("/left", "Resolution")[first].tolist() == [[width, height]]
    camera = recording.rows("/left", "PinholeProjection")[first].reshape(3, 3).T
    middle = centres[first][0]
    seen = camera @ (middle - recording.rows("/left", "Translation3D")[first][0])
    np.testing.assert_allclose(seen[:2] / seen[2] - 0.5, project(KITTI_RIG.p_left, middle)[0], atol=0.01)
    blobs = recording.rows("/left/image_rect", "Blob")
    assert list(blobs) == [first, second, 3 * SECOND], "the last image, too, though its boxes never came"
    pixels = cv2.imdecode(np.asarray(blobs[first][0], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert pixels.shape == image.shape and np.abs(pixels.astype(int) - image).max() < 8

    for entity, values in {
        "/stereo_bitstream/bytes": {first: 3800, second: 4100},
        "/latency/encoder": {first: 24.5, second: 24.5},
        "/latency/decoder": {first: 40.25, second: 40.25},
        "/latency/end_to_end": {first: 99.5},
    }.items():
        curve = recording.rows(entity, "Scalar")
        assert {stamp: float(value[0]) for stamp, value in curve.items()} == values


def sicm(*arguments, **environment):
    """``sicm`` as a process: (status, standard output, standard error)."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-m", "sicm_ros.cli.app", *map(str, arguments)]
    result = subprocess.run(command, env=variables, cwd=REPOSITORY, capture_output=True, text=True)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.slow
def test_a_bag_of_packets_is_played_with_the_boxes_in_it(tmp_path):
    """A vehicle's packets and boxes, recorded under its namespace, without images and without a decoder."""
    bag, path = tmp_path / "bag", tmp_path / "bag.rrd"
    with BagWriter(bag) as writer:
        for index in range(3):
            stamp_ns = index * SECOND // 5
            info = CameraInfo(header=header(stamp_ns), **camera_info_fields(KITTI_RIG, "left", *KITTI_SIZE))
            boxes = detection_array(header(stamp_ns), [CAR, WALKER][: index + 1], "")
            for name, kind, message in (
                ("left/camera_info", "sensor_msgs/msg/CameraInfo", info),
                ("stereo_bitstream", "sicm_ros/msg/StereoBitstream", packet(stamp_ns, 1000 + index)),
                ("detections", "vision_msgs/msg/Detection3DArray", boxes),
            ):
                writer.write(f"/car7/{name}", kind, stamp_ns, serialize_message(message))
    status, out, err = sicm("bag", "play", bag, "--view", path)
    assert status == 0 and "Traceback" not in out + err, out + err
    recording = Recording(path)
    stamps = [index * SECOND // 5 for index in range(3)]
    assert [len(v) for v in recording.rows("/detections", "PoseTranslation3D").values()] == [1, 2, 2]
    assert {s: v[0] for s, v in recording.rows("/stereo_bitstream/bytes", "Scalar").items()} == {
        stamp: 1000 + index for index, stamp in enumerate(stamps)
    }
    assert list(recording.rows("/left", "Resolution")) == stamps and "/left/image_rect" not in recording.entities


@pytest.mark.parametrize("command", [("demo", "--out", "out"), ("bag", "play", "bag")], ids=["demo", "bag play"])
def test_a_view_that_cannot_be_is_one_line_before_anything_starts(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "metadata.yaml").touch()
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    def fails(view):
        with pytest.raises(SystemExit) as end:
            main([*command, "--view", view])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "expected window, or a file name that ends in .rrd, got 'boxes.mp4'" in fails("boxes.mp4")
    assert "nowhere/x.rrd: expected a file to write in an existing folder" in fails("nowhere/x.rrd")
    if sys.platform == "linux":
        assert "no display (neither DISPLAY nor WAYLAND_DISPLAY is set): name a file" in fails("window")
    monkeypatch.setattr(rerun_view, "RERUN", "rerun-sdk==0.1.0")  # any other release is as good as none
    assert "pip install rerun-sdk==0.1.0 pyarrow==" in fails("window")
    assert not (tmp_path / "out").exists()


def test_the_releases_are_those_of_the_requirements():
    lines = (REPOSITORY / "requirements" / "viewer.txt").read_text().splitlines()
    assert [line for line in lines if line[:1].isalpha()] == [rerun_view.RERUN, rerun_view.PYARROW]
