# SPDX-License-Identifier: Apache-2.0
"""Stereo multi-scale feature compression (SMFC): paper, section III-B, equations 2 to 6."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import StereoFeatures
from .config import MvsfcConfig
from .context_transform import BiDirectionalContextualTransform

__all__ = ["GeneralizedDivisiveNormalization", "SmfcDecoder", "SmfcEncoder", "StereoDecoderUnit", "StereoEncoderUnit"]


class GeneralizedDivisiveNormalization(nn.Module):
    """x / sqrt(beta + gamma x^2), or the product for ``inverse`` (Balle et al. 2016).

    CompressAI has this layer too, but importing it takes seconds and pulls torchvision and torch-geometric, which the
    nodes on the vehicle do without. ``beta`` and ``gamma`` are kept non-negative by storing their square roots.
    """

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta_root = nn.Parameter(torch.ones(channels))
        # A small value off the diagonal, since the square has no gradient at zero.
        self.gamma_root = nn.Parameter((0.1 * torch.eye(channels) + 1e-4).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        norm = F.conv2d(x * x, (self.gamma_root**2)[:, :, None, None], self.beta_root**2 + 1e-6)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


class StereoEncoderUnit(nn.Module):
    """SEU: a strided convolution of each view, then the contextual transform of both (equations 2 and 3)."""

    def __init__(
        self, in_channels: int, out_channels: int, attention: str, normalize: bool = True, stride: int = 2
    ) -> None:
        super().__init__()

        def downsample() -> nn.Sequential:
            layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, 5, stride, 2)]
            if normalize:
                layers.append(GeneralizedDivisiveNormalization(out_channels))
            return nn.Sequential(*layers)

        self.left, self.right = downsample(), downsample()
        self.transform = BiDirectionalContextualTransform(out_channels, attention)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (B, C, h, w) -> two maps (B, C', ceil(h/stride), ceil(w/stride))."""
        return self.transform(self.left(left), self.right(right))


class StereoDecoderUnit(nn.Module):
    """SDU: the contextual transform of both views, then a strided transposed convolution of each (equations 4 to 6).

    With ``feedback`` the transposed convolution also sees the features decoded last and the representation before the
    transform (research code of the authors; the paper's equations have only the transformed representation).
    """

    def __init__(
        self,
        channels: int,
        feedback_channels: int,
        out_channels: int,
        attention: str,
        normalize: bool,
        stride: int = 2,
    ) -> None:
        super().__init__()
        self.feedback = feedback_channels > 0
        self.transform = BiDirectionalContextualTransform(channels, attention)
        in_channels = 2 * channels + feedback_channels if self.feedback else channels

        def upsample() -> nn.Sequential:
            layers: list[nn.Module] = [nn.ConvTranspose2d(in_channels, out_channels, 5, stride, 2, stride - 1)]
            if normalize:
                layers.append(GeneralizedDivisiveNormalization(out_channels, inverse=True))
            return nn.Sequential(*layers)

        self.left, self.right = upsample(), upsample()

    def forward(
        self, left: Tensor, right: Tensor, decoded: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Two maps (B, C, h, w), and the features decoded last (B, F, h, w) -> two maps (B, C', h*stride, w*stride)."""
        t_left, t_right = self.transform(left, right)
        if self.feedback:
            assert decoded is not None
            t_left = torch.cat([decoded[0], left, t_left], 1)
            t_right = torch.cat([decoded[1], right, t_right], 1)
        return self.left(t_left), self.right(t_right)


def _fit(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero-pad at the bottom and the right, or crop there, to ``size``."""
    h, w = size
    if x.shape[2] < h or x.shape[3] < w:
        x = F.pad(x, (0, max(0, w - x.shape[3]), 0, max(0, h - x.shape[2])))
    return x[:, :, :h, :w]


class SmfcEncoder(nn.Module):
    """Multi-scale features of both views to the joint representation c0-2, the latents."""

    def __init__(self, config: MvsfcConfig) -> None:
        super().__init__()
        self.sizes = [config.feature_size(level) for level in range(3)]
        f0, f1, f2 = config.channels
        c0, c01 = config.joint_channels
        self.unit0 = StereoEncoderUnit(f0, c0, config.attention)
        self.unit1 = StereoEncoderUnit(f1 + c0, c01, config.attention)
        self.unit2 = StereoEncoderUnit(
            f2 + c01, config.latent_channels, config.attention, normalize=False, stride=config.latent_stride // 16
        )

    def forward(self, features: StereoFeatures) -> tuple[Tensor, Tensor]:
        """Features at strides 4, 8, 16 -> latents (B, latent_channels, *latent_size) of both views, not quantised."""
        (l0, r0), (l1, r1), (l2, r2) = [
            (_fit(left, s), _fit(right, s)) for (left, right), s in zip(features, self.sizes, strict=True)
        ]
        left, right = self.unit0(l0, r0)
        left, right = self.unit1(torch.cat([l1, left], 1), torch.cat([r1, right], 1))
        return self.unit2(torch.cat([l2, left], 1), torch.cat([r2, right], 1))


class SmfcDecoder(nn.Module):
    """Latents of both views to the reconstructed multi-scale features.

    Features come out of a ReLU in the backbone, so the reconstruction ends in one as well.
    """

    def __init__(self, config: MvsfcConfig) -> None:
        super().__init__()
        stride = (4, 8, 16)
        self.cropped = [(-(-config.height // s), -(-config.width // s)) for s in stride]
        self.sizes = [config.feature_size(level) for level in range(3)]
        f0, f1, f2 = config.channels
        c0, c01 = config.joint_channels
        feedback = config.decoder_feedback
        self.split = ((f2, c01), (f1, c0))
        # Nothing has been decoded before the first unit, so it has no feedback.
        self.unit2 = StereoDecoderUnit(
            config.latent_channels, 0, f2 + c01, config.attention, normalize=True, stride=config.latent_stride // 16
        )
        self.unit1 = StereoDecoderUnit(c01, f2 if feedback else 0, f1 + c0, config.attention, normalize=True)
        self.unit0 = StereoDecoderUnit(c0, f1 if feedback else 0, f0, config.attention, normalize=False)

    def forward(self, left: Tensor, right: Tensor) -> StereoFeatures:
        """Dequantised latents (B, C, *latent_size) -> features at strides 4, 8, 16, of the backbone's shapes."""

        def unit(
            module: StereoDecoderUnit, left: Tensor, right: Tensor, decoded: tuple[Tensor, Tensor] | None, level: int
        ) -> list[Tensor]:
            return [_fit(x, self.sizes[level]) for x in module(left, right, decoded)]

        both = [x.split(self.split[0], 1) for x in unit(self.unit2, left, right, None, 2)]
        (l2, left), (r2, right) = ((torch.relu(f), c) for f, c in both)
        both = [x.split(self.split[1], 1) for x in unit(self.unit1, left, right, (l2, r2), 1)]
        (l1, left), (r1, right) = ((torch.relu(f), c) for f, c in both)
        l0, r0 = (torch.relu(x) for x in unit(self.unit0, left, right, (l1, r1), 0))
        s0, s1, s2 = self.cropped
        return (_fit(l0, s0), _fit(r0, s0)), (_fit(l1, s1), _fit(r1, s1)), (_fit(l2, s2), _fit(r2, s2))
