# SPDX-License-Identifier: Apache-2.0
"""Boxes as ROS messages: ``vision_msgs/Detection3DArray`` and ``visualization_msgs/MarkerArray``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from std_msgs.msg import ColorRGBA, Header
from vision_msgs.msg import (
    BoundingBox3D,
    Detection3D,
    Detection3DArray,
    LabelInfo,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    VisionClass,
)
from visualization_msgs.msg import Marker, MarkerArray

from sicm_ros.geometry import Object3D, box_orientation_quaternion, rotation_y_to_alpha, wrap_angle

__all__ = ["box_pose", "boxes_of", "class_id", "detection_array", "label_info", "marker_array"]

# Cars and cyclists as in RViz's own display of Detection3DArray; whatever is not listed is grey in both.
_COLOURS = {
    "car": ColorRGBA(r=1.0, g=0.65, b=0.0, a=1.0),
    "cyclist": ColorRGBA(r=1.0, g=1.0, b=0.0, a=1.0),
    "pedestrian": ColorRGBA(r=0.1, g=0.45, b=1.0, a=1.0),
    "van": ColorRGBA(r=0.6, g=0.9, b=0.3, a=1.0),
    "truck": ColorRGBA(r=0.9, g=0.3, b=0.3, a=1.0),
}
_GREY = ColorRGBA(r=0.7, g=0.7, b=0.7, a=1.0)
# Of markers, in metres: the width of lines, the height of text.
_LINE_WIDTH, _TEXT_HEIGHT = Vector3(x=0.05, y=0.0, z=0.0), Vector3(x=0.0, y=0.0, z=0.6)

# The twelve edges, and a triangle on the front face that shows the heading; in units of half the size, along the box's
# own axes (x forward, y left, z up).
_CORNERS = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
_LINES = [
    (a, b)
    for i, a in enumerate(_CORNERS)
    for b in _CORNERS[i + 1 :]
    if sum(p != q for p, q in zip(a, b, strict=True)) == 1
]
_LINES += [((1, -1, -1), (1, 0, 1)), ((1, 1, -1), (1, 0, 1))]
_VERTICES = [*_CORNERS, (1, 0, 1)]
_LINE_ENDS = [_VERTICES.index(vertex) for line in _LINES for vertex in line]


def class_id(label: str) -> str:
    """A class name as it is published: KITTI's, in lower case (``car``, ``pedestrian``, ``cyclist``)."""
    return label.lower()


def box_pose(box: Object3D) -> Pose:
    """The middle of the box (KITTI's location is the middle of its bottom face) and the orientation of its own axes."""
    x, y, z, w = box_orientation_quaternion(box.rotation_y)
    # y points down, so the middle lies above the bottom by minus half the height.
    return Pose(
        position=Point(x=float(box.x), y=float(box.y - box.height / 2), z=float(box.z)),
        orientation=Quaternion(x=x, y=y, z=z, w=w),
    )


def detection_array(header: Header, boxes: Sequence[Object3D], prefix: str) -> Detection3DArray:
    """Boxes in the frame of ``header``, metres; each has exactly one hypothesis.

    An id is ``prefix`` and the index. Let ``prefix`` be unique over time: nothing is tracked, and the same id in two
    messages would mean the same object.
    """
    detections = []
    for index, box in enumerate(boxes):
        pose = box_pose(box)
        hypothesis = ObjectHypothesisWithPose(
            hypothesis=ObjectHypothesis(class_id=class_id(box.label), score=float(box.score or 0.0))
        )
        hypothesis.pose.pose = pose
        size = Vector3(x=float(box.length), y=float(box.width), z=float(box.height))
        detections.append(
            Detection3D(
                header=header, results=[hypothesis], bbox=BoundingBox3D(center=pose, size=size), id=f"{prefix}-{index}"
            )
        )
    return Detection3DArray(header=header, detections=detections)


def boxes_of(message: Detection3DArray, class_names: Sequence[str]) -> list[Object3D]:
    """The boxes of an array as KITTI's objects: the inverse of ``detection_array``.

    ``class_names`` restores the spelling of class ids. A message has no 2D boxes; they are zero.
    """
    names = {class_id(name): name for name in class_names}
    boxes = []
    for detection in message.detections:
        centre, q, size = detection.bbox.center.position, detection.bbox.center.orientation, detection.bbox.size
        # Ours always have a hypothesis; those of another detector may not.
        hypothesis = detection.results[0].hypothesis if detection.results else ObjectHypothesis()
        # box_orientation_quaternion has w = r cos(ry / 2) and y = r sin(ry / 2).
        rotation_y = float(wrap_angle(2 * math.atan2(q.y, q.w)))
        boxes.append(
            Object3D(
                names.get(hypothesis.class_id, hypothesis.class_id),
                (0.0, 0.0, 0.0, 0.0),
                size.z,
                size.y,
                size.x,
                centre.x,
                centre.y + size.z / 2,
                centre.z,
                rotation_y,
                float(rotation_y_to_alpha(rotation_y, centre.x, centre.z)),
                score=hypothesis.score,
            )
        )
    return boxes


def marker_array(header: Header, boxes: Sequence[Object3D]) -> MarkerArray:
    """The same boxes as lines and text, after a marker that deletes those of the frame before."""
    markers = [Marker(header=header, action=Marker.DELETEALL)]
    for index, box in enumerate(boxes):
        pose = box_pose(box)
        colour = _COLOURS.get(class_id(box.label), _GREY)
        half = (box.length / 2, box.width / 2, box.height / 2)
        vertices = [Point(x=x * half[0], y=y * half[1], z=z * half[2]) for x, y, z in _VERTICES]
        points = [vertices[i] for i in _LINE_ENDS]
        markers.append(
            Marker(
                header=header,
                ns="boxes",
                id=index,
                type=Marker.LINE_LIST,
                action=Marker.ADD,
                pose=pose,
                scale=_LINE_WIDTH,
                color=colour,
                points=points,
            )
        )
        above = Pose(position=Point(x=pose.position.x, y=pose.position.y - box.height / 2 - 0.4, z=pose.position.z))
        text = f"{class_id(box.label)} {box.score or 0.0:.2f}  {box.z:.0f} m"
        markers.append(
            Marker(
                header=header,
                ns="labels",
                id=index,
                type=Marker.TEXT_VIEW_FACING,
                action=Marker.ADD,
                pose=above,
                scale=_TEXT_HEIGHT,
                color=colour,
                text=text,
            )
        )
    return MarkerArray(markers=markers)


def label_info(header: Header, class_names: Sequence[str], threshold: float) -> LabelInfo:
    """The latched description of the classes that can occur, in the order of the model's outputs."""
    classes = [VisionClass(class_id=i, class_name=class_id(name)) for i, name in enumerate(class_names)]
    return LabelInfo(header=header, class_map=classes, threshold=float(threshold))
