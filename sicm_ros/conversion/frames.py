# SPDX-License-Identifier: Apache-2.0
"""The coordinate frames of a played stereo camera. Nothing of ROS is imported."""

from __future__ import annotations

from dataclasses import dataclass

from sicm_ros.geometry import StereoRig

__all__ = ["BASE_FRAME", "CAMERA_FRAME", "StaticTransform", "static_transforms"]

# KITTI's labels, and P2 and P3, are in the rectified frame of camera 0. Images and boxes carry this frame.
CAMERA_FRAME = "camera_0_optical"
BASE_FRAME = "base_link"
# Camera 0 above the road, metres (KITTI's sensor drawing).
CAMERA_HEIGHT = 1.65


@dataclass(frozen=True)
class StaticTransform:
    """Pose of ``child`` in ``parent``: translation in metres, quaternion (x, y, z, w)."""

    parent: str
    child: str
    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]


def static_transforms(rig: StereoRig, camera_frame: str = CAMERA_FRAME) -> list[StaticTransform]:
    """``base_link`` on the road (x forward, z up), the frame in which both P project, and the two cameras themselves.

    The left camera stands where the left P projects everything to: for KITTI 6 cm beside the frame of the boxes.
    """

    def centre(p: tuple[float, float, float]) -> tuple[float, float, float]:
        return (-(p[0] - rig.cx * p[2]) / rig.fx, -(p[1] - rig.cy * p[2]) / rig.fy, -p[2])

    identity = (0.0, 0.0, 0.0, 1.0)
    return [
        StaticTransform(BASE_FRAME, camera_frame, (0.0, 0.0, CAMERA_HEIGHT), (-0.5, 0.5, -0.5, 0.5)),
        StaticTransform(camera_frame, "camera_left_optical", centre(rig.left_translation), identity),
        StaticTransform(camera_frame, "camera_right_optical", centre(rig.right_translation), identity),
    ]
