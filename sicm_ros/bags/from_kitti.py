# SPDX-License-Identifier: Apache-2.0
"""KITTI folders to bags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sicm_ros.bags.topics import TOPIC_SCHEMES
from sicm_ros.bags.types import BagError, Storage
from sicm_ros.bags.writer import BagWriter
from sicm_ros.conversion.camera_info import camera_info_fields
from sicm_ros.conversion.frames import CAMERA_FRAME
from sicm_ros.conversion.images import rgb_to_message_fields
from sicm_ros.data.kitti import KittiError, open_source
from sicm_ros.data.source import Side

__all__ = ["from_kitti"]


def from_kitti(
    source: str | Path,
    out: str | Path,
    storage: Storage = "sqlite3",
    frames: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    topics: str = "sicm",
) -> int:
    """Write a KITTI object folder, raw drive or odometry sequence as a rosbag2, ready for any ROS 2 player.

    ``topics`` is one of ``TOPIC_SCHEMES``: by default those of the encoder node, at the root. Stamps are the source's
    own (the object benchmark's frames get 10 Hz). ``frames`` limits their number; ``progress`` is called with frames
    done and in all. Returns the number of pairs. Raises KittiError or BagError.
    """
    if topics not in TOPIC_SCHEMES:
        raise BagError(f"topics: expected one of {', '.join(TOPIC_SCHEMES)}, got {topics!r}")
    data = open_source(source)
    total = len(data) if frames is None else min(frames, len(data))
    if not total:
        raise KittiError(f"{source}: expected at least one stereo pair, there is none")
    with BagWriter(out, storage) as bag:
        types = bag.store.types
        for index in range(total):
            frame = data[index]
            if not index:
                bag.write_static_transforms(frame.rig, frame.stamp_ns)
            views: tuple[tuple[Side, np.ndarray, int], ...] = (
                ("left", frame.left, frame.stamp_ns),
                ("right", frame.right, frame.right_stamp_ns),
            )
            for (side, image, stamp_ns), topic in zip(views, TOPIC_SCHEMES[topics], strict=True):
                header = bag.header(stamp_ns, CAMERA_FRAME)
                height, width, _ = image.shape
                info = camera_info_fields(frame.rig, side, width, height)
                roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
                info.update({name: np.array(info[name]) for name in ("d", "k", "r", "p")})
                bag.write(
                    f"{topic.rsplit('/', 1)[0]}/camera_info",
                    "sensor_msgs/msg/CameraInfo",
                    stamp_ns,
                    types["sensor_msgs/msg/CameraInfo"](header=header, binning_x=0, binning_y=0, roi=roi, **info),
                )
                fields = rgb_to_message_fields(image)
                fields["data"] = np.frombuffer(fields["data"], np.uint8)
                bag.write(
                    topic,
                    "sensor_msgs/msg/Image",
                    stamp_ns,
                    types["sensor_msgs/msg/Image"](header=header, **fields),
                )
            if progress is not None:
                progress(index + 1, total)
    return total
