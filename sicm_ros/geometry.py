# SPDX-License-Identifier: Apache-2.0
"""A rectified stereo rig, how crop and resize change it, and 3D boxes in it.

Conventions, everywhere in this package:

* Pixel coordinates ``(u, v)`` have the centre of the top-left pixel at ``(0, 0)``, so an image that is scaled by ``s``
  maps ``u`` to ``(u + 0.5) * s - 0.5``.
* 3D points are in the frame in which the received left projection matrix projects exactly: optical axes (x right,
  y down, z forward), metres. For KITTI that is the rectified frame of camera 0, in which labels are written too.
* A box is KITTI's: ``location`` is the middle of its bottom face, ``rotation_y`` turns about +y, and at
  ``rotation_y = 0`` the object's front looks along +x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

__all__ = [
    "GeometryError",
    "InputGeometry",
    "InputTransform",
    "Object3D",
    "StereoRig",
    "alpha_to_rotation_y",
    "box_corners",
    "box_orientation_quaternion",
    "input_transform",
    "project",
    "rotation_y_to_alpha",
    "wrap_angle",
]

# Two projection matrices belong to one rectified rig if their intrinsics agree to this many pixels.
INTRINSICS_TOLERANCE = 0.01


class GeometryError(ValueError):
    """A calibration that is not one of a rectified stereo rig; the message names the field and the expected value."""


@dataclass(frozen=True)
class StereoRig:
    """Intrinsics (pixels) of both rectified views, and the fourth columns of both projection matrices.

    ``left_translation`` and ``right_translation`` are ``P[:, 3]``: two values in pixel metres and one in metres.
    KITTI's left P has a non-zero one, so the baseline is the difference of both, not ``-P_right[0, 3] / fx``.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    left_translation: tuple[float, float, float]
    right_translation: tuple[float, float, float]

    def __post_init__(self) -> None:
        values = (self.fx, self.fy, self.cx, self.cy, *self.left_translation, *self.right_translation)
        if not all(math.isfinite(v) for v in values):
            raise GeometryError(f"rig: every value must be finite, got {values}")
        if self.fx <= 0 or self.fy <= 0:
            raise GeometryError(f"rig: focal lengths must be positive, got fx={self.fx}, fy={self.fy}")
        if self.baseline <= 0:
            raise GeometryError(
                f"rig: baseline (P_left[0,3] - P_right[0,3]) / fx must be positive, got {self.baseline:.4f} m; "
                "are the views swapped, or does the right projection lack its translation?"
            )

    @classmethod
    def from_projections(cls, p_left: np.ndarray, p_right: np.ndarray) -> StereoRig:
        """The rig of two (3, 4) projection matrices. Raises GeometryError if they are not of one rectified rig."""
        p_left, p_right = np.asarray(p_left, np.float64), np.asarray(p_right, np.float64)
        for side, p in (("left", p_left), ("right", p_right)):
            if p.shape != (3, 4):
                raise GeometryError(f"P_{side}: expected a 3x4 matrix, got shape {p.shape}")
            if abs(p[0, 1]) > INTRINSICS_TOLERANCE or abs(p[1, 0]) > INTRINSICS_TOLERANCE or abs(p[2, 2] - 1) > 1e-6:
                raise GeometryError(
                    f"P_{side}: expected zero skew and P[2,2] = 1 (a rectified camera), got {p.tolist()}"
                )
        difference = np.abs(p_left[:, :3] - p_right[:, :3]).max()
        if difference > INTRINSICS_TOLERANCE:
            raise GeometryError(
                f"P_left and P_right: expected equal intrinsics (a rectified pair), "
                f"they differ by {difference:.3f} pixels"
            )
        left, right = p_left[:, 3].tolist(), p_right[:, 3].tolist()
        return cls(
            float(p_left[0, 0]),
            float(p_left[1, 1]),
            float(p_left[0, 2]),
            float(p_left[1, 2]),
            (left[0], left[1], left[2]),
            (right[0], right[1], right[2]),
        )

    def _projection(self, translation: tuple[float, float, float]) -> np.ndarray:
        return np.array(
            [[self.fx, 0, self.cx, translation[0]], [0, self.fy, self.cy, translation[1]], [0, 0, 1, translation[2]]],
            np.float64,
        )

    @property
    def p_left(self) -> np.ndarray:
        """(3, 4) float64 projection matrix of the left view: metres to homogeneous pixels."""
        return self._projection(self.left_translation)

    @property
    def p_right(self) -> np.ndarray:
        """(3, 4) float64 projection matrix of the right view: metres to homogeneous pixels."""
        return self._projection(self.right_translation)

    @property
    def baseline(self) -> float:
        """Distance of the two optical centres along x, metres."""
        return (
            self.left_translation[0]
            - self.right_translation[0]
            - self.cx * (self.left_translation[2] - self.right_translation[2])
        ) / self.fx

    @property
    def focal_baseline(self) -> float:
        """fx times baseline, pixel metres: disparity = focal_baseline / depth."""
        return self.fx * self.baseline

    def disparity(self, z: float | np.ndarray) -> float | np.ndarray:
        """Disparity u_left - u_right, pixels, of points at depth ``z``, metres (a number, or an array of any shape)."""
        return self.focal_baseline / (z + self.left_translation[2])

    def cropped(self, left: float, top: float) -> StereoRig:
        """The rig of images from which ``left`` columns and ``top`` rows of pixels were cut off."""
        return self._moved(1.0, 1.0, self.cx - left, self.cy - top)

    def scaled(self, sx: float, sy: float) -> StereoRig:
        """The rig of images resized by the factors ``sx`` horizontally and ``sy`` vertically."""
        return self._moved(sx, sy, (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5)

    def _moved(self, sx: float, sy: float, cx: float, cy: float) -> StereoRig:
        # K' = A K for the affine map A of pixel coordinates, so P[:, 3] is A times the old column.
        def column(t: tuple[float, float, float]) -> tuple[float, float, float]:
            dx, dy = cx - self.cx * sx, cy - self.cy * sy
            return (t[0] * sx + dx * t[2], t[1] * sy + dy * t[2], t[2])

        return replace(
            self,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=cx,
            cy=cy,
            left_translation=column(self.left_translation),
            right_translation=column(self.right_translation),
        )


@dataclass(frozen=True)
class InputTransform:
    """From a camera image to the network's input: cut ``crop_top`` rows, scale to the height, crop or pad on the right.

    The aspect ratio is kept. ``scale`` is the same in both directions.
    """

    source_width: int
    source_height: int
    crop_top: int
    width: int
    height: int
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.crop_top < self.source_height:
            raise GeometryError(
                f"crop_top: expected 0 <= crop_top < image height {self.source_height}, got {self.crop_top}"
            )
        object.__setattr__(self, "scale", self.height / (self.source_height - self.crop_top))

    @property
    def scaled_width(self) -> int:
        """Columns, in pixels, of the scaled image before it is cropped or padded to ``width``."""
        return max(1, round(self.source_width * self.scale))

    def rig(self, rig: StereoRig) -> StereoRig:
        """The rig of the network's input, given that of the camera images."""
        return rig.cropped(0, self.crop_top).scaled(self.scaled_width / self.source_width, self.scale)

    @property
    def visible(self) -> tuple[float, float, float, float]:
        """The part of the camera image that the network sees: left, top, right and bottom, pixels of its input."""
        right, bottom = self.to_network(np.array([self.source_width - 1, self.source_height - 1]))
        return (0.0, 0.0, min(float(right), self.width - 1.0), min(float(bottom), self.height - 1.0))

    def to_source(self, uv: np.ndarray) -> np.ndarray:
        """Network pixel coordinates (..., 2) to camera pixel coordinates."""
        uv = np.asarray(uv, np.float64)
        scale = np.array([self.scaled_width / self.source_width, self.scale])
        return (uv + 0.5) / scale - 0.5 + np.array([0.0, self.crop_top])

    def to_network(self, uv: np.ndarray) -> np.ndarray:
        """Camera pixel coordinates (..., 2) to network pixel coordinates."""
        uv = np.asarray(uv, np.float64)
        scale = np.array([self.scaled_width / self.source_width, self.scale])
        return (uv - np.array([0.0, self.crop_top]) + 0.5) * scale - 0.5


# Of a stream of images every one has the same transform: it is made once. Raises GeometryError.
input_transform = lru_cache(maxsize=64)(InputTransform)


@dataclass(frozen=True)
class InputGeometry:
    """How the images of one rig become the network's input, and the rig of that input.

    ``camera_rig`` is the rig of the camera images, ``rig`` that of the network's input, computed once, here. Raises
    GeometryError.
    """

    transform: InputTransform
    camera_rig: StereoRig
    rig: StereoRig = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rig", self.transform.rig(self.camera_rig))


@dataclass(frozen=True)
class Object3D:
    """One object in KITTI's terms: a label (``score`` is None) or a detection.

    ``bbox`` is (left, top, right, bottom) in pixels of the original left image; ``height, width, length`` in metres;
    ``x, y, z`` the middle of the bottom face in metres; ``alpha`` the observation angle and ``rotation_y`` the heading,
    radians in [-pi, pi). ``truncated`` is in [0, 1] and ``occluded`` in 0..3 (-1 where unknown).
    """

    label: str
    bbox: tuple[float, float, float, float]
    height: float
    width: float
    length: float
    x: float
    y: float
    z: float
    rotation_y: float
    alpha: float
    truncated: float = -1.0
    occluded: int = -1
    score: float | None = None

    def corners(self) -> np.ndarray:
        """The eight corners, (8, 3) float64, metres; see ``box_corners``."""
        return box_corners(
            np.array([self.height, self.width, self.length]), np.array([self.x, self.y, self.z]), self.rotation_y
        )


def wrap_angle(angle: float | np.ndarray) -> float | np.ndarray:
    """``angle`` in radians (a number, or an array of any shape), wrapped into [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def alpha_to_rotation_y(alpha: float | np.ndarray, x: float | np.ndarray, z: float | np.ndarray) -> float | np.ndarray:
    """Heading from observation angle, radians, of objects at (x, z) metres: numbers, or arrays of one shape."""
    return wrap_angle(alpha + np.arctan2(x, z))


def rotation_y_to_alpha(
    rotation_y: float | np.ndarray, x: float | np.ndarray, z: float | np.ndarray
) -> float | np.ndarray:
    """Observation angle from heading, radians, of objects at (x, z) metres: numbers, or arrays of one shape."""
    return wrap_angle(rotation_y - np.arctan2(x, z))


def box_corners(hwl: np.ndarray, location: np.ndarray, rotation_y: float | np.ndarray) -> np.ndarray:
    """Corners of boxes: ``hwl`` (..., 3), ``location`` (..., 3) bottom centre, ``rotation_y`` (...) -> (..., 8, 3).

    Metres and radians; the columns of ``hwl`` are height, width and length. Corners 0-3 are the bottom face
    (front-left, front-right, rear-right, rear-left as the object sees it), 4-7 the top face in the same order.
    """
    hwl, location, ry = (
        np.asarray(hwl, np.float64),
        np.asarray(location, np.float64),
        np.asarray(rotation_y, np.float64),
    )
    h, w, length = hwl[..., 0:1], hwl[..., 1:2], hwl[..., 2:3]
    # Forward is +x at rotation_y = 0; the object's left is then +z.
    forward = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * length / 2
    left = np.array([1, -1, -1, 1, 1, -1, -1, 1]) * w / 2
    up = np.array([0, 0, 0, 0, -1, -1, -1, -1]) * h
    c, s = np.cos(ry)[..., None], np.sin(ry)[..., None]
    return np.stack([c * forward + s * left, up, -s * forward + c * left], -1) + location[..., None, :]


def project(p: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project ``points`` (..., 3), metres, by the matrix ``p`` (3, 4): pixels (..., 2) and depths (...) in metres.

    Points at or behind the camera have a depth <= 0 and meaningless coordinates; callers check the depth.
    """
    p, points = np.asarray(p, np.float64), np.asarray(points, np.float64)
    homogeneous = points @ p[:, :3].T + p[:, 3]
    depth = homogeneous[..., 2]
    safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    return homogeneous[..., :2] / safe[..., None], depth


def box_orientation_quaternion(rotation_y: float) -> tuple[float, float, float, float]:
    """Quaternion (x, y, z, w) that takes a box's own axes (x forward, y left, z up) to the optical frame.

    It is R_y(rotation_y) R_x(+90 degrees).
    """
    c, s, r = math.cos(rotation_y / 2), math.sin(rotation_y / 2), math.sqrt(0.5)
    return (c * r, s * r, -s * r, c * r)
