# SPDX-License-Identifier: Apache-2.0
"""Weights of one network as the beginning of another."""

from __future__ import annotations

import torch
from test_networks import small_net, vehicle_matching, with_outputs

from sicm_ros.training.initial_weights import adopt


def test_a_network_of_the_same_shape_becomes_the_same() -> None:
    trained, net = small_net(), with_outputs(small_net())
    assert adopt(net, trained.state_dict()) == ([], [])
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in net.state_dict().items())


def test_what_matches_remotely_matches_on_the_vehicle() -> None:
    trained, net = with_outputs(small_net()), vehicle_matching()
    untouched, partial = adopt(net, trained.state_dict())
    assert {name.split(".")[0] for name in untouched} == {"smfc_decoder"}
    assert all(name.startswith("smfc_decoder.volumes.") for name in untouched)
    assert partial == ["smfc_encoder.unit1.left.0.weight"]
    left, right = torch.randn(2, 1, 3, 64, 128)
    with torch.no_grad():
        one, other = (n.detect(n.features(left, right)) for n in (trained, net))
    assert one.class_logits.std() > 0.1 and torch.equal(one.class_logits, other.class_logits)
    back = small_net()
    adopt(back, net.state_dict())
    assert torch.equal(
        back.analysis.pyramid.expand8.primary[0].weight, trained.analysis.pyramid.expand8.primary[0].weight
    )


def test_new_channels_come_after_the_trained_ones() -> None:
    trained, net = small_net(), small_net(joint_channels=(8, 24))
    adopt(net, trained.state_dict())
    name = "smfc_encoder.unit1.right.0.weight"
    old, new = trained.state_dict()[name], net.state_dict()[name]
    assert old.shape[0] == 8 and new.shape[0] == 24
    assert torch.equal(new[:8], old) and 0 < new[8:].std() < old.std()
    narrow = small_net(joint_channels=(8, 4))
    before = narrow.state_dict()[name].clone()
    untouched, _ = adopt(narrow, trained.state_dict())
    assert name in untouched and torch.equal(narrow.state_dict()[name], before)
