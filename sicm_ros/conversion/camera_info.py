# SPDX-License-Identifier: Apache-2.0
"""``sensor_msgs/CameraInfo`` and the stereo rig. Messages are only read by their fields, so nothing of ROS is
imported."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.data.source import SIDES, Side
from sicm_ros.geometry import GeometryError, StereoRig

__all__ = ["CameraInfoError", "RigCache", "camera_info_fields", "check_camera_info", "left_rig"]


class CameraInfoError(ValueError):
    """A CameraInfo that does not describe one camera of a rectified pair; the message names the field."""


def check_camera_info(side: Side, message: Any) -> None:
    """Raise CameraInfoError if the message cannot belong to a rectified image as it was taken (no binning, no ROI)."""
    p = np.asarray(message.p, np.float64)
    if p.shape != (12,) or not np.isfinite(p).all():
        raise CameraInfoError(f"{side}/camera_info: p: expected 12 finite numbers, got {list(message.p)}")
    if p[0] <= 0 or p[5] <= 0:
        raise CameraInfoError(
            f"{side}/camera_info: p: expected positive focal lengths, got fx={p[0]:g}, fy={p[5]:g}; "
            "is the camera calibrated?"
        )
    if message.binning_x > 1 or message.binning_y > 1:
        raise CameraInfoError(
            f"{side}/camera_info: binning: expected 0 or 1, got {message.binning_x} and {message.binning_y}"
        )
    roi = message.roi
    if (roi.x_offset, roi.y_offset) != (0, 0) or (roi.width, roi.height) not in (
        (0, 0),
        (message.width, message.height),
    ):
        raise CameraInfoError(
            f"{side}/camera_info: roi: expected the whole image, got {roi.width}x{roi.height} at "
            f"({roi.x_offset}, {roi.y_offset})"
        )


def left_rig(message: Any) -> StereoRig:
    """The rig of the left camera alone, with a baseline of one metre, where only the left view is needed.

    Raises CameraInfoError.
    """
    check_camera_info("left", message)
    p = np.asarray(message.p, np.float64).reshape(3, 4)
    right = p.copy()
    right[0, 3] -= p[0, 0]
    try:
        return StereoRig.from_projections(p, right)
    except GeometryError as error:
        raise CameraInfoError(f"left/camera_info: {error}") from None


@dataclass(frozen=True)
class _Camera:
    """The fields of a checked CameraInfo that are used."""

    p: tuple[float, ...]
    width: int
    height: int


class RigCache:
    """The CameraInfos of both views and the rigs that they make.

    A pair uses the messages that carry its own stamps, because a recording may change its calibration from one frame to
    the next (KITTI's object benchmark does), and else the latest ones, because many drivers send theirs once or with
    stamps of their own. ``baseline`` (metres, 0 to take the messages' own) replaces the translation of the right view
    where a driver loses it. ``depth`` limits how many messages are kept. Safe to call from any thread.
    """

    def __init__(self, baseline: float = 0.0, depth: int | None = 100) -> None:
        self.baseline, self.depth = baseline, depth
        self.errors: dict[Side, str] = {}
        self._by_stamp: dict[Side, OrderedDict[int, _Camera]] = {"left": OrderedDict(), "right": OrderedDict()}
        self._latest: dict[Side, _Camera] = {}
        self._arrived = threading.Condition()
        # Whether CameraInfos carry the stamps of images, as far as was seen, and the stamps that were looked for.
        self._stamped = True
        self._wanted: dict[Side, deque[int]] = {side: deque(maxlen=20) for side in SIDES}
        self._checked: dict[
            Side, tuple[tuple[float, ...], _Camera]
        ] = {}  # the last message's fields, and what they say
        self._made: tuple[_Camera, _Camera, StereoRig] | None = None

    def update(self, side: Side, message: Any) -> None:
        """Take a message of one side. Raises CameraInfoError, and keeps the previous ones, if it is invalid."""
        try:
            camera = self._camera(side, message)
        except CameraInfoError as error:
            self.errors[side] = str(error)
            raise
        stamp_ns = nanoseconds(message.header.stamp)
        with self._arrived:
            self.errors.pop(side, None)
            self._latest[side] = camera
            self._by_stamp[side][stamp_ns] = camera
            self._stamped = self._stamped or stamp_ns in self._wanted[side]
            if self.depth is not None and len(self._by_stamp[side]) > self.depth:
                self._by_stamp[side].popitem(last=False)
            self._arrived.notify_all()

    def _camera(self, side: Side, message: Any) -> _Camera:
        """What a message says. A camera repeats itself with every image: what is known is not checked again."""
        roi = message.roi
        crop = (roi.x_offset, roi.y_offset, roi.width, roi.height)
        fields = (*message.p, message.width, message.height, message.binning_x, message.binning_y, *crop)
        known = self._checked.get(side)
        if known is None or known[0] != fields:
            check_camera_info(side, message)
            camera = _Camera(tuple(float(v) for v in message.p), message.width, message.height)
            self._checked[side] = known = (fields, camera)
        return known[1]

    def missing(self) -> list[Side]:
        """The sides of which no usable message has come yet."""
        return [side for side in SIDES if side not in self._latest]

    def rig(
        self, sizes: Mapping[Side, tuple[int, int]], stamps_ns: Mapping[Side, int], wait_s: float = 0.0
    ) -> StereoRig:
        """The rig of a pair of images of these sizes (width, height) and stamps; one object as long as it is the same.

        Raises CameraInfoError, naming what is wrong. Whether both images have one size is not for their calibration to
        tell.

        Images and CameraInfos come on topics of their own, so a message may arrive after its image. It is waited for,
        up to ``wait_s`` seconds; if it does not come, no more waiting is done until one with an image's stamp turns up.
        """

        def exact() -> bool:
            return all(stamps_ns[side] in self._by_stamp[side] for side in SIDES)

        with self._arrived:
            for side in SIDES:
                self._wanted[side].append(stamps_ns[side])
            if exact():
                self._stamped = True
            elif wait_s > 0 and (self._stamped or self.missing()):
                self._stamped = self._arrived.wait_for(exact, wait_s)
            missing = self.missing()
            if missing:
                reasons = [self.errors.get(side, f"{side}/camera_info: no message yet") for side in missing]
                raise CameraInfoError("; ".join(reasons))
            left, right = (self._by_stamp[side].get(stamps_ns[side], self._latest[side]) for side in SIDES)
        cameras: tuple[tuple[Side, _Camera], ...] = (("left", left), ("right", right))
        for side, camera in cameras:
            # Some drivers and bags leave the size at 0.
            if (camera.width, camera.height) not in (sizes[side], (0, 0)):
                width, height = sizes[side]
                raise CameraInfoError(
                    f"{side}/camera_info: width, height: expected {width}x{height}, the image's, "
                    f"got {camera.width}x{camera.height}"
                )
        made = self._made
        if made is None or made[:2] != (left, right):  # the same objects, for a camera that does not change
            self._made = made = (left, right, self._make(left, right))
        return made[2]

    def _make(self, left: _Camera, right: _Camera) -> StereoRig:
        p_left, p_right = (np.array(camera.p).reshape(3, 4) for camera in (left, right))
        if self.baseline > 0:
            p_right[:, 3] = p_left[:, 3] - np.array([p_left[0, 0] * self.baseline, 0.0, 0.0])
        try:
            return StereoRig.from_projections(p_left, p_right)
        except GeometryError as error:
            raise CameraInfoError(f"camera_info: {error}") from None


def camera_info_fields(rig: StereoRig, side: Side, width: int, height: int) -> dict[str, Any]:
    """The fields of a CameraInfo, without its header, of one rectified view of ``rig``; sizes in pixels."""
    k = [rig.fx, 0.0, rig.cx, 0.0, rig.fy, rig.cy, 0.0, 0.0, 1.0]
    p = rig.p_left if side == "left" else rig.p_right
    return {
        "height": height,
        "width": width,
        "distortion_model": "plumb_bob",
        "d": [0.0] * 5,
        "k": k,
        "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "p": [float(v) for v in p.ravel()],
    }
