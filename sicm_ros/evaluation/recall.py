# SPDX-License-Identifier: Apache-2.0
"""Recall, false positives and depth errors at one score threshold, as complements of average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..geometry import Object3D
from .kitti_ap import bev_iou

__all__ = ["DEPTH_RANGES", "Found", "count_found", "count_invented", "depth_errors", "ground_boxes"]

DEPTH_RANGES = ((5, 15), (15, 25), (25, 35), (35, 50))  # metres


class Found(NamedTuple):
    """Counts over frames: true positives, ground truth, false positives, frames."""

    found: int
    wanted: int
    false: int
    frames: int

    @property
    def recall(self) -> float:
        return self.found / max(self.wanted, 1)

    @property
    def false_per_frame(self) -> float:
        return self.false / max(self.frames, 1)


def ground_boxes(objects: Sequence[Object3D]) -> np.ndarray:
    """x, z, length, width and rotation_y of N objects (N, 5), metres and radians: what ``bev_iou`` takes."""
    return np.array([[o.x, o.z, o.length, o.width, o.rotation_y] for o in objects], np.float64).reshape(-1, 5)


def count_found(
    labels: Sequence[Sequence[Object3D]],
    results: Sequence[Sequence[Object3D]],
    name: str = "Car",
    iou: float = 0.5,
    max_depth: float = 30.0,
    threshold: float = 0.0,
) -> Found:
    """Count true positives and false positives among the detections with a score of at least ``threshold``.

    The ground truth are the unoccluded objects (occluded 0, truncated below 0.15) of class ``name`` within
    ``max_depth`` metres. An object is found if a detection overlaps it in bird's-eye view by ``iou``. A detection is a
    false positive if it overlaps no object of the class, at any depth and occlusion, by that much (for cars, no van
    either).
    """
    accepted = (name, "Van") if name == "Car" else (name,)
    found = wanted = false = 0
    for truth, result in zip(labels, results, strict=True):
        detections = ground_boxes([o for o in result if o.label == name and (o.score or 0.0) >= threshold])
        targets = [
            o for o in truth if o.label == name and o.occluded == 0 and o.truncated < 0.15 and 0 < o.z <= max_depth
        ]
        wanted += len(targets)
        found += (
            int((bev_iou(ground_boxes(targets), detections) >= iou).any(1).sum()) if targets and len(detections) else 0
        )
        if len(detections):
            others = ground_boxes([o for o in truth if o.label in accepted])
            justified = (bev_iou(detections, others) >= iou).any(1) if len(others) else np.zeros(len(detections), bool)
            false += int((~justified).sum())
    return Found(found, wanted, false, len(labels))


def count_invented(
    labels: Sequence[Sequence[Object3D]],
    results: Sequence[Sequence[Object3D]],
    uncompressed: Sequence[Sequence[Object3D]],
    threshold: float = 0.0,
    iou: float = 0.3,
) -> int:
    """Number of detections through packets that stand where nothing is: with a score of at least ``threshold``, and
    overlapping in the image by ``iou`` neither a labelled object of any class, regions without labels (DontCare)
    included, nor a detection of any class in the ``uncompressed`` features with at least half that score."""
    invented = 0
    for truth, result, reference in zip(labels, results, uncompressed, strict=True):
        known = [*truth, *(o for o in reference if (o.score or 0.0) >= threshold / 2)]
        for o in result:
            if (o.score or 0.0) >= threshold:
                invented += not any(_image_iou(o, other) >= iou for other in known)
    return invented


def depth_errors(
    labels: Sequence[Sequence[Object3D]],
    results: Sequence[Sequence[Object3D]],
    name: str = "Car",
    threshold: float = 0.0,
) -> dict[tuple[int, int], list[float]]:
    """Depth errors (detected minus labelled depth of the box's centre, metres) for each of ``DEPTH_RANGES``.

    Counted are objects with occlusion 0 or 1 that a detection at or above ``threshold`` overlaps in the image with IoU
    0.5 or more; of several detections the one that overlaps most.
    """
    errors: dict[tuple[int, int], list[float]] = {r: [] for r in DEPTH_RANGES}
    for truth, result in zip(labels, results, strict=True):
        found = [o for o in result if o.label == name and (o.score or 0.0) >= threshold]
        for o in truth:
            reach = next((r for r in DEPTH_RANGES if r[0] <= o.z < r[1]), None)
            if o.label != name or o.occluded not in (0, 1) or reach is None or not found:
                continue
            overlaps = [_image_iou(o, f) for f in found]
            best = int(np.argmax(overlaps))
            if overlaps[best] >= 0.5:
                errors[reach].append(found[best].z - o.z)
    return errors


def _image_iou(a: Object3D, b: Object3D) -> float:
    """IoU of two 2D boxes."""
    w = min(a.bbox[2], b.bbox[2]) - max(a.bbox[0], b.bbox[0])
    h = min(a.bbox[3], b.bbox[3]) - max(a.bbox[1], b.bbox[1])
    if w <= 0 or h <= 0:
        return 0.0
    areas = [(o.bbox[2] - o.bbox[0]) * (o.bbox[3] - o.bbox[1]) for o in (a, b)]
    return w * h / (sum(areas) - w * h)
