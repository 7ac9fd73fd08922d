# SPDX-License-Identifier: Apache-2.0
"""``sensor_msgs/CameraInfo`` and the stereo rig. Messages are only read by their fields, so nothing of ROS is
imported."""

from __future__ import annotations

from typing import Any

import numpy as np

from sicm_ros.geometry import GeometryError, StereoRig
from sicm_ros.nodes.stereo_sync import Side

__all__ = ["CameraInfoError", "RigCache", "camera_info_fields", "check_camera_info"]


class CameraInfoError(ValueError):
    """A CameraInfo that does not describe one camera of a rectified pair; the message names the field."""


def check_camera_info(side: Side, message: Any) -> None:
    """Raise CameraInfoError if the message cannot belong to a rectified image as it was taken (no binning, no ROI)."""
    p = np.asarray(message.p, np.float64)
    if p.shape != (12,) or not np.isfinite(p).all():
        raise CameraInfoError(f"{side}/camera_info: p: expected 12 finite numbers, got {list(message.p)}")
    if p[0] <= 0 or p[5] <= 0:
        raise CameraInfoError(f"{side}/camera_info: p: expected positive focal lengths, got fx={p[0]:g}, fy={p[5]:g}; "
                              "is the camera calibrated?")
    if message.binning_x > 1 or message.binning_y > 1:
        raise CameraInfoError(f"{side}/camera_info: binning: expected 0 or 1, got {message.binning_x} and "
                              f"{message.binning_y}")
    roi = message.roi
    if (roi.x_offset, roi.y_offset) != (0, 0) or (roi.width, roi.height) not in ((0, 0), (message.width,
    message.height)):
        raise CameraInfoError(f"{side}/camera_info: roi: expected the whole image, got {roi.width}x{roi.height} at "
                              f"({roi.x_offset}, {roi.y_offset})")


class RigCache:
    """The latest CameraInfo of both views and the rig that they make.

    Calibration does not change from frame to frame, so it needs no synchronising with the images: a pair uses the
    latest. ``baseline`` (metres, 0 to take the messages' own) replaces the translation of the right view where a
    driver loses it.
    """

    def __init__(self, baseline: float = 0.0) -> None:
        self.baseline = baseline
        self.errors: dict[Side, str] = {}
        self._infos: dict[Side, Any] = {}
        self._rig: StereoRig | None = None

    def update(self, side: Side, message: Any) -> None:
        """Take a message of one side. Raises CameraInfoError, and keeps the previous one, if it is no good."""
        try:
            check_camera_info(side, message)
        except CameraInfoError as error:
            self.errors[side] = str(error)
            raise
        self.errors.pop(side, None)
        old = self._infos.get(side)
        self._infos[side] = message
        if old is None or list(old.p) != list(message.p):
            self._rig = None

    def missing(self) -> list[Side]:
        """The sides of which no usable message has come yet."""
        sides: tuple[Side, ...] = ("left", "right")
        return [side for side in sides if side not in self._infos]

    def rig(self, width: int, height: int) -> StereoRig:
        """The rig of images of this size. Raises CameraInfoError or GeometryError, naming what is wrong."""
        missing = self.missing()
        if missing:
            reasons = [self.errors.get(side, f"{side}/camera_info: no message yet") for side in missing]
            raise CameraInfoError("; ".join(reasons))
        for side, info in self._infos.items():
            # Some drivers and bags leave the size at 0.
            if (info.width, info.height) not in ((width, height), (0, 0)):
                raise CameraInfoError(f"{side}/camera_info: width, height: expected {width}x{height}, the image's, "
                                      f"got {info.width}x{info.height}")
        if self._rig is None:
            p_left, p_right = (np.array(self._infos[side].p, np.float64).reshape(3, 4) for side in ("left", "right"))
            if self.baseline > 0:
                p_right[:, 3] = p_left[:, 3] - np.array([p_left[0, 0] * self.baseline, 0.0, 0.0])
            try:
                self._rig = StereoRig.from_projections(p_left, p_right)
            except GeometryError as error:
                raise CameraInfoError(f"camera_info: {error}") from None
        return self._rig


def camera_info_fields(rig: StereoRig, side: Side, width: int, height: int) -> dict[str, Any]:
    """The fields of a CameraInfo, but for its header, of one rectified view of ``rig``."""
    k = [rig.fx, 0.0, rig.cx, 0.0, rig.fy, rig.cy, 0.0, 0.0, 1.0]
    p = rig.p_left if side == "left" else rig.p_right
    return {"height": height, "width": width, "distortion_model": "plumb_bob", "d": [0.0] * 5, "k": k,
            "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], "p": [float(v) for v in p.ravel()]}
