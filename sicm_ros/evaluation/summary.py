# SPDX-License-Identifier: Apache-2.0
"""What the outcomes of a comparison say: points with intervals, BD-rate and BD-AP, bytes at equal AP, costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..cluster import spread
from ..geometry import Object3D
from .kitti_ap import Scorer
from .latency import Spread
from .outcomes import Outcomes
from .rate_distortion import Curve, Difference, bytes_at, compare, interval
from .systems.system import Complexity, Outcome, SystemKind

__all__ = ["KEY_METRICS", "METRICS", "Bounded", "Comparison", "Gap", "Point", "Precision", "summarise"]

Precision = tuple[str, str]  # class and metric, as ``kitti_ap`` names them; moderate, R40
METRICS: tuple[Precision, ...] = tuple(
    (name, metric) for name in ("Car", "Pedestrian") for metric in ("2D", "BEV loose", "3D loose", "BEV", "3D")
)
# Those with intervals and BD-rates: the paper's (3D and BEV), and BEV at IoU 0.5, which varies least.
KEY_METRICS: tuple[Precision, ...] = (
    ("Car", "3D"),
    ("Car", "BEV"),
    ("Car", "BEV loose"),
    ("Pedestrian", "3D"),
    ("Pedestrian", "BEV"),
)


class Bounded(NamedTuple):
    """A figure and the middle 90 % of what a bootstrap over the frames gives for it."""

    value: float
    low: float
    high: float


@dataclass
class Point:
    """A system at one of its points, over all frames."""

    point: float
    size: float  # mean bytes of a pair
    estimate: float | None  # the same by likelihoods
    bits_per_pixel: float  # of the camera images, both views
    encode_s: Spread  # CPU seconds
    decode_s: Spread
    precision: dict[Precision, float]
    bounds: dict[Precision, tuple[float, float]] = field(default_factory=dict)


class Gap(NamedTuple):
    """BD-rate and BD-AP of a system against an anchor, by one metric."""

    rate: Bounded
    precision: Bounded


@dataclass
class Comparison:
    """All that a report shows."""

    frames: int
    kinds: list[SystemKind]
    points: dict[str, list[Point]]
    complexity: dict[str, Complexity]
    gaps: dict[str, dict[Precision, dict[str, Gap]]]  # by anchor, metric, system
    equal: dict[Precision, dict[str, list[float]]]  # bytes at each of ``targets`` of the metric
    targets: dict[Precision, list[float]]


class _Replicates(NamedTuple):
    """AP and mean bytes of one system: (points,) over all frames, and (replicates, points) over drawn ones."""

    points: list[Point]
    sizes: np.ndarray
    precisions: dict[Precision, np.ndarray]


def summarise(
    outcomes: Outcomes,
    frames: Sequence[str],
    kinds: Sequence[SystemKind],
    anchors: Sequence[str],
    replicates: int = 200,
    seed: int = 1,
    workers: int = 1,
    cluster: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Summarise what systems made of ``frames``, which all of them have.

    ``anchors``: names of the systems that the others are compared with, where they are among ``kinds``. Each of
    ``replicates`` bootstrap samples draws the frames anew, the same ones for all systems.
    """
    labels, pixels = outcomes.labels(frames)
    drawn = np.random.default_rng(seed).integers(0, len(frames), (replicates, len(frames)))
    by_name: dict[str, _Replicates] = {}
    items = ((kind.name, _rows(outcomes.of(kind.name), frames)) for kind in kinds)
    with closing(spread(_replicate, items, labels, pixels, drawn, workers=workers, cluster=cluster)) as results:
        for (name, _), found in results:
            by_name[name] = found
            if progress is not None:
                progress(len(by_name), len(kinds))
    gaps = {anchor: _gaps(anchor, by_name) for anchor in anchors if anchor in by_name}
    targets = _targets(by_name.get("uncompressed"))
    curves = {
        metric: {name: _curve(found.points, metric) for name, found in by_name.items() if len(found.points) > 1}
        for metric in targets
    }
    equal = {
        metric: {
            name: [bytes_at(curve, target) for target in targets[metric]] for name, curve in curves[metric].items()
        }
        for metric in targets
    }
    complexity = {kind.name: outcomes.complexity(kind.name) or Complexity(math.nan, math.nan) for kind in kinds}
    points = {kind.name: by_name[kind.name].points for kind in kinds}
    return Comparison(len(frames), list(kinds), points, complexity, gaps, equal, targets)


