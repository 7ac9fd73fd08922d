# SPDX-License-Identifier: Apache-2.0
"""Stereo cost volumes at three scales and their hierarchical fusion (YOLOStereo3D, Liu et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import BasicBlock, DecodedFeatures, StereoFeatures, conv_bn
from .config import MvsfcConfig

__all__ = ["ConcatenationVolume", "GhostExpansion", "StereoMatching", "VolumeFusion", "correlation_volume"]


_STRETCH = 16  # columns of a row that the correlation takes at once


def correlation_volume(left: Tensor, right: Tensor, bins: int, per_pixel: int = 1) -> Tensor:
    """Mean over the channels of left(x) * right(x - i / per_pixel), for i = 0 .. bins - 1.

    Two maps (B, C, H, W) -> (B, bins, H, W); zero where the shift leaves the image. Shifts by parts of a pixel
    interpolate the right map linearly. Each stretch of a left row is multiplied with the window of the right row that
    it can match, and only the band of valid shifts is kept: faster than a loop over the shifts, or than whole rows.
    """
    b, c, h, w = left.shape
    if per_pixel > 1:
        following = torch.cat([right[..., 1:], right[..., -1:]], 3)
        right = torch.stack([torch.lerp(right, following, i / per_pixel) for i in range(per_pixel)], -1)
        right = right.reshape(b, c, h, w * per_pixel)
    count = -(-w // _STRETCH)
    beyond = count * _STRETCH - w
    # (B, H, stretches, _STRETCH, C) by (B, H, stretches, C, window); the window begins bins - 1 before the stretch
    stretches = F.pad(left / c, (0, beyond)).permute(0, 2, 3, 1).unflatten(2, (count, _STRETCH))
    window = (_STRETCH - 1) * per_pixel + bins
    windows = F.pad(right, (bins - 1, beyond * per_pixel)).unfold(3, window, _STRETCH * per_pixel)
    products = stretches @ windows.permute(0, 2, 3, 1, 4)
    column = torch.arange(_STRETCH, device=left.device)[:, None] * per_pixel
    index = column + (bins - 1) - torch.arange(bins, device=left.device)
    band = products.gather(4, index.expand(b, h, count, _STRETCH, bins))
    return band.flatten(2, 3)[:, :, :w].permute(0, 3, 1, 2)


class ConcatenationVolume(nn.Module):
    """Both maps, with fewer channels and shifted against each other, through two 3D convolutions."""

    def __init__(self, in_channels: int, channels: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.reduce = conv_bn(in_channels, channels, 1)

        def conv3d(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv3d(i, o, 3, padding=1, bias=False), nn.BatchNorm3d(o), nn.ReLU(inplace=True))

        self.aggregate = nn.Sequential(conv3d(2 * channels, channels), conv3d(channels, channels))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Two maps (B, C, H, W) -> (B, channels * bins, H, W)."""
        left, right = self.reduce(left), self.reduce(right)
        w = left.shape[3]
        shifted = [
            torch.cat([F.pad(left[..., i:], (i, 0)), F.pad(right[..., : w - i], (i, 0))], 1) for i in range(self.bins)
        ]
        return self.aggregate(torch.stack(shifted, 2)).flatten(1, 2)


class GhostExpansion(nn.Module):
    """Appends cheap channels to a map (GhostNet): a thin convolution of it, then depthwise convolutions of that."""

    RATIO = 3

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.added = out_channels - in_channels
        primary = math.ceil(self.added / self.RATIO)
        self.primary = conv_bn(in_channels, primary)
        self.cheap = conv_bn(primary, primary * (self.RATIO - 1), groups=primary)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), whose first C channels are ``x``."""
        primary = self.primary(x)
        return torch.cat([x, torch.cat([primary, self.cheap(primary)], 1)[:, : self.added]], 1)


class StereoMatching(nn.Module):
    """Correlation of both views at strides 4 and 8, fused at stride 8.

    Everything that tells the depth of an object to better than a stride 16 cell. Coded features hardly carry it: what
    packets lose is the matching of f0. With ``matching: vehicle`` it happens before anything is lost, and the result is
    coded.
    """

    def __init__(self, config: MvsfcConfig) -> None:
        super().__init__()
        a = config.analysis
        self.bins, self.per_pixel = a.correlation_bins, a.correlations_per_pixel
        g4, g8, _ = a.fusion_channels
        self.expand4 = GhostExpansion(self.bins[0], g4)
        self.block4 = BasicBlock(g4, g4)
        self.expand8 = GhostExpansion(g4 + self.bins[1], g8)

    def forward(self, features: StereoFeatures) -> tuple[Tensor, Tensor]:
        """Features at strides 4, 8, 16 -> the fused volumes (B, C, H/8, W/8), and the expanded one (B, C', H/4,
        W/4)."""
        (l0, r0), (l1, r1), _ = features
        x4 = self.expand4(correlation_volume(l0, r0, self.bins[0], self.per_pixel))
        x8 = self.block4(_halve(x4, l1.shape[2:]))
        return self.expand8(torch.cat([x8, correlation_volume(l1, r1, self.bins[1], self.per_pixel)], 1)), x4


class VolumeFusion(nn.Module):
    """The fused volumes of strides 4 and 8, joined by that of stride 16, with the left view's features.

    The head of the compact model is at stride 8: there the fused map is brought up again and joins the left f1.
    """

    def __init__(self, config: MvsfcConfig) -> None:
        super().__init__()
        a = config.analysis
        self.head_stride = a.head_stride
        _, f1, f2 = config.channels
        _, g8, g16 = a.fusion_channels
        self.volume16 = ConcatenationVolume(f2, a.concat_channels, a.concat_bins)
        self.block8 = BasicBlock(g8, g8)
        self.expand16 = GhostExpansion(g8 + a.concat_channels * a.concat_bins, g16)
        self.block16 = BasicBlock(g16, g16)
        self.fused_channels = g16
        self.out_channels = g16 + f2
        if self.head_stride == 8:
            self.lateral = conv_bn(g16 + f2, g8, 1)
            self.fused_channels = self.out_channels = 2 * g8 + f1

    def forward(self, x8: Tensor, features: DecodedFeatures) -> tuple[Tensor, Tensor]:
        """The fused volumes of strides 4 and 8 (B, C, H/8, W/8), and the features at strides 8 and 16 -> the head's
        input and the disparity head's, both (B, C', h, w) at the head's stride."""
        _, (l1, _), (l2, r2) = features
        x16 = self.block8(_halve(x8, l2.shape[2:]))
        x16 = self.block16(self.expand16(torch.cat([x16, self.volume16(l2, r2)], 1)))
        x = torch.cat([x16, l2], 1)
        if self.head_stride == 16:
            return x, x16
        x = F.interpolate(self.lateral(x), scale_factor=2.0, mode="nearest")[:, :, : l1.shape[2], : l1.shape[3]]
        x = torch.cat([x, x8, l1], 1)
        return x, x


def _halve(x: Tensor, size: torch.Size) -> Tensor:
    """Average pool by 2, (B, C, H, W) -> (B, C, *size); an odd last row or column is kept."""
    out = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    assert out.shape[2:] == size
    return out
