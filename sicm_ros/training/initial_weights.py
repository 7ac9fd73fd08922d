# SPDX-License-Identifier: Apache-2.0
"""Weights of a trained network as the beginning of another one of a different shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..networks.mvsfc_net import MvsfcNet

__all__ = ["adopt"]

MATCHING_PARTS = ("expand4", "block4", "expand8")  # of ``StereoMatching``, kept in the half that matches
NEW_SCALE = 0.3  # of the random values of new channels beside trained ones


@torch.no_grad()
def adopt(net: MvsfcNet, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Give the network the weights that it has a place for. Returns the names of its tensors that stay as they are, and
    of those that got only a part of theirs.

    A tensor of more channels takes the trained ones as its first; the others stay random, but smaller. One of fewer
    channels takes nothing. What matches the views is found wherever either network has it.
    """
    own = net.state_dict()
    untouched, partial = [], []
    for name, value in own.items():
        trained = weights.get(name)
        if trained is None and name.startswith(("matching.", "analysis.pyramid.")):
            trained = weights.get(_other_place(name))
        if (
            trained is None
            or trained.dim() != value.dim()
            or any(t > v for t, v in zip(trained.shape, value.shape, strict=True))
        ):
            untouched.append(name)
        elif trained.shape == value.shape:
            value.copy_(trained)
        else:
            value.mul_(NEW_SCALE)
            value[tuple(slice(size) for size in trained.shape)] = trained
            partial.append(name)
    return untouched, partial


def _other_place(name: str) -> str:
    """Where a network that matches in its other half has this tensor; the name itself if both have it there."""
    for one, other in (("matching.", "analysis.pyramid."), ("analysis.pyramid.", "matching.")):
        if name.startswith(one) and name.removeprefix(one).split(".")[0] in MATCHING_PARTS:
            return other + name.removeprefix(one)
    return name
