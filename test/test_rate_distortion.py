# SPDX-License-Identifier: Apache-2.0
"""BD-rate, BD-AP, pooling, bytes at equal AP."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import missing

from sicm_ros.evaluation.rate_distortion import Curve, bd_ap, bd_rate, bytes_at, compare, interval, rising

MISSING = missing("bjontegaard")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

A = Curve(np.array([600.0, 1200, 2500, 5000]), np.array([20.0, 40, 52, 57]))
points = st.lists(st.tuples(st.floats(50, 1e5), st.floats(0, 100)), min_size=1, max_size=8)


def curve(*pairs):
    size, precision = zip(*pairs, strict=True)
    return Curve(np.array(size, float), np.array(precision, float))


@given(points)
def test_a_pooled_curve_rises_and_keeps_the_means(pairs):
    pooled = rising(curve(*pairs))
    assert (np.diff(pooled.size) > 0).all() and (np.diff(pooled.precision) > 0).all()
    assert pooled.precision.min() >= min(p for _, p in pairs) - 1e-9
    assert pooled.precision.max() <= max(p for _, p in pairs) + 1e-9


def test_pooling_averages_what_falls():
    pooled = rising(curve((1000, 30), (2000, 50), (4000, 46), (8000, 60)))
    np.testing.assert_allclose(pooled.size, [1000, math.sqrt(2000 * 4000), 8000])
    np.testing.assert_allclose(pooled.precision, [30, 48, 60])
    np.testing.assert_array_equal(rising(A).precision, A.precision)
    assert len(rising(curve((0, 50), (math.nan, 50), (100, math.nan))).size) == 0


@settings(deadline=None)
@given(st.floats(0.1, 8))
def test_a_share_of_the_bytes_at_every_ap_is_the_bd_rate(share):
    test = Curve(A.size * share, A.precision)
    assert bd_rate(A, test) == pytest.approx(100 * (share - 1), abs=1e-6)


@settings(deadline=None)
@given(st.floats(-15, 40))
def test_a_distance_in_ap_at_every_size_is_the_bd_ap(points_more):
    assert bd_ap(A, Curve(A.size, A.precision + points_more)) == pytest.approx(points_more, abs=1e-6)


def test_measures_of_other_curves():
    """Against Bjontegaard's integral done by hand: between straight lines over log bytes it is a mean of two ends."""
    anchor, test = curve((1000, 20), (4000, 40)), curve((500, 20), (4000, 50))
    # At AP 20 half of the bytes; at 40 the tested curve is two thirds of its three octaves above 500.
    at_40 = math.log2(500) + 20 / 30 * 3 - math.log2(4000)
    assert bd_rate(anchor, test) == pytest.approx(100 * (2 ** ((-1 + at_40) / 2) - 1), abs=0.01)
    # The same in the other direction is the inverse ratio.
    back = bd_rate(test, anchor)
    assert (1 + back / 100) * (1 + bd_rate(anchor, test) / 100) == pytest.approx(1, abs=1e-6)
    assert compare(anchor, test).precision > 0


def test_curves_that_share_too_little_have_no_bd_rate():
    high = Curve(A.size, A.precision + 36)
    assert math.isnan(bd_rate(A, high)) and bd_ap(A, high) == pytest.approx(36)
    far = Curve(A.size * 20, A.precision)
    assert math.isnan(bd_ap(A, far)) and bd_rate(A, far) == pytest.approx(1900)
    assert math.isnan(bd_rate(A, curve((1000, 30))))
    flat = Curve(A.size, np.zeros(4))
    assert math.isnan(bd_rate(A, flat)) and math.isnan(bd_rate(flat, A))


def test_bytes_at_an_ap():
    assert bytes_at(A, 30) == pytest.approx(600 * math.sqrt(2))
    assert bytes_at(A, 57) == pytest.approx(5000)
    assert math.isnan(bytes_at(A, 58)) and math.isnan(bytes_at(A, 19))


def test_an_interval_says_nothing_where_the_figure_often_is_none():
    low, high = interval(np.arange(101))
    assert (low, high) == pytest.approx((5, 95))
    assert all(math.isnan(v) for v in interval([1.0] * 8 + [math.nan] * 2))
    assert all(math.isfinite(v) for v in interval([1.0] * 19 + [math.nan]))
