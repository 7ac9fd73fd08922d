# SPDX-License-Identifier: Apache-2.0
"""MVSFC-Net: published sizes, shapes, cost volumes by brute force, anchors there and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sicm_ros.geometry import InputTransform, Object3D, StereoRig
from sicm_ros.model_store import load_config
from sicm_ros.networks.anchors import Anchors, rig_tensor
from sicm_ros.networks.complexity import count_complexity
from sicm_ros.networks.config import AnalysisConfig, AnchorConfig, MvsfcConfig
from sicm_ros.networks.context_transform import BiDirectionalContextualTransform
from sicm_ros.networks.cost_volume import correlation_volume
from sicm_ros.networks.detection import (
    Detections,
    DisparityRefinement,
    expected_disparity,
    non_maximum_suppression,
    to_objects,
)
from sicm_ros.networks.mvsfc_net import MvsfcNet
from sicm_ros.training.targets import object_row

MODELS = Path(__file__).parents[1] / "models"
KITTI_P2 = np.array([[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]])
KITTI_P3 = np.array([[721.5377, 0, 609.5593, -339.5242], [0, 721.5377, 172.854, 2.199936], [0, 0, 1, 0.002729905]])

SMALL = MvsfcConfig(
    height=64,
    width=128,
    classes=("Car", "Pedestrian"),
    blocks=(1, 1, 1),
    stem_channels=8,
    channels=(8, 16, 16),
    joint_channels=(8, 8),
    latent_channels=8,
    hyper_channels=8,
    attention="epipolar",
    pad_features=False,
    context="checkerboard",
    variable_rate=True,
    analysis=AnalysisConfig(
        correlation_bins=(8, 8),
        correlations_per_pixel=2,
        concat_bins=4,
        concat_channels=4,
        fusion_channels=(16, 40, 80),
        head_stride=8,
        head_channels=(16, 16),
        head_output_kernel=1,
        disparity_bins=16,
        disparity_channels=(8,),
        depth_feedback=True,
        anchors=AnchorConfig(12.0, 4, 2.0),
    ),
)


def small_net(**changes: object) -> MvsfcNet:
    torch.manual_seed(0)
    net = MvsfcNet(replace(SMALL, **changes)).eval()
    net.analysis.anchors.reference_focal_baseline.fill_(100.0)
    return net


@pytest.mark.parametrize(("feedback", "parameters", "macs"), [(True, 188.4e6, 330e9), (False, 181.05e6, 311e9)])
def test_the_papers_network_has_the_published_size(feedback: bool, parameters: float, macs: float) -> None:
    config = replace(load_config(MODELS / "mvsfc-r34" / "config.yaml"), decoder_feedback=feedback)
    total = count_complexity(config)["total"]
    assert total[0] == pytest.approx(parameters, rel=0.01)
    assert total[1] == pytest.approx(macs, rel=0.01)


def test_the_parts_of_the_papers_network_have_the_published_sizes() -> None:
    counts = count_complexity(load_config(MODELS / "mvsfc-r34" / "config.yaml"))
    assert counts["backbone"][0] == pytest.approx(8.17e6, rel=0.005)
    assert counts["backbone"][1] == pytest.approx(44.4e9, rel=0.005)
    assert counts["smfc_encoder"][0] == pytest.approx((8.77 + 22.35) * 1e6, rel=0.005)
    assert counts["smfc_decoder"][0] == pytest.approx((16.63 + 22.35) * 1e6, rel=0.005)
    assert counts["entropy_model"][0] == pytest.approx((8.07 + 10.64) * 1e6, rel=0.005)
    assert counts["analysis"][0] == pytest.approx((26.44 + 65.0) * 1e6, rel=0.005)


@pytest.mark.parametrize("context", ["raster", "checkerboard"])
@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("feedback", [True, False])
def test_shapes_from_views_to_boxes(context: str, pad: bool, feedback: bool) -> None:
    net = small_net(context=context, pad_features=pad, decoder_feedback=feedback, height=72)
    left, right = torch.randn(2, 2, 3, 72, 128)
    features = net.features(left, right)
    assert [tuple(f.shape) for f, _ in features] == [(2, 8, 18, 32), (2, 16, 9, 16), (2, 16, 5, 8)]
    latents = net.latents(features)
    assert all(y.shape == (2, 8, *net.config.latent_size) for y in latents)
    assert net.config.latent_size == ((4, 4) if pad else (3, 4))
    out = net(left, right, 2.5)
    assert [tuple(f.shape) for f, _ in out.reconstruction.features] == [tuple(f.shape) for f, _ in features]
    assert out.reconstruction.volumes is None
    anchors = net.analysis.anchors
    assert len(anchors.boxes) == 9 * 16 * 12
    assert out.analysis.class_logits.shape == (2, len(anchors.boxes), 2)
    assert out.analysis.regression.shape == (2, len(anchors.boxes), 12)
    assert out.bits_left.shape == out.bits_right.shape == (2,)


def test_halves_hold_their_own_parts_and_share_names() -> None:
    whole = set(MvsfcNet(SMALL).state_dict())
    vehicle, remote = (set(MvsfcNet(SMALL, half).state_dict()) for half in ("vehicle", "remote"))
    assert vehicle | remote == whole
    assert {k.split(".")[0] for k in vehicle} == {"backbone", "smfc_encoder", "entropy_model"}
    assert {k.split(".")[0] for k in remote} == {"smfc_decoder", "analysis", "entropy_model"}
    assert any(k.startswith("analysis.pyramid.expand4.") for k in remote)


@pytest.mark.parametrize("per_pixel", [1, 2])
def test_correlation_equals_a_loop_over_the_shifts(per_pixel: int) -> None:
    left, right = torch.randn(2, 1, 3, 4, 37, dtype=torch.float64)
    volume = correlation_volume(left, right, 6, per_pixel)
    for i in range(6):
        for x in range(37):
            position = x - i / per_pixel
            if position < 0:
                expected = torch.zeros(1, 4, dtype=torch.float64)
            else:
                low, part = int(position), position - int(position)
                sample = (1 - part) * right[..., low] + part * right[..., min(low + 1, 36)]
                expected = (left[..., x] * sample).mean(1)
            torch.testing.assert_close(volume[:, i, :, x], expected)


def test_refinement_sees_no_difference_at_the_right_disparity() -> None:
    """A ramp shifted by 6 pixels is equal to itself warped by 6; the parabola says how far off another disparity is."""
    refinement = DisparityRefinement(4, 8).eval()
    seen: list[torch.Tensor] = []
    refinement.layers.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    column = torch.arange(24.0).expand(1, 4, 5, 24)
    left, right = column, column + 6 / 4  # what lies at x on the left lies at x - 6 / 4 on the right
    for disparity in (6.0, 7.0, 4.5):
        refined = refinement(left, right, torch.full((1, 5, 24), disparity))
        assert (refined == disparity).all(), "no residual before training"
        x = seen.pop()[:, :, :, 3:-2]
        for rows, value in ((x[:, 4:8], (disparity - 6) / 4), (x[:, -1], 6 - disparity)):
            torch.testing.assert_close(rows, torch.full_like(rows, value), atol=1e-4, rtol=0)
        costs = torch.tensor([((disparity - 6) / 4 + k) ** 2 for k in (-0.5, 0.0, 0.5)])
        torch.testing.assert_close(x[0, 8:-1, 2, 10], costs, atol=1e-5, rtol=0)


def test_refinement_places_its_samples_exactly_in_bfloat16() -> None:
    """Features that are bfloat16 numbers, warped to where they match exactly: no difference is left under autocast."""
    torch.manual_seed(0)
    refinement = DisparityRefinement(4, 8).eval()
    w, shift = 180, 7
    right = torch.randn(1, 4, 6, w).bfloat16()
    left = torch.roll(right, shift, 3)
    seen: list[torch.Tensor] = []
    refinement.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        refinement(left, right, torch.full((1, 6, w), 4.0 * shift))
    difference = seen[0][:, 4:8, :, shift:]  # behind the left map's own channels
    assert float(difference.float().abs().max()) < 1e-3


def test_expected_disparity_is_exact_under_autocast() -> None:
    logits = torch.randn(1, 96, 2, 3) * 4
    with torch.autocast("cpu", torch.bfloat16):
        mixed = expected_disparity(logits)
    torch.testing.assert_close(mixed, expected_disparity(logits), rtol=0, atol=1e-4)


def test_refinement_learns_what_is_left_of_a_disparity() -> None:
    torch.manual_seed(0)
    refinement = DisparityRefinement(4, 8).train()
    optimizer = torch.optim.Adam(refinement.parameters(), 1e-2)
    wide = torch.randn(8, 4, 4, 68).cumsum(3) / 4
    errors = []
    for _ in range(150):
        shift = torch.rand(8, 1, 1) * 4 - 2  # pixels: up to half a cell either way, about 8
        column = torch.arange(32)[None, None] + 8 + shift / 4
        low, part = column.long(), column - column.floor()
        index = low[:, None].expand(8, 4, 4, 32)
        left = wide[..., 6:38]
        right = torch.lerp(wide.gather(3, index), wide.gather(3, index + 1), part[:, None].expand_as(index))
        # right(x) = wide(x + 8 + shift / 4) and left(x) = wide(x + 6): disparity is 8 + shift
        refined = refinement(left, right, torch.full((8, 4, 32), 8.0))
        loss = (refined - 8 - shift)[..., 4:].abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[0] == pytest.approx(1.0, abs=0.4)
    assert np.mean(errors[-10:]) < 0.4 * errors[0]


def test_strided_stem_starts_as_the_plain_one() -> None:
    torch.manual_seed(0)
    plain, strided = MvsfcNet(SMALL).eval(), MvsfcNet(replace(SMALL, strided_stem=True)).eval()
    missing = strided.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys and all(k.startswith("backbone.strided.") for k in missing.missing_keys)
    views = torch.randn(2, 1, 3, 64, 128)
    for (a, b), (c, d) in zip(plain.features(*views), strided.features(*views), strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


@pytest.mark.parametrize("kind", ["efficient", "epipolar"])
def test_contextual_transform_uses_the_other_view(kind: str) -> None:
    torch.manual_seed(0)
    transform = BiDirectionalContextualTransform(16, kind).eval()
    assert sum(p.numel() for p in transform.parameters()) == pytest.approx(2 * 94 * 16**2, rel=0.03)
    left, right = torch.randn(2, 1, 16, 6, 10)
    changed = right.clone()
    changed[:, :, 5] += 3.0
    before, after = transform(left, right)[0], transform(left, changed)[0]
    assert not torch.allclose(before, after)


def test_anchors_decode_what_they_encode() -> None:
    anchors = Anchors(SMALL)
    anchors.reference_focal_baseline.fill_(150.0)
    anchors.prior_mean[..., 0], anchors.prior_std[..., 0] = 20.0, 5.0
    transform = InputTransform(1242, 375, 100, 128, 64)
    rig = transform.rig(StereoRig.from_projections(KITTI_P2, KITTI_P3))
    rng = np.random.default_rng(0)
    objects = []
    for _ in range(50):
        x, z, ry = rng.uniform(-8, 8), rng.uniform(5, 50), rng.uniform(-np.pi, np.pi)
        alpha = (ry - np.arctan2(x, z) + np.pi) % (2 * np.pi) - np.pi
        objects.append(Object3D("Car", (10.0, 20.0, 40.0, 50.0), 1.5, 1.7, 4.1, x, 1.6, z, ry, alpha, 0.0, 0))
    rows = torch.tensor([object_row(o, rig) for o in objects])
    rigs = rig_tensor([rig])
    index = torch.randint(len(anchors.boxes), (50,), generator=torch.Generator().manual_seed(1))
    k = torch.zeros(50, dtype=torch.long)
    boxes = anchors.decode(anchors.encode(rows, k, index, rigs[0]), torch.sin(rows[:, 7]) > 0, k, index, rigs[0])
    expected = torch.tensor(
        [[*o.bbox, o.height, o.width, o.length, o.x, o.y, o.z, o.rotation_y, o.alpha] for o in objects],
        dtype=torch.float32,
    )
    turn = torch.remainder(boxes[:, 10:12] - expected[:, 10:12] + np.pi, 2 * np.pi) - np.pi
    torch.testing.assert_close(boxes[:, :10], expected[:, :10], atol=2e-3, rtol=1e-3)
    assert turn.abs().max() < 2e-3


def test_depth_priors_scale_with_the_rig() -> None:
    """The same image of a rig with twice the baseline shows things twice as far."""
    anchors = Anchors(SMALL)
    anchors.reference_focal_baseline.fill_(100.0)
    anchors.prior_mean[..., 0] = 20.0
    near, far = (
        rig_tensor([StereoRig(100.0, 100.0, 64.0, 32.0, (0.0, 0.0, 0.0), (-b * 100, 0.0, 0.0))]) for b in (1.0, 2.0)
    )
    k, index = torch.zeros(1, dtype=torch.long), torch.tensor([100])
    z = [float(anchors.decode(torch.zeros(1, 12), torch.tensor([True]), k, index, r[0])[0, 9]) for r in (near, far)]
    assert z == pytest.approx([20.0, 40.0])


def test_suppression_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 4]], float)
    assert non_maximum_suppression(boxes, np.array([0.5, 0.9, 0.3, 0.2]), 0.4).tolist() == [1, 2, 3]
    assert non_maximum_suppression(boxes[:0], np.zeros(0), 0.4).tolist() == []


def test_objects_are_in_pixels_of_the_camera_image_and_inside_it() -> None:
    transform = InputTransform(1242, 375, 100, 640, 144)
    row = np.array([[-5.0, 10.0, 100.0, 150.0, 1.5, 1.6, 3.9, 1.0, 1.6, 20.0, 0.3, 0.25, 50.0, 70.0]])
    (o,) = to_objects(Detections(row, np.array([0.7]), np.array([1])), transform, ("Car", "Pedestrian"))
    assert o.label == "Pedestrian" and o.score == pytest.approx(0.7)
    assert o.bbox[0] == 0 and o.bbox[3] == 374
    scale = transform.scaled_width / 1242
    assert o.bbox[1] == pytest.approx((10 + 0.5) / transform.scale - 0.5 + 100)
    assert o.bbox[2] == pytest.approx((100 + 0.5) / scale - 0.5)
    assert (o.height, o.width, o.length, o.x, o.y, o.z) == (1.5, 1.6, 3.9, 1.0, 1.6, 20.0)


def test_training_sees_the_features_that_decompression_gives() -> None:
    """In evaluation mode the forward pass and the way through the reconstruction of its own latents agree exactly."""
    net = small_net()
    left, right = torch.randn(2, 1, 3, 64, 128)
    with torch.no_grad():
        coded = net.entropy_model(*net.latents(net.features(left, right)), 3.0)
        expected = net.reconstruct(coded.left, coded.right)
        got = net(left, right, 3.0).reconstruction
    for scale, other in zip(expected.features, got.features, strict=True):
        for a, b in zip(scale, other, strict=True):
            assert torch.equal(a, b)


def vehicle_matching(**changes: object) -> MvsfcNet:
    analysis = replace(SMALL.analysis, depth_feedback=True, disparity_refinement=0)
    return with_outputs(small_net(matching="vehicle", analysis=analysis, **changes))


def with_outputs(net: MvsfcNet) -> MvsfcNet:
    """The network with outputs that depend on its input; those of a new one are constant."""
    for layer in (net.analysis.head.class_output, net.analysis.head.box_output):
        torch.nn.init.normal_(layer.weight)
    return net


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("pad", [True, False])
def test_volumes_of_the_vehicle_are_coded_and_f0_is_not_needed(pad: bool, feedback: bool) -> None:
    net = vehicle_matching(pad_features=pad, decoder_feedback=feedback, height=72)
    left, right = torch.randn(2, 2, 3, 72, 128)
    with torch.no_grad():
        features = net.features(left, right)
        volumes = net.match(features)
        assert volumes is not None and volumes.shape == (2, SMALL.analysis.fusion_channels[1], 9, 16)
        latents = net.latents(features)
        whole, lean = net.reconstruct(*latents), net.reconstruct(*latents, with_f0=False)
        assert whole.volumes is not None and whole.volumes.shape == volumes.shape
        assert whole.features[0] is not None and whole.features[0][0].shape == features[0][0].shape
        assert lean.features[0] is None
        one, other = net.detect_decoded(whole), net.detect_decoded(lean)
    assert torch.equal(one.regression, other.regression) and torch.equal(one.class_logits, other.class_logits)
    changed = net.latents(features, volumes + 1.0)
    assert not torch.equal(changed[0], latents[0])


def test_matching_is_in_the_half_that_does_it() -> None:
    whole = vehicle_matching()
    vehicle, remote = (set(MvsfcNet(whole.config, half).state_dict()) for half in ("vehicle", "remote"))
    assert vehicle | remote == set(whole.state_dict())
    assert {k.split(".")[0] for k in vehicle} == {"backbone", "matching", "smfc_encoder", "entropy_model"}
    assert {k.split(".")[0] for k in remote} == {"smfc_decoder", "analysis", "entropy_model"}
    assert not any("expand4" in k or "block4" in k or "expand8" in k for k in remote)


def test_matching_gives_the_same_boxes_wherever_it_is_done() -> None:
    """The uncompressed network with the parts of one that matches remotely: equal outputs, but for the disparity."""
    remote, vehicle = with_outputs(small_net()), vehicle_matching()
    names = {k.replace("analysis.pyramid.", "matching."): k for k in remote.state_dict()}
    state = remote.state_dict()
    own = vehicle.state_dict()
    vehicle.load_state_dict(
        {
            k: state[names.get(k, k)]
            for k in own
            if names.get(k, k) in state and state[names.get(k, k)].shape == own[k].shape
        },
        strict=False,
    )
    left, right = torch.randn(2, 1, 3, 64, 128)
    with torch.no_grad():
        a, b = (net.detect(net.features(left, right)) for net in (remote, vehicle))
    assert a.class_logits.std() > 0.1 and torch.equal(a.class_logits, b.class_logits)


def test_refinement_without_f0_is_refused() -> None:
    with pytest.raises(ValueError, match="disparity_refinement"):
        small_net(matching="vehicle", analysis=replace(SMALL.analysis, depth_feedback=True, disparity_refinement=8))
