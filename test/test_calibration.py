# SPDX-License-Identifier: Apache-2.0
"""Scores: what they are worth, and their calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_networks import small_net, with_outputs

from sicm_ros.evaluation.calibration import calibration_error, fit_calibration, judge, reliability
from sicm_ros.geometry import Object3D, input_transform
from sicm_ros.networks.anchors import rig_tensor
from sicm_ros.render.layouts import KITTI_RIG


def car(x: float, z: float, score: float | None = None, label: str = "Car") -> Object3D:
    u = 600 + 700 * x / z
    return Object3D(label, (u - 40, 150, u + 40, 200), 1.5, 1.7, 4.0, x, 1.6, z, 0.0, 0.0, score=score)


def test_a_box_is_right_once_and_neighbours_and_unlabelled_regions_do_not_count() -> None:
    truth = [car(0, 20), car(8, 20, label="Van"), replace(car(-8, 20), label="DontCare")]
    found = [car(0.1, 20, 0.6), car(0, 20, 0.9), car(8, 20, 0.8), car(-8, 20, 0.7), car(0, 40, 0.5)]
    scores, right = judge([truth, []], [found, [car(0, 10, 0.4)]], "Car")
    assert scores.tolist() == [0.9, 0.6, 0.5, 0.4]
    assert right.tolist() == [True, False, False, False]


def test_the_fit_finds_the_distortion_of_scores() -> None:
    rng = np.random.default_rng(5)
    logit = rng.normal(0, 2, 40000)
    right = rng.random(len(logit)) < 1 / (1 + np.exp(-(0.5 * logit - 1.0)))
    scores = 1 / (1 + np.exp(-logit))
    scale, offset = fit_calibration(scores, right)
    assert scale == pytest.approx(0.5, abs=0.03) and offset == pytest.approx(-1.0, abs=0.03)
    edges = np.linspace(0, 1.0001, 11).tolist()
    before = calibration_error(reliability(scores, right, edges))
    after = calibration_error(reliability(1 / (1 + np.exp(-(scale * logit + offset))), right, edges))
    assert before > 0.2 and after < 0.01


def test_the_fit_is_finite_for_any_boxes() -> None:
    assert fit_calibration(np.array([]), np.array([], bool)) == (1.0, 0.0)
    for right in (True, False):
        fit = fit_calibration(np.array([0.2, 0.9, 1.0]), np.full(3, right))
        assert np.isfinite(fit).all() and fit[0] > 0


def test_reliability_of_known_boxes() -> None:
    rows = reliability(np.array([0.1, 0.2, 0.7, 0.9]), np.array([False, True, True, True]), [0.0, 0.5, 0.8, 1.0])
    assert [r.boxes for r in rows] == [2, 1, 1]
    assert [r.right for r in rows] == [0.5, 1.0, 1.0]
    assert calibration_error(rows) == pytest.approx((2 * 0.35 + 0.3 + 0.1) / 4)


def test_the_network_applies_the_calibration_of_each_class() -> None:
    plain = with_outputs(small_net())
    calibration = ((0.5, -0.2), (2.0, 0.1))
    analysis = replace(plain.config.analysis, score_calibration=calibration)
    net = small_net(analysis=analysis)
    net.load_state_dict(plain.state_dict())
    torch.manual_seed(3)
    left, right = torch.randn(2, 1, 3, 64, 128)
    transform = input_transform(1242, 375, 0, 128, 64)
    rigs = rig_tensor([transform.rig(KITTI_RIG)], "cpu")
    with torch.no_grad():
        output = plain.detect(plain.features(left, right))
        before, after = (n.analysis.decode(output, rigs, 0.0, 2.0, [transform])[0] for n in (plain, net))
    assert len(before.scores) > 10
    logits = output.class_logits[0].double()
    expected = torch.stack([logits[:, k] * s + o for k, (s, o) in enumerate(calibration)], 1).sigmoid().max(1).values
    assert all(np.abs(expected.numpy() - score).min() < 1e-6 for score in after.scores)
    assert not all(np.abs(expected.numpy() - score).min() < 1e-6 for score in before.scores)
    with pytest.raises(ValueError, match="score_calibration"):
        small_net(analysis=replace(analysis, score_calibration=((1.0, 0.0),)))
