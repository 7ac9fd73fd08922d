# SPDX-License-Identifier: Apache-2.0
"""What a score is worth: the share of boxes of that score that are right, and the calibration that makes both equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..geometry import Object3D
from .kitti_ap import bev_iou
from .recall import ground_boxes

__all__ = ["Bin", "calibration_error", "fit_calibration", "judge", "reliability"]

NEIGHBOURS = {"Car": ("Van",), "Pedestrian": ("Person_sitting",)}  # a box on one of these is neither right nor wrong
RIDGE = 1e-3  # keeps the fit finite where every box is right, or none


class Bin(NamedTuple):
    """Boxes whose scores lie in [low, high)."""

    low: float
    high: float
    boxes: int
    mean_score: float  # NaN without boxes
    right: float  # share, NaN without boxes


def judge(
    labels: Sequence[Sequence[Object3D]], results: Sequence[Sequence[Object3D]], name: str, iou: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) of the boxes of class ``name``, and whether each is right (N,) bool.

    A box is right if it overlaps an object of the class in bird's-eye view by ``iou`` or more, and no box with a higher
    score has taken that object. One on an object of a neighbouring class, or with its centre in a region without labels
    (DontCare), is left out.
    """
    scores, right = [], []
    for truth, result in zip(labels, results, strict=True):
        boxes = sorted((o for o in result if o.label == name), key=lambda o: -(o.score or 0.0))
        targets = [o for o in truth if o.label == name]
        others = [o for o in truth if o.label in NEIGHBOURS.get(name, ())]
        unlabelled = [o.bbox for o in truth if o.label == "DontCare"]
        overlap, beside = (
            bev_iou(ground_boxes(boxes), ground_boxes(targets)),
            bev_iou(ground_boxes(boxes), ground_boxes(others)),
        )
        free = np.ones(len(targets), bool)
        for i, box in enumerate(boxes):
            hits = np.flatnonzero((overlap[i] >= iou) & free) if len(targets) else np.array([], int)
            if len(hits):
                free[hits[np.argmax(overlap[i, hits])]] = False
            elif (len(others) and (beside[i] >= iou).any()) or any(_centre_in(box, region) for region in unlabelled):
                continue
            scores.append(box.score or 0.0)
            right.append(len(hits) > 0)
    return np.array(scores, np.float64), np.array(right, bool)


def fit_calibration(
    scores: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None, steps: int = 50
) -> tuple[float, float]:
    """Scale and offset of the logit that make the scores (N,) the most likely ones for ``right`` (N,), each counted by
    its weight (N,): Platt's method. (1, 0) without boxes."""
    if len(scores) == 0:
        return 1.0, 0.0
    p = np.clip(scores, 1e-6, 1 - 1e-6)
    x = np.stack([np.log(p / (1 - p)), np.ones(len(p))], 1)
    w = np.ones(len(p)) if weights is None else weights / weights.mean()
    theta = np.array([1.0, 0.0])
    for _ in range(steps):
        q = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
        gradient = x.T @ (w * (q - right)) / len(p) + RIDGE * (theta - (1.0, 0.0))
        hessian = (x * (w * q * (1 - q))[:, None]).T @ x / len(p) + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        theta = theta - step / max(1.0, np.abs(step).max())
    # A higher score must not mean less.
    return float(max(theta[0], 1e-3)), float(theta[1])


def reliability(scores: np.ndarray, right: np.ndarray, edges: Sequence[float]) -> list[Bin]:
    """The boxes between each two of the ``edges``."""
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (scores >= low) & (scores < high)
        count = int(inside.sum())
        mean, share = (float(v[inside].mean()) if count else float("nan") for v in (scores, right))
        rows.append(Bin(low, high, count, mean, share))
    return rows


def calibration_error(rows: Sequence[Bin]) -> float:
    """Mean difference of score and share of right boxes over the bins, each counted by its boxes; NaN without any."""
    total = sum(row.boxes for row in rows)
    if not total:
        return float("nan")
    return sum(row.boxes * abs(row.mean_score - row.right) for row in rows if row.boxes) / total


def _centre_in(box: Object3D, region: tuple[float, float, float, float]) -> bool:
    u, v = (box.bbox[0] + box.bbox[2]) / 2, (box.bbox[1] + box.bbox[3]) / 2
    return region[0] <= u <= region[2] and region[1] <= v <= region[3]