def _rows(points: dict[float, dict[str, Outcome]], frames: Sequence[str]) -> dict[float, list[Outcome]]:
    return {point: [found[frame] for frame in frames] for point, found in points.items()}


def _replicate(
    item: tuple[str, dict[float, list[Outcome]]],
    labels: list[list[Object3D]],
    pixels: list[int],
    drawn: np.ndarray,
) -> _Replicates:
    """The points of a system, and what they are in each bootstrap sample. Runs in a worker."""
    points = []
    sizes = np.zeros((len(drawn), len(item[1])))
    precisions = {metric: np.zeros(sizes.shape) for metric in KEY_METRICS}
    for column, (value, outcomes) in enumerate(item[1].items()):
        scorer = Scorer(labels, [outcome.objects for outcome in outcomes])
        size = np.array([outcome.size for outcome in outcomes], np.float64)
        estimates = [outcome.estimate for outcome in outcomes if outcome.estimate is not None]
        point = Point(
            value,
            float(size.mean()),
            float(np.mean(estimates)) if len(estimates) == len(outcomes) else None,
            float((8 * size / (2 * np.array(pixels))).mean()),
            Spread.of([outcome.encode_s for outcome in outcomes]),
            Spread.of([outcome.decode_s for outcome in outcomes]),
            {(name, metric): scorer.average(metric, name).precision[1] for name, metric in METRICS},
        )
        points.append(point)
        sizes[:, column] = size[drawn].mean(1)
        for (name, metric), values in precisions.items():
            values[:, column] = [scorer.average(metric, name, frames=chosen).precision[1] for chosen in drawn]
            point.bounds[name, metric] = interval(values[:, column])
    return _Replicates(points, sizes, precisions)


def _curve(points: Sequence[Point], metric: Precision) -> Curve:
    return Curve(np.array([p.size for p in points]), np.array([p.precision[metric] for p in points]))


def _gaps(anchor: str, by_name: dict[str, _Replicates]) -> dict[Precision, dict[str, Gap]]:
    """Every system with a curve against the anchor, by each key metric."""
    base = by_name[anchor]
    gaps: dict[Precision, dict[str, Gap]] = {}
    for metric in KEY_METRICS:
        gaps[metric] = {}
        for name, found in by_name.items():
            if name == anchor or len(found.points) < 2:
                continue
            whole = compare(_curve(base.points, metric), _curve(found.points, metric))
            drawn = [
                compare(Curve(size_a, ap_a), Curve(size_b, ap_b))
                for size_a, ap_a, size_b, ap_b in zip(
                    base.sizes, base.precisions[metric], found.sizes, found.precisions[metric], strict=True
                )
            ]
            gaps[metric][name] = Gap(_bounded(whole, drawn, 0), _bounded(whole, drawn, 1))
    return gaps


def _bounded(whole: Difference, drawn: Sequence[Difference], column: int) -> Bounded:
    return Bounded(whole[column], *interval([difference[column] for difference in drawn]))


def _targets(uncompressed: _Replicates | None) -> dict[Precision, list[float]]:
    """For each key metric the AP of the uncompressed detector less 10, 5 and 2 points, where that is above zero."""
    if uncompressed is None:
        return {}
    best = {metric: uncompressed.points[0].precision[metric] for metric in KEY_METRICS}
    return {metric: [value - d for d in (10, 5, 2) if value - d > 0] for metric, value in best.items() if value > 0}
