# SPDX-License-Identifier: Apache-2.0
"""Boxes as messages, and back."""

import numpy as np
import pytest

from sicm_ros.data.kitti import read_labels, read_object_calib
from sicm_ros.geometry import Object3D, project


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
