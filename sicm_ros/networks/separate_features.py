# SPDX-License-Identifier: Apache-2.0
"""The codec without SMFC (paper, section IV-C and table III): nothing is shared between scales or between views.

Each scale of a view becomes channels of its own in that view's latent by convolutions with stride, and comes back from
them by transposed ones. The entropy model is the same as with SMFC, so the difference is what SMFC is worth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .backbone import StereoFeatures, ViewPair
from .config import MvsfcConfig
from .smfc import GeneralizedDivisiveNormalization, Reconstruction, fit

__all__ = ["SeparateDecoder", "SeparateEncoder"]


def _shares(config: MvsfcConfig) -> list[int]:
    """Channels of the latent for f0, f1 and f2: a third each, and what is left over for f2."""
    third = config.latent_channels // 3
    if third == 0 or config.matching != "remote":
        # The volumes of a vehicle that matches would need a fourth part of the latent; the paper has none.
        raise ValueError("joint_features: false needs matching: remote and at least 3 latent_channels")
    return [third, third, config.latent_channels - 2 * third]


def _steps(config: MvsfcConfig, level: int) -> list[int]:
    """Strides of the convolutions between f0, f1 or f2 and the latent; one of 1 where both have the same size."""
    return [2] * int(math.log2(config.latent_stride >> (level + 2))) or [1]


def _analysis(channels: int, share: int, strides: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stride in strides[:-1]:
        layers += [nn.Conv2d(channels, channels, 5, stride, 2), GeneralizedDivisiveNormalization(channels)]
    return nn.Sequential(*layers, nn.Conv2d(channels, share, 5, strides[-1], 2))


def _synthesis(channels: int, share: int, strides: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = [share] + [channels] * len(strides)
    for inputs, stride in zip(widths, strides, strict=False):
        layers += [
            nn.ConvTranspose2d(inputs, channels, 5, stride, 2, stride - 1),
            GeneralizedDivisiveNormalization(channels, inverse=True),
        ]
    return nn.Sequential(*layers[:-1], nn.ReLU())  # the backbone's features come out of a ReLU


class SeparateEncoder(nn.Module):
    """In place of ``SmfcEncoder``."""

    def __init__(self, config: MvsfcConfig) -> None:
        super().__init__()
        self.sizes = [config.feature_size(level) for level in range(3)]
        shares = _shares(config)

        def view() -> nn.ModuleList:
            return nn.ModuleList(
                _analysis(channels, share, _steps(config, level))
                for level, (channels, share) in enumerate(zip(config.channels, shares, strict=True))
            )

        self.left, self.right = view(), view()

    def forward(self, features: StereoFeatures, volumes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features at strides 4, 8, 16 -> latents (B, latent_channels, *latent_size) of both views, not quantised.

        ``volumes`` stands here for what ``SmfcEncoder`` takes; there are none.
        """
        left = [net(fit(f[0], size)) for net, f, size in zip(self.left, features, self.sizes, strict=True)]
        right = [net(fit(f[1], size)) for net, f, size in zip(self.right, features, self.sizes, strict=True)]
        return torch.cat(left, 1), torch.cat(right, 1)


class SeparateDecoder(nn.Module):
    """In place of ``SmfcDecoder``."""

    def __init__(self, config: MvsfcConfig) -> None:
        super().__init__()
        self.cropped = [(-(-config.height // s), -(-config.width // s)) for s in (4, 8, 16)]
        self.shares = _shares(config)

        def view() -> nn.ModuleList:
            return nn.ModuleList(
                _synthesis(channels, share, _steps(config, level))
                for level, (channels, share) in enumerate(zip(config.channels, self.shares, strict=True))
            )

        self.left, self.right = view(), view()

    def forward(self, left: Tensor, right: Tensor, with_f0: bool = True) -> Reconstruction:
        """Dequantised latents (B, C, *latent_size) of both views to features. ``with_f0``: whether f0 is wanted."""
        parts = left.split(self.shares, 1), right.split(self.shares, 1)

        def scale(level: int) -> ViewPair:
            size = self.cropped[level]
            return fit(self.left[level](parts[0][level]), size), fit(self.right[level](parts[1][level]), size)

        return Reconstruction((scale(0) if with_f0 else None, scale(1), scale(2)), None)
