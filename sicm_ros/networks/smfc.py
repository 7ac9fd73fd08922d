# SPDX-License-Identifier: Apache-2.0
"""Stereo multi-scale feature compression (SMFC): paper, section III-B, equations 2 to 6."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import DecodedFeatures, StereoFeatures
from .config import MvsfcConfig
from .context_transform import BiDirectionalContextualTransform

__all__ = [
    "GeneralizedDivisiveNormalization",
    "Reconstruction",
    "SmfcDecoder",
    "SmfcEncoder",
    "StereoDecoderUnit",
    "StereoEncoderUnit",
    "fit",
]


class Reconstruction(NamedTuple):
    """What comes out of the decoder."""

    features: DecodedFeatures  # at strides 4, 8, 16, of the backbone's shapes; f0 only where it was asked for
    volumes: Tensor | None  # (B, C, H/8, W/8), of ``StereoMatching``; None where the views are matched remotely


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
        self,
        in_channels: int,
        out_channels: int,
        attention: str,
        normalize: bool = True,
        stride: int = 2,
        volume_channels: int = 0,
    ) -> None:
        """``volume_channels``: of the volumes that come with the left map."""
        super().__init__()

        def downsample(channels: int) -> nn.Sequential:
            layers: list[nn.Module] = [nn.Conv2d(channels, out_channels, 5, stride, 2)]
            if normalize:
                layers.append(GeneralizedDivisiveNormalization(out_channels))
            return nn.Sequential(*layers)

        self.left, self.right = downsample(in_channels + volume_channels), downsample(in_channels)
        self.transform = BiDirectionalContextualTransform(out_channels, attention)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (B, C, h, w), the left one with the volumes' channels -> two maps (B, C', ceil(h/stride),
        ceil(w/stride))."""
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
        left, right = self.transformed(left, right, decoded)
        return self.left(left), self.right(right)

    def transformed(self, left: Tensor, right: Tensor, decoded: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """What the transposed convolutions see of both views, (B, C'', h, w)."""
        t_left, t_right = self.transform(left, right)
        if self.feedback:
            assert decoded is not None
            t_left = torch.cat([decoded[0], left, t_left], 1)
            t_right = torch.cat([decoded[1], right, t_right], 1)
        return t_left, t_right


class VolumeSynthesis(nn.Module):
    """The volumes of ``StereoMatching`` from what a decoder unit sees of the left view; not in the paper.

    A transposed convolution alone is a weak synthesis of a volume, so a residual block follows, which also sees what
    the unit has decoded.
    """

    def __init__(self, in_channels: int, beside: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1)
        self.join = nn.Conv2d(out_channels + beside, out_channels, 3, padding=1)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.output = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        """(B, C, ceil(h/2), ceil(w/2)), and the unit's output (B, C', h, w) -> (B, C'', h, w)."""
        x = fit(self.upsample(x), (beside.shape[2], beside.shape[3]))
        x = torch.relu(self.join(torch.cat([x, beside], 1)))
        x = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        return self.output(x)


def fit(x: Tensor, size: tuple[int, int]) -> Tensor:
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
        volumes = config.analysis.fusion_channels[1] if config.matching == "vehicle" else 0
        self.unit1 = StereoEncoderUnit(f1 + c0, c01, config.attention, volume_channels=volumes)
        self.unit2 = StereoEncoderUnit(
            f2 + c01, config.latent_channels, config.attention, normalize=False, stride=config.latent_stride // 16
        )

    def forward(self, features: StereoFeatures, volumes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features at strides 4, 8, 16 -> latents (B, latent_channels, *latent_size) of both views, not quantised.

        ``volumes`` (B, C, H/8, W/8), of ``StereoMatching``, are coded too where the views are matched on the vehicle.
        """
        (l0, r0), (l1, r1), (l2, r2) = [
            (fit(left, s), fit(right, s)) for (left, right), s in zip(features, self.sizes, strict=True)
        ]
        left, right = self.unit0(l0, r0)
        coded_left = [l1, left] if volumes is None else [l1, left, fit(volumes, self.sizes[1])]
        left, right = self.unit1(torch.cat(coded_left, 1), torch.cat([r1, right], 1))
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
        self.volumes = None
        if config.matching == "vehicle":
            seen = 2 * c01 + f2 if feedback else c01
            self.volumes = VolumeSynthesis(seen, f1 + c0, config.analysis.fusion_channels[1])

    def forward(self, left: Tensor, right: Tensor, with_f0: bool = True) -> Reconstruction:
        """Dequantised latents (B, C, *latent_size) of both views to features, and to volumes where the vehicle has
        matched the views. ``with_f0``: whether f0 is wanted."""
        s0, s1, s2 = self.cropped

        def unit(
            module: StereoDecoderUnit, left: Tensor, right: Tensor, decoded: tuple[Tensor, Tensor] | None, level: int
        ) -> list[Tensor]:
            return [fit(x, self.sizes[level]) for x in module(left, right, decoded)]

        both = [x.split(self.split[0], 1) for x in unit(self.unit2, left, right, None, 2)]
        (l2, left), (r2, right) = ((torch.relu(f), c) for f, c in both)
        seen_left, seen_right = self.unit1.transformed(left, right, (l2, r2))
        both = [
            fit(x, self.sizes[1]).split(self.split[1], 1)
            for x in (self.unit1.left(seen_left), self.unit1.right(seen_right))
        ]
        (l1, left), (r1, right) = ((torch.relu(f), c) for f, c in both)
        volumes = None
        if self.volumes is not None:
            volumes = fit(self.volumes(seen_left, torch.cat([l1, left], 1)), s1)
        f0 = None
        if with_f0:
            l0, r0 = (torch.relu(x) for x in unit(self.unit0, left, right, (l1, r1), 0))
            f0 = fit(l0, s0), fit(r0, s0)
        return Reconstruction((f0, (fit(l1, s1), fit(r1, s1)), (fit(l2, s2), fit(r2, s2))), volumes)
