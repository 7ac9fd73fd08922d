# SPDX-License-Identifier: Apache-2.0
"""The network without SMFC, and the configurations of the paper's comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_material import RIG, TINY, TINY_MODEL
from test_networks import SMALL, small_net

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.model_store import ModelError, fingerprint, load_config, load_model, save_model
from sicm_ros.networks.complexity import count_complexity
from sicm_ros.networks.mvsfc_net import MvsfcNet
from sicm_ros.training.config import load_train_config

MODELS = Path(__file__).parents[1] / "models"
COMPARISON = Path(__file__).parents[1] / "benchmarks" / "comparison"
SEPARATE = replace(TINY, joint_features=False)


@pytest.mark.parametrize("stride", [16, 32])
def test_scales_and_views_are_coded_apart(stride: int) -> None:
    net = small_net(joint_features=False, latent_stride=stride, height=72)
    views = torch.randn(2, 2, 3, 72, 128)
    with torch.no_grad():
        features = net.features(*views)
        latents = net.latents(features)
        assert all(y.shape == (2, 8, *net.config.latent_size) for y in latents)
        decoded = net.reconstruct(*latents)
        assert decoded.volumes is None
        for scale, original in zip(decoded.features, features, strict=True):
            assert scale is not None
            assert all(a.shape == b.shape and a.min() >= 0 for a, b in zip(scale, original, strict=True))
        changed = net.latents((features[0], (features[1][0], features[1][1] + 1), features[2]))
    assert torch.equal(changed[0], latents[0]), "the left latent knows nothing of the right view"
    moved = (changed[1] != latents[1]).flatten(2).any(2)[0]
    assert moved.tolist() == [False] * 2 + [True] * 2 + [False] * 4, "f1 has two of eight channels"


def test_every_parameter_learns_without_smfc() -> None:
    net = small_net(joint_features=False).train()
    out = net(*torch.randn(2, 2, 3, 64, 128), 2.0)
    terms = [x.square().mean() for x in out.analysis if x is not None]
    (sum(terms) + sum(f.mean() for pair in out.reconstruction.features for f in pair) + out.bits_left.sum()).backward()
    codec = [*net.smfc_encoder.named_parameters(), *net.smfc_decoder.named_parameters()]
    # The bits of the right view reach the right encoder through the left view's context too.
    assert not [name for name, p in codec if p.grad is None or not p.grad.any()]


def test_packets_go_through_a_stored_model_without_smfc(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = MvsfcNet(SEPARATE)
    net.analysis.anchors.reference_focal_baseline.fill_(100.0)
    number = save_model(tmp_path / "separate", SEPARATE, net.state_dict())
    model = load_model(tmp_path / "separate")
    assert model.config == SEPARATE and model.fingerprint == number
    left, right = np.random.default_rng(1).integers(0, 256, (2, 375, 1242, 3), np.uint8)
    coded = StereoEncoder(model).encode(left, right, RIG, rate=4)
    assert StereoDecoder(model).decode(coded.packet).header.rate == 4
    decoded = StereoDecoder(model).reconstruct(coded.packet)
    assert [tuple(f[0].shape) for f in decoded] == [(1, 4, 24, 72), (1, 4, 12, 36), (1, 4, 6, 18)]


def test_the_switch_leaves_stored_models_as_they_are() -> None:
    model = load_model(TINY_MODEL)
    assert model.config.joint_features
    tensors = {name: torch.ones(2) for name in "ab"}
    assert fingerprint(SEPARATE, tensors) != fingerprint(TINY, tensors)


def test_what_has_no_meaning_without_smfc_is_said(tmp_path: Path) -> None:
    save_model(tmp_path, TINY, MvsfcNet(TINY).state_dict())
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(
        text.replace("joint_features: true", "joint_features: false").replace("matching: remote", "matching: vehicle")
    )
    with pytest.raises(ModelError, match="joint_features: false needs matching: remote"):
        load_model(tmp_path)
    assert SMALL.joint_features


def test_the_models_of_the_comparison_are_of_the_default_models_size() -> None:
    default = load_config(MODELS / "sicm-compact" / "config.yaml")
    macs = count_complexity(default)["total"][1]
    for name, joint in (("mvsfc-paper", True), ("mvsfc-without-smfc", False)):
        config = load_config(COMPARISON / name / "config.yaml")
        assert (config.matching, config.context, config.attention) == ("remote", "raster", "efficient")
        assert config.decoder_feedback and config.joint_features == joint
        assert config.lambdas == default.lambdas and config.rate_count == 6 and config.latent_stride == 16
        assert config.channels == default.channels and config.analysis.anchors == default.analysis.anchors
        assert 0.5 * macs < count_complexity(config)["total"][1] < 1.1 * macs
        load_train_config(COMPARISON / name)
