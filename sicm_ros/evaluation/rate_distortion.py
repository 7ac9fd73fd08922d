# SPDX-License-Identifier: Apache-2.0
"""Rate against average precision: BD-rate, BD-AP, and bytes at equal AP (paper, section IV-B).

Bjontegaard's measures come from the package ``bjontegaard``, with piecewise cubic interpolation (pchip), which does not
overshoot where a curve is flat. They need curves that rise; AP over bytes has dents of noise, so neighbours that fall
are pooled first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Curve", "Difference", "bd_ap", "bd_rate", "bytes_at", "compare", "interval", "rising"]

LEAST_OVERLAP = 0.3  # of the smaller range of AP that two curves must share for a BD-rate


class Curve(NamedTuple):
    """Points of one system from few bytes to many: mean bytes of a pair (n,) and average precision in percent (n,)."""

    size: np.ndarray
    precision: np.ndarray


class Difference(NamedTuple):
    """What a system saves against an anchor; NaN where the curves share too little for it."""

    rate: float  # percent of the bytes at equal AP, negative if it needs fewer
    precision: float  # points of AP at equal bytes


def rising(curve: Curve) -> Curve:
    """The curve with log bytes and AP of neighbouring points averaged until both rise strictly (pooling of violators).

    Points without a size or an AP (NaN) are left out.
    """
    known = np.isfinite(curve.size) & (curve.size > 0) & np.isfinite(curve.precision)
    order = np.argsort(curve.size[known], kind="stable")
    groups: list[tuple[float, float, int]] = []  # sums of log bytes and of AP, number
    for size, precision in zip(curve.size[known][order], curve.precision[known][order], strict=True):
        groups.append((math.log(size), float(precision), 1))
        while len(groups) > 1 and not _rises(groups[-2], groups[-1]):
            last, before = groups.pop(), groups.pop()
            groups.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    if not groups:
        return Curve(np.zeros(0), np.zeros(0))
    logs, precisions, counts = np.array(groups).T
    return Curve(np.exp(logs / counts), precisions / counts)


def _rises(a: tuple[float, float, int], b: tuple[float, float, int]) -> bool:
    return b[0] / b[2] > a[0] / a[2] + 1e-9 and b[1] / b[2] > a[1] / a[2] + 1e-9


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """How much of the smaller of two ranges both cover, 0 to 1."""
    low, high = max(a.min(), b.min()), min(a.max(), b.max())
    smaller = min(np.ptp(a), np.ptp(b))
    return max(0.0, float((high - low) / smaller)) if smaller > 0 else 0.0


def bd_rate(anchor: Curve, test: Curve) -> float:
    """Percent of the anchor's bytes that the tested system needs more (less if negative) at equal AP.

    NaN where a curve has fewer than two points that rise, or both share less than ``LEAST_OVERLAP`` of the AP of the
    one with the smaller range.
    """
    import bjontegaard

    a, b = rising(anchor), rising(test)
    if min(len(a.size), len(b.size)) < 2 or _shared(a.precision, b.precision) < LEAST_OVERLAP:
        return math.nan
    return float(
        bjontegaard.bd_rate(
            a.size, a.precision, b.size, b.precision, method="pchip", require_matching_points=False, min_overlap=0
        )
    )


def bd_ap(anchor: Curve, test: Curve) -> float:
    """Points of AP that the tested system has more at equal bytes; NaN as in ``bd_rate``, with bytes in place of AP."""
    import bjontegaard

    a, b = rising(anchor), rising(test)
    if min(len(a.size), len(b.size)) < 2 or _shared(np.log(a.size), np.log(b.size)) < LEAST_OVERLAP:
        return math.nan
    return float(
        bjontegaard.bd_psnr(
            a.size, a.precision, b.size, b.precision, method="pchip", require_matching_points=False, min_overlap=0
        )
    )


def compare(anchor: Curve, test: Curve) -> Difference:
    """Both measures."""
    return Difference(bd_rate(anchor, test), bd_ap(anchor, test))


def bytes_at(curve: Curve, precision: float) -> float:
    """Bytes at which the curve reaches an AP, by linear interpolation of log bytes; NaN where it does not, and where it
    is above from its first point on."""
    pooled = rising(curve)
    if not len(pooled.size) or not pooled.precision[0] <= precision <= pooled.precision[-1]:
        return math.nan
    return float(np.exp(np.interp(precision, pooled.precision, np.log(pooled.size))))


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The middle 90 % of bootstrap values; NaN where a tenth of them or more is not a number."""
    array = np.asarray(values, np.float64)
    known = array[np.isfinite(array)]
    if len(known) <= 0.9 * len(array):
        return math.nan, math.nan
    low, high = np.quantile(known, [0.05, 0.95])
    return float(low), float(high)
