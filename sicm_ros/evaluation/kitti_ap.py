# SPDX-License-Identifier: Apache-2.0
"""KITTI's object evaluation: AP of 2D, bird's-eye-view and 3D boxes, and orientation similarity (AOS).

The rules are those of the official development kit. The ground truth of a difficulty are the objects of the class that
are tall, visible and complete enough for it. Detections of other objects of the class, or of a neighbouring class,
count neither as true nor as false positives. Detections that are too small, or lie in a DontCare region (2D only), are
no false positives. Precision is taken at up to 41 scores, chosen where recall passes multiples of 1/40, and made
monotonic; R40 averages it at recall 1/40, 2/40, ..., 1 and R11 at 0, 0.1, ..., 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sicm_ros.compiled import compiled
from sicm_ros.geometry import Object3D

__all__ = ["Averages", "CLASSES", "DIFFICULTIES", "LOW_SCORE", "METRICS", "Scorer", "bev_iou", "box3d_iou", "evaluate"]

CLASSES = ("Car", "Pedestrian", "Cyclist")
DIFFICULTIES = ("easy", "moderate", "hard")
METRICS = ("2D", "AOS", "BEV", "3D", "BEV loose", "3D loose")

# Least score of detections to be scored: precision over all recalls needs weak ones too. Calibrated scores of weak ones
# are far lower than the network's own: 0.005 is about 0.05 of those for cars.
LOW_SCORE = 0.005
MIN_HEIGHT = (40, 25, 25)  # pixels of a 2D box, by difficulty
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.3, 0.5)
STRICT_IOU = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
LOOSE_IOU = {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25}
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}
RECALL_STEPS = 40
NO_ANGLE = -10.0  # alpha of a detection that has none

# What a box is to a class and a difficulty.
COUNTS, IGNORED, ABSENT = 0, 1, -1


# ------------------------------------------------------------------------------------------------------------ overlaps


@compiled()
def _bev_intersection(ax, az, al, aw, ar, bx, bz, bl, bw, br):  # type: ignore[no-untyped-def]
    """Area, in square metres, that two rotated rectangles share: b, in a's own axes, is clipped by a's four edges."""
    dx, dz = bx - ax, bz - az
    reach = 0.5 * (math.hypot(al, aw) + math.hypot(bl, bw))
    if dx * dx + dz * dz > reach * reach:
        return 0.0
    # Forward of a heading r is (cos r, -sin r) in (x, z), left is (sin r, cos r).
    ca, sa = math.cos(ar), math.sin(ar)
    cx, cz = ca * dx - sa * dz, sa * dx + ca * dz
    c, s = math.cos(br - ar), math.sin(br - ar)
    polygon = np.empty((16, 2))
    clipped = np.empty((16, 2))
    for k in range(4):
        forward = bl / 2 if k == 0 or k == 3 else -bl / 2
        left = bw / 2 if k < 2 else -bw / 2
        polygon[k, 0] = cx + c * forward + s * left
        polygon[k, 1] = cz - s * forward + c * left
    count = 4
    for edge in range(4):
        axis = edge % 2
        sign = 1.0 if edge < 2 else -1.0
        limit = (al if axis == 0 else aw) / 2
        kept = 0
        for k in range(count):
            n = k + 1 if k + 1 < count else 0
            here, there = limit - sign * polygon[k, axis], limit - sign * polygon[n, axis]
            if here >= 0:
                clipped[kept] = polygon[k]
                kept += 1
            if (here > 0 and there < 0) or (here < 0 and there > 0):
                t = here / (here - there)
                clipped[kept] = polygon[k] + t * (polygon[n] - polygon[k])
                kept += 1
        polygon, clipped = clipped, polygon
        count = kept
        if count == 0:
            return 0.0
    area = 0.0
    for k in range(count):
        n = k + 1 if k + 1 < count else 0
        area += polygon[k, 0] * polygon[n, 1] - polygon[n, 0] * polygon[k, 1]
    return abs(area) / 2


@compiled()
def _bev_iou(a, b, out):  # type: ignore[no-untyped-def]
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            shared = _bev_intersection(
                a[i, 0], a[i, 1], a[i, 2], a[i, 3], a[i, 4], b[j, 0], b[j, 1], b[j, 2], b[j, 3], b[j, 4]
            )
            union = a[i, 2] * a[i, 3] + b[j, 2] * b[j, 3] - shared
            out[i, j] = shared / union if union > 0 else 0.0


@compiled()
def _box3d_iou(a, b, out):  # type: ignore[no-untyped-def]
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            # y points down and a box stands on its location.
            height = min(a[i, 1], b[j, 1]) - max(a[i, 1] - a[i, 3], b[j, 1] - b[j, 3])
            shared = 0.0
            if height > 0:
                shared = height * _bev_intersection(
                    a[i, 0], a[i, 2], a[i, 5], a[i, 4], a[i, 6], b[j, 0], b[j, 2], b[j, 5], b[j, 4], b[j, 6]
                )
            union = a[i, 3] * a[i, 4] * a[i, 5] + b[j, 3] * b[j, 4] * b[j, 5] - shared
            out[i, j] = shared / union if union > 0 else 0.0


def _boxes(array: np.ndarray, columns: int, fields: str) -> np.ndarray:
    array = np.ascontiguousarray(array, np.float64)
    if array.size == 0:
        return np.zeros((0, columns))
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"boxes: expected shape (N, {columns}) holding {fields}, got {array.shape}")
    return array


def bev_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """IoU in bird's-eye view: (N, 5) and (M, 5) of x, z, length, width (metres), rotation_y (radians) -> (N, M)."""
    a, b = (_boxes(x, 5, "x, z, length, width, rotation_y") for x in (boxes_a, boxes_b))
    out = np.zeros((len(a), len(b)))
    _bev_iou(a, b, out)
    return out


