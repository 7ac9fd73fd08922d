# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are the left and the right images."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sicm_ros.bags.types import BagError

__all__ = ["TOPIC_SCHEMES", "find_stereo_topics"]

# Image topics of the left and the right view as converters of KITTI name them; a camera_info is beside each.
TOPIC_SCHEMES = {
    "sicm": ("/left/image_rect", "/right/image_rect"),
    "kitti2bag": ("/kitti/camera_color_left/image", "/kitti/camera_color_right/image"),
    "kitti_to_ros2bag": ("/kitti/camera/color/left/image_raw", "/kitti/camera/color/right/image_raw"),
    "kitti2rosbag2": ("/camera1/left/image_raw", "/camera2/right/image_raw"),
    "ros2_dataset_bridge": ("/kitti/left_camera/image", "/kitti/right_camera/image"),
}

# Where several stereo pairs are in a bag: rectified before raw, colour before grey, KITTI's cameras 2 and 3 first.
_PREFERENCES = ("rect", "color", "colour", "rgb", "image_02", "image_2", "cam2", "camera_2")


def find_stereo_topics(topics: Sequence[str]) -> tuple[str, str]:
    """The left and the right topic among image topics, by their names. Raises BagError if that is not clear."""

    def preference(pair: tuple[str, str]) -> tuple[int, ...]:
        return tuple(-(word in pair[0]) for word in _PREFERENCES)

    pairs = [(left, right) for left in topics for right in topics if _is_pair(left, right)]
    pairs.sort(key=preference)
    if not pairs or (len(pairs) > 1 and preference(pairs[0]) == preference(pairs[1])):
        found = ", ".join(sorted(topics)) or "none"
        what = "more than one stereo pair" if pairs else "no stereo pair"
        raise BagError(
            f"{what} among the image topics ({found}): name them (options --left-topic and --right-topic, or the "
            "player's parameters left_topic and right_topic)"
        )
    return pairs[0]


def _is_pair(left: str, right: str) -> bool:
    """Whether two names differ in their side only: left/right, or neighbouring camera numbers."""

    def neutral(name: str) -> str:
        return re.sub(r"\d+", "#", re.sub("left|right", "*", name))

    if left == right or neutral(left) != neutral(right):
        return False
    if "left" in left or "right" in left:
        return "left" in left and "right" not in left and "right" in right and "left" not in right
    numbers = zip(re.findall(r"\d+", left), re.findall(r"\d+", right), strict=True)
    differing = [(int(a), int(b)) for a, b in numbers if a != b]
    return bool(differing) and all(b == a + 1 for a, b in differing)
