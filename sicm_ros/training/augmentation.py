# SPDX-License-Identifier: Apache-2.0
"""Augmentation of a stereo sample: photometric distortion, a zoom, and the mirror that swaps the views."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from ..geometry import Object3D, StereoRig, project, rotation_y_to_alpha, wrap_angle
from .samples import Sample

__all__ = ["augment", "mirror", "photometric", "zoom"]

LARGEST_ZOOM = 1.2
ZOOM_SHARE, BLUR_SHARE = 0.3, 0.3  # of the samples


def photometric(left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Contrast, saturation, hue, brightness and sharpness, drawn once for the pair (h, w, 3) uint8, then a little
    gain and noise for each."""
    contrast, saturation = rng.uniform(0.5, 1.5, 2)
    hue, brightness = rng.uniform(-18, 18), rng.uniform(-32, 32)
    blur = rng.uniform(0.3, 0.9) if rng.random() < BLUR_SHARE else 0.0
    views = []
    for view in (left, right):
        if rng.random() < 0.7:
            hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV).astype(np.float32)
            hsv[..., 0] = (hsv[..., 0] + hue / 2) % 180  # OpenCV's hue is in half degrees
            hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
            view = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
        if blur:
            view = cv2.GaussianBlur(view, (0, 0), blur * rng.uniform(0.9, 1.1))
        values = view.astype(np.float32) * (contrast * rng.uniform(0.97, 1.03)) + (brightness + rng.uniform(-3, 3))
        if rng.random() < 0.5:
            values += rng.standard_normal(values.shape, np.float32) * rng.uniform(0, 6)
        views.append(np.clip(values, 0, 255).astype(np.uint8))
    return views[0], views[1]


def mirror(sample: Sample) -> Sample:
    """Flip both views left to right and swap them: the mirrored right view is the new left one."""
    h, w = sample.disparity.shape
    rig = sample.rig

    def translation(t: tuple[float, float, float]) -> tuple[float, float, float]:
        return ((w - 1) * t[2] - t[0], t[1], t[2])

    mirrored_rig = StereoRig(
        rig.fx, rig.fy, w - 1 - rig.cx, rig.cy, translation(rig.right_translation), translation(rig.left_translation)
    )
    labels = []
    for o in sample.labels:
        rotation_y = float(wrap_angle(math.pi - o.rotation_y))
        o = replace(o, x=-o.x, rotation_y=rotation_y, alpha=float(rotation_y_to_alpha(rotation_y, -o.x, o.z)))
        labels.append(replace(o, bbox=_box_in_other_view(o, sample, mirrored_rig, w, h)))
    return Sample(
        np.ascontiguousarray(sample.right[:, ::-1]),
        np.ascontiguousarray(sample.left[:, ::-1]),
        np.ascontiguousarray(_right_disparity(sample.disparity)[:, ::-1]),
        mirrored_rig,
        labels,
    )


def _box_in_other_view(
    o: Object3D, sample: Sample, rig: StereoRig, width: int, height: int
) -> tuple[float, float, float, float]:
    """The mirrored 2D box of ``o``: its 3D box projected, or, too near for that, the old box moved by its disparity."""
    corners, depth = project(rig.p_left, o.corners())
    if o.label != "DontCare" and depth.min() > 0.5:
        left, right = corners[:, 0].min(), corners[:, 0].max()
    else:
        shift = float(sample.rig.disparity(max(o.z, 2.0))) if o.label != "DontCare" else 0.0
        left, right = width - 1 - (o.bbox[2] - shift), width - 1 - (o.bbox[0] - shift)
    return (float(np.clip(left, 0, width - 1)), o.bbox[1], float(np.clip(right, 0, width - 1)), o.bbox[3])


def _right_disparity(disparity: np.ndarray) -> np.ndarray:
    """The right view's disparity (h, w), from the left view's: each pixel goes where it is seen, near ones win."""
    h, w = disparity.shape
    rows, columns = np.nonzero(disparity > 0)
    values = disparity[rows, columns]
    order = np.argsort(values, kind="stable")
    rows, columns, values = rows[order], columns[order], values[order]
    target = np.rint(columns - values).astype(np.int64)
    inside = target >= 0
    out = np.zeros_like(disparity)
    out[rows[inside], target[inside]] = values[inside]
    return out


def zoom(sample: Sample, rng: np.random.Generator) -> Sample:
    """A part of both views, enlarged to their size, as a longer lens would show it; the rig follows.

    What a part of the image looks like then goes with more than one size, place and focal length, which matters most
    where real frames are few.
    """
    h, w = sample.disparity.shape
    scale = rng.uniform(1.0, LARGEST_ZOOM)
    columns, rows = round(w / scale), round(h / scale)
    x0, y0 = int(rng.integers(w - columns + 1)), int(rng.integers(h - rows + 1))
    sx, sy = w / columns, h / rows

    def part(image: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.resize(image[y0 : y0 + rows, x0 : x0 + columns], (w, h), interpolation=interpolation)

    labels = []
    for o in sample.labels:
        left, top, right, bottom = o.bbox
        corners = (np.array([[left, top], [right, bottom]]) - [x0, y0] + 0.5) * [sx, sy] - 0.5
        box = np.clip(corners, 0, [w - 1, h - 1])
        (whole_w, whole_h), (w_left, h_left) = corners[1] - corners[0], box[1] - box[0]
        if w_left < 1 or h_left < 1:
            continue
        seen = w_left * h_left / max(whole_w * whole_h, 1e-6) * (1 - max(o.truncated, 0.0))
        x_low, y_low, x_high, y_high = map(float, box.reshape(-1))
        labels.append(replace(o, bbox=(x_low, y_low, x_high, y_high), truncated=float(np.clip(1 - seen, 0, 1))))
    return Sample(
        part(sample.left, cv2.INTER_LINEAR),
        part(sample.right, cv2.INTER_LINEAR),
        part(sample.disparity, cv2.INTER_NEAREST) * np.float32(sx),
        sample.rig.cropped(x0, y0).scaled(sx, sy),
        labels,
    )


def augment(sample: Sample, rng: np.random.Generator) -> Sample:
    """Photometric distortion always, a zoom in some cases, the mirror in half of them."""
    if rng.random() < ZOOM_SHARE:
        sample = zoom(sample, rng)
    left, right = photometric(sample.left, sample.right, rng)
    sample = replace(sample, left=left, right=right)
    return mirror(sample) if rng.random() < 0.5 else sample
