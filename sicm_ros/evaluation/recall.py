# SPDX-License-Identifier: Apache-2.0
"""How many of the cars that matter are found, at the threshold that a user runs with; beside average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..geometry import Object3D
from .kitti_ap import bev_iou

__all__ = ["Found", "count_found"]


class Found(NamedTuple):
    """Counts over frames; ``false`` are detections of the class that no labelled object justifies."""

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


def _ground(objects: Sequence[Object3D]) -> np.ndarray:
    return np.array([[o.x, o.z, o.length, o.width, o.rotation_y] for o in objects], np.float64).reshape(-1, 5)


def count_found(
    labels: Sequence[Sequence[Object3D]],
    results: Sequence[Sequence[Object3D]],
    name: str = "Car",
    iou: float = 0.5,
    max_depth: float = 30.0,
    threshold: float = 0.0,
) -> Found:
    """Count the unoccluded (occluded 0, truncated below 0.15) objects within ``max_depth`` metres that a detection
    overlaps on the ground by ``iou``, and the detections that overlap no object of the class (for cars, no van either)
    by that much. Detections below ``threshold`` do not count."""
    accepted = (name, "Van") if name == "Car" else (name,)
    found = wanted = false = 0
    for truth, result in zip(labels, results, strict=True):
        detections = _ground([o for o in result if o.label == name and (o.score or 0.0) >= threshold])
        targets = [
            o for o in truth if o.label == name and o.occluded == 0 and o.truncated < 0.15 and 0 < o.z <= max_depth
        ]
        wanted += len(targets)
        found += int((bev_iou(_ground(targets), detections) >= iou).any(1).sum()) if targets and len(detections) else 0
        if len(detections):
            others = _ground([o for o in truth if o.label in accepted])
            justified = (bev_iou(detections, others) >= iou).any(1) if len(others) else np.zeros(len(detections), bool)
            false += int((~justified).sum())
    return Found(found, wanted, false, len(labels))