def box3d_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """IoU of volumes: (N, 7) and (M, 7) of x, y, z, height, width, length, rotation_y -> (N, M).

    Metres and radians; (x, y, z) is the middle of the bottom face, as in KITTI.
    """
    a, b = (_boxes(x, 7, "x, y, z, height, width, length, rotation_y") for x in (boxes_a, boxes_b))
    out = np.zeros((len(a), len(b)))
    _box3d_iou(a, b, out)
    return out


def _image_overlap(a: np.ndarray, b: np.ndarray, of_a: bool = False) -> np.ndarray:
    """Overlap (N, M) of 2D boxes (N, 4) and (M, 4), pixels: over the union, or over the area of ``a``."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    area_a = ((a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]))[:, None]
    area_b = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]))[None, :]
    whole = area_a + np.zeros_like(shared) if of_a else area_a + area_b - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


# -------------------------------------------------------------------------------------------------------------- frames


@dataclass(frozen=True)
class _Boxes:
    """Boxes of all frames, concatenated; those of frame i are [start[i], start[i + 1])."""

    start: np.ndarray
    names: np.ndarray
    bbox: np.ndarray  # (N, 4)
    box3d: np.ndarray  # (N, 7) x, y, z, h, w, l, rotation_y
    alpha: np.ndarray
    occluded: np.ndarray
    truncated: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, frames: Iterable[Sequence[Object3D]]) -> _Boxes:
        frames = list(frames)
        objects = [o for frame in frames for o in frame]

        def array(values: list, width: int) -> np.ndarray:
            return np.array(values, np.float64).reshape(len(objects), width)

        flat = array([(o.alpha, o.occluded, o.truncated, 0.0 if o.score is None else o.score) for o in objects], 4)
        return cls(
            np.cumsum([0, *map(len, frames)]),
            np.array([o.label.lower() for o in objects], dtype=str),
            array([o.bbox for o in objects], 4),
            array([(o.x, o.y, o.z, o.height, o.width, o.length, o.rotation_y) for o in objects], 7),
            *(np.ascontiguousarray(column) for column in flat.T),
        )

    def frame(self, index: int) -> slice:
        return slice(self.start[index], self.start[index + 1])

    @property
    def image_height(self) -> np.ndarray:
        return self.bbox[:, 3] - self.bbox[:, 1]


@dataclass(frozen=True)
class _Overlaps:
    """A (detections, ground truth) matrix for each frame, flattened and concatenated; frame i begins at start[i]."""

    start: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, matrices: list[np.ndarray]) -> _Overlaps:
        start = np.cumsum([0, *(m.size for m in matrices)])
        return cls(start, np.concatenate([np.zeros(0), *(m.ravel() for m in matrices)]))


def _truth_flags(truth: _Boxes, name: str, difficulty: int) -> np.ndarray:
    too_hard = (
        (truth.occluded > MAX_OCCLUSION[difficulty])
        | (truth.truncated > MAX_TRUNCATION[difficulty])
        | (truth.image_height < MIN_HEIGHT[difficulty])
    )
    flags = np.full(len(truth.names), ABSENT, np.int8)
    own = truth.names == name
    flags[own & ~too_hard] = COUNTS
    flags[(own & too_hard) | (truth.names == NEIGHBOURS.get(name, ""))] = IGNORED
    return flags


def _detection_flags(found: _Boxes, name: str, difficulty: int) -> np.ndarray:
    # The official kit looks at the height first: a small box of any class is ignored, not absent.
    flags = np.where(found.names == name, COUNTS, ABSENT).astype(np.int8)
    flags[np.abs(found.image_height) < MIN_HEIGHT[difficulty]] = IGNORED
    return flags


# ------------------------------------------------------------------------------------------------------------ matching


@compiled()
def _matched_scores(  # type: ignore[no-untyped-def]
    frames, truth_start, truth_flags, found_start, found_flags, scores, overlap_start, overlaps, least
):
    """Scores (n,) of the true positives if every detection may match: each object takes the one of highest score.

    ``frames``: the numbers of those that count, each as often as it does."""
    capacity = 0
    for frame in frames:
        capacity += truth_start[frame + 1] - truth_start[frame]
    matched = np.empty(capacity)
    count = 0
    taken = np.zeros(scores.shape[0], np.bool_)
    for frame in frames:
        first, objects = truth_start[frame], truth_start[frame + 1] - truth_start[frame]
        for j in range(found_start[frame], found_start[frame + 1]):
            taken[j] = False
        for i in range(first, truth_start[frame + 1]):
            if truth_flags[i] == -1:
                continue
            best = -1
            for j in range(found_start[frame], found_start[frame + 1]):
                if found_flags[j] == -1 or taken[j]:
                    continue
                overlap = overlaps[overlap_start[frame] + (j - found_start[frame]) * objects + i - first]
                if overlap > least and (best < 0 or scores[j] > scores[best]):
                    best = j
            if best >= 0:
                taken[best] = True
                if truth_flags[i] == 0 and found_flags[best] == 0:
                    matched[count] = scores[best]
                    count += 1
    return matched[:count]


@compiled()
def _count(
    frames,
    truth_start,
    truth_flags,
    truth_alpha,
    found_start,
    found_flags,
    found_alpha,
    scores,
    overlap_start,
    overlaps,
    least,
    care_start,
    care_overlaps,
    care_least,
    thresholds,
):  # type: ignore[no-untyped-def]
    """True positives, false positives and summed orientation similarity at each threshold: (thresholds, 3)."""
    totals = np.zeros((thresholds.shape[0], 3))
    taken = np.zeros(scores.shape[0], np.bool_)
    for frame in frames:
        first, objects = truth_start[frame], truth_start[frame + 1] - truth_start[frame]
        begin, end = found_start[frame], found_start[frame + 1]
        regions = 0
        if end > begin:
            regions = (care_start[frame + 1] - care_start[frame]) // (end - begin)
        for t in range(thresholds.shape[0]):
            threshold = thresholds[t]
            for j in range(begin, end):
                taken[j] = False
            for i in range(first, truth_start[frame + 1]):
                if truth_flags[i] == -1:
                    continue
                # The best overlap among detections that count; one that does not only where there is no other.
                best, most, best_ignored = -1, 0.0, False
                for j in range(begin, end):
                    if found_flags[j] == -1 or taken[j] or scores[j] < threshold:
                        continue
                    overlap = overlaps[overlap_start[frame] + (j - begin) * objects + i - first]
                    if overlap <= least:
                        continue
                    if found_flags[j] == 0:
                        if overlap > most or best_ignored:
                            best, most, best_ignored = j, overlap, False
                    elif best < 0:
                        best, best_ignored = j, True
                if best >= 0:
                    taken[best] = True
                    if truth_flags[i] == 0 and found_flags[best] == 0:
                        totals[t, 0] += 1
                        totals[t, 2] += (1 + math.cos(truth_alpha[i] - found_alpha[best])) / 2
            for j in range(begin, end):
                if taken[j] or found_flags[j] != 0 or scores[j] < threshold:
                    continue
                in_region = False
                for k in range(regions):
                    if care_overlaps[care_start[frame] + (j - begin) * regions + k] > care_least:
                        in_region = True
                if not in_region:
                    totals[t, 1] += 1
    return totals


def _thresholds(matched: np.ndarray, objects: int) -> np.ndarray:
    """Scores (at most 41,) at which recall comes nearest to 0, 1/40, 2/40, ...; ``matched`` are scores (n,)."""
    scores = np.sort(matched)[::-1]
    chosen: list[float] = []
    recall = 0.0
    for i, score in enumerate(scores):
        last = i == len(scores) - 1
        here = (i + 1) / objects
        following = here if last else (i + 2) / objects
        if not last and following - recall < recall - here:
            continue
        chosen.append(score)
        recall += 1 / RECALL_STEPS
    return np.array(chosen, np.float64)


def _averages(values: np.ndarray) -> tuple[float, float]:
    """R11 and R40, percent, from precisions (or similarities) (n,) at the thresholds, in order of rising recall."""
    curve = np.zeros(RECALL_STEPS + 1)
    # Rounding in the thresholds' recall can give one more than the curve has points for.
    curve[: min(len(values), len(curve))] = values[: len(curve)]
    curve = np.maximum.accumulate(curve[::-1])[::-1]
    return float(curve[::4].mean() * 100), float(curve[1:].mean() * 100)


Table = dict[str, dict[str, dict[str, tuple[float, ...]]]]


class Averages(NamedTuple):
    """Average precision and orientation similarity, percent, R11 and R40; NaN where there is no object or no angle."""

    precision: tuple[float, float]
    orientation: tuple[float, float]


class Scorer:
    """Results and labels with all overlaps between them, so that AP of any choice of the frames takes milliseconds.

    ``labels`` and ``results`` as in ``evaluate``, and its errors.
    """

    def __init__(self, labels: Sequence[Sequence[Object3D]], results: Sequence[Sequence[Object3D]]) -> None:
        if len(labels) != len(results):
            raise ValueError(f"results: expected as many frames as labels, {len(labels)}, got {len(results)}")
        for index, frame in enumerate(results):
            if any(o.score is None for o in frame):
                raise ValueError(
                    f"results: expected a score (column 16) on every detection, frame {index} has one without"
                )
        truth = self._truth = _Boxes.of([[o for o in frame if o.label.lower() != "dontcare"] for frame in labels])
        care = _Boxes.of([[o for o in frame if o.label.lower() == "dontcare"] for frame in labels])
        found = self._found = _Boxes.of(results)
        frames = range(len(labels))
        ground = [0, 2, 5, 4, 6]
        self._overlaps = {
            "2D": _Overlaps.of(
                [_image_overlap(found.bbox[found.frame(i)], truth.bbox[truth.frame(i)]) for i in frames]
            ),
            "BEV": _Overlaps.of(
                [
                    bev_iou(found.box3d[found.frame(i)][:, ground], truth.box3d[truth.frame(i)][:, ground])
                    for i in frames
                ]
            ),
            "3D": _Overlaps.of([box3d_iou(found.box3d[found.frame(i)], truth.box3d[truth.frame(i)]) for i in frames]),
        }
        self._in_care = _Overlaps.of(
            [_image_overlap(found.bbox[found.frame(i)], care.bbox[care.frame(i)], of_a=True) for i in frames]
        )
        self._nowhere = _Overlaps(np.zeros(len(labels) + 1, np.int64), np.zeros(0))
        self._has_angles = bool((found.alpha != NO_ANGLE).all())
        self._all = np.arange(len(labels))

    def average(self, metric: str, name: str, difficulty: int = 1, frames: np.ndarray | None = None) -> Averages:
        """Of class ``name`` by ``metric`` (of ``METRICS``, not AOS), at a place of ``DIFFICULTIES``.

        ``frames``: numbers (n,) of the frames that count, each as often as it is named; default all.
        """
        truth, found = self._truth, self._found
        chosen = self._all if frames is None else np.ascontiguousarray(frames, np.int64)
        truth_flags = _truth_flags(truth, name.lower(), difficulty)
        found_flags = _detection_flags(found, name.lower(), difficulty)
        counts = np.concatenate([[0], np.cumsum(truth_flags == COUNTS)])[truth.start]
        objects = int((counts[chosen + 1] - counts[chosen]).sum())
        if not objects:
            return Averages((math.nan, math.nan), (math.nan, math.nan))
        overlap = self._overlaps[metric.split()[0]]
        least = (LOOSE_IOU if metric.endswith("loose") else STRICT_IOU)[name]
        regions = self._in_care if metric == "2D" else self._nowhere
        matched = _matched_scores(
            chosen,
            truth.start,
            truth_flags,
            found.start,
            found_flags,
            found.score,
            overlap.start,
            overlap.values,
            least,
        )
        totals = _count(
            chosen,
            truth.start,
            truth_flags,
            truth.alpha,
            found.start,
            found_flags,
            found.alpha,
            found.score,
            overlap.start,
            overlap.values,
            least,
            regions.start,
            regions.values,
            least,
            _thresholds(matched, objects),
        )
        positives = np.maximum(totals[:, 0] + totals[:, 1], 1)
        similarity = _averages(totals[:, 2] / positives) if self._has_angles else (math.nan, math.nan)
        return Averages(_averages(totals[:, 0] / positives), similarity)


def evaluate(
    labels: Sequence[Sequence[Object3D]], results: Sequence[Sequence[Object3D]], classes: Sequence[str] = CLASSES
) -> Table:
    """Score ``results`` (one list of detections a frame) against ``labels`` (ground truth, DontCare included).

    Returns ``table["R40" | "R11"][metric][class] = (easy, moderate, hard)``, average precision in percent; the metrics
    are those in ``METRICS``, "loose" with IoU 0.5 for Car and 0.25 for the others in place of 0.7 and 0.5. A class
    without an object that counts has NaN, and so has AOS where a detection has no angle (alpha = -10).

    Raises ValueError if the numbers of frames differ, a class is unknown, or a detection has no score.
    """
    for name in classes:
        if name not in CLASSES:
            raise ValueError(f"class: expected one of {', '.join(CLASSES)}, got {name!r}")
    scorer = Scorer(labels, results)
    table: Table = {recall: {metric: {} for metric in METRICS} for recall in ("R40", "R11")}
    for name in classes:
        for difficulty in range(len(DIFFICULTIES)):
            for metric in METRICS:
                if metric == "AOS":
                    continue
                averages = scorer.average(metric, name, difficulty)
                kinds = [(metric, averages.precision)] + ([("AOS", averages.orientation)] if metric == "2D" else [])
                for kind, values in kinds:
                    for recall, value in zip(("R11", "R40"), values, strict=True):
                        table[recall][kind][name] = (*table[recall][kind].get(name, ()), value)
    return table
