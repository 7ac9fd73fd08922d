# SPDX-License-Identifier: Apache-2.0
"""Bi-directional contextual transform (Bi-CTM): removes the redundancy between the representations of both views.

Section III-B of the paper names it, after Lei et al. (CVPR 2022): each view's map is corrected by a context that is
gathered from the other view by attention, and gated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BiDirectionalContextualTransform"]

SLOPE = 0.01  # of every leaky ReLU here


class _ResidualBlock(nn.Module):
    """x + two 3x3 convolutions, each with a leaky ReLU; (B, C, h, w) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), SLOPE)), SLOPE)


class _CrossViewAttention(nn.Module):
    """Attention of one view's map (queries) to the other's (keys, values), plus the identity; all (B, C, h, w).

    ``efficient``: softmax over all positions for the keys and over channels for the queries, so that the context is a
    small matrix for each head (Shen et al. 2021). ``epipolar``: every pixel attends to its own row of the other view,
    where stereo correspondences of a rectified pair lie.
    """

    def __init__(self, channels: int, kind: str, heads: int) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.reproject = nn.Conv2d(channels, channels, 1)

    def forward(self, target: Tensor, other: Tensor) -> Tensor:
        b, c, h, w = target.shape
        d = c // self.heads
        query, key, value = self.query(target), self.key(other), self.value(other)
        if self.kind == "efficient":
            query = query.reshape(b, self.heads, d, h * w).softmax(2)
            key = key.reshape(b, self.heads, d, h * w).softmax(3)
            value = value.reshape(b, self.heads, d, h * w)
            context = key @ value.transpose(2, 3)  # (B, heads, d, d)
            out = (context.transpose(2, 3) @ query).reshape(b, c, h, w)
        else:

            def rows(x: Tensor) -> Tensor:  # (B, heads, h, w, d)
                return x.reshape(b, self.heads, d, h, w).permute(0, 1, 3, 4, 2)

            weights = (rows(query) * d**-0.5 @ rows(key).transpose(3, 4)).softmax(4)  # (B, heads, h, w, w)
            out = weights @ rows(value)
            out = out.permute(0, 1, 4, 2, 3).reshape(b, c, h, w)
        return target + self.reproject(out)


class _ViewTransform(nn.Module):
    """One view's half of the transform."""

    def __init__(self, channels: int, kind: str, heads: int) -> None:
        super().__init__()
        self.base = nn.Sequential(_ResidualBlock(channels), _ResidualBlock(channels))
        self.attention = _CrossViewAttention(channels, kind, heads)

        def two_convolutions() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(2 * channels, channels, 3, padding=1),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(channels, channels, 3, padding=1),
            )

        self.gate, self.fuse = two_convolutions(), two_convolutions()

    def correction(self, base: Tensor, other_base: Tensor) -> Tensor:
        """The correction (B, C, h, w) of this view's map, from both views' base features (B, C, h, w)."""
        attended = self.attention(base, other_base)
        gated = torch.sigmoid(self.gate(torch.cat([attended, base], 1))) * attended
        return self.fuse(torch.cat([base, gated], 1))


class BiDirectionalContextualTransform(nn.Module):
    """x_A - t_A(x_A, x_B) for both views, with weights of their own. 94 C^2 parameters for each view, plus biases."""

    def __init__(self, channels: int, kind: str = "efficient") -> None:
        super().__init__()
        heads = 8 if channels % 8 == 0 else 1
        self.left = _ViewTransform(channels, kind, heads)
        self.right = _ViewTransform(channels, kind, heads)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (B, C, h, w) -> two maps of the same shape."""
        base_left, base_right = self.left.base(left), self.right.base(right)
        return (
            left - self.left.correction(base_left, base_right),
            right - self.right.correction(base_right, base_left),
        )
