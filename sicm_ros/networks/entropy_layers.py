# SPDX-License-Identifier: Apache-2.0
"""The layers of the entropy model, and the constants that its floating-point and integer evaluations share.

``entropy_model`` evaluates them in floating point, for training; ``integer_prior`` in exact integers, for the codec.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "EntropyLayers",
    "HYPER_SYMBOL_LIMIT",
    "HyperDecoder",
    "HyperDensity",
    "HyperEncoder",
    "LEAK",
    "MaskedConv2d",
    "SCALES_PER_OCTAVE",
    "SCALE_LEVELS",
    "SCALE_LOG2_MIN",
    "checkerboard_anchors",
    "gate",
    "gaussian_bits",
    "hyper_size",
    "scale_table",
]

LEAK = 1 / 64  # slope of the leaky units: a shift by six bits
SCALE_LEVELS = 64  # standard deviations 2 ** (i / 7 - 3): from 1/8 to 64, seven to the octave
SCALES_PER_OCTAVE = 7
SCALE_LOG2_MIN = -3
HYPER_SYMBOL_LIMIT = 63  # symbols of the hyper-latents are in [-63, 63]
_MIXTURE = 3  # logistic components in the density of each hyper-latent channel
Pair = tuple[Tensor, Tensor]


def scale_table(device: torch.device | str = "cpu") -> Tensor:
    """The standard deviation of each scale index, in quantisation steps, (SCALE_LEVELS,) float64."""
    steps = torch.arange(SCALE_LEVELS, dtype=torch.float64, device=device)
    return torch.exp2(steps / SCALES_PER_OCTAVE + SCALE_LOG2_MIN)


def hyper_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the hyper-latent of a latent of ``height`` x ``width``: a quarter, rounded up."""
    return -(-height // 4), -(-width // 4)


def checkerboard_anchors(height: int, width: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Boolean maps (height, width) of the cells of the left and of the right view that are coded in the first pass."""
    rows = torch.arange(height, device=device)[:, None]
    even = (rows + torch.arange(width, device=device)) % 2 == 0
    return even, ~even


def gaussian_bits(residual: Tensor, log2_scale: Tensor) -> Tensor:
    """Bits of the unit interval around ``residual`` under a normal density of standard deviation 2 ** log2_scale.

    Elementwise, for tensors of one shape. Computed from logarithms of tails, so that outliers keep a gradient instead
    of underflowing.
    """
    inverse = torch.exp2(-log2_scale)
    distance = residual.abs()
    upper = torch.special.log_ndtr((0.5 - distance) * inverse)
    lower = torch.special.log_ndtr((-0.5 - distance) * inverse)
    # The clamp is only met where both tails round to the same number: a scale above the table's range.
    return -(upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-7)))) / math.log(2)


class MaskedConv2d(nn.Conv2d):
    """A convolution over the cells before the current one in raster order (type A), or including it (type B).

    (B, C, h, w) -> (B, C', h, w).
    """

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, kind: Literal["A", "B"]) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        cells = torch.arange(kernel_size * kernel_size).view(kernel_size, kernel_size)
        middle = kernel_size * kernel_size // 2
        self.register_buffer("mask", (cells < middle + (kind == "B")).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class HyperEncoder(nn.Sequential):
    """Latent (B, C, h, w) to hyper-latent (B, Z, ceil(h / 4), ceil(w / 4))."""

    def __init__(self, channels: int, hyper_channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, hyper_channels, 3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(hyper_channels, hyper_channels, 5, 2, 2),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(hyper_channels, hyper_channels, 5, 2, 2),
        )


class HyperDecoder(nn.Module):
    """Hyper-latent (B, Z, ceil(h / 4), ceil(w / 4)) to features (B, F, h, w), cropped to ``size`` (h, w)."""

    def __init__(self, hyper_channels: int, out_channels: int) -> None:
        super().__init__()
        narrow, wide = out_channels // 2, 3 * out_channels // 4
        self.up1 = nn.ConvTranspose2d(hyper_channels, narrow, 5, 2, 2, 1)
        self.up2 = nn.ConvTranspose2d(narrow, wide, 5, 2, 2, 1)
        self.out = nn.Conv2d(wide, out_channels, 3, padding=1)

    def forward(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = size
        x = F.leaky_relu(self.up1(z)[..., : -(-height // 2), : -(-width // 2)], LEAK)
        x = F.leaky_relu(self.up2(x)[..., :height, :width], LEAK)
        return self.out(x)


class HyperDensity(nn.Module):
    """Factorised density of a hyper-latent: one mixture of logistics for each channel.

    CompressAI's ``EntropyBottleneck`` would need a second optimiser for its quantiles, and its import costs seconds and
    a torchvision that fits; a mixture of three logistics is as flexible as these nearly symmetric densities need.
    """

    def __init__(self, hyper_channels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(hyper_channels, _MIXTURE))
        self.means = nn.Parameter(torch.linspace(-1, 1, _MIXTURE).repeat(hyper_channels, 1))
        self.log_scales = nn.Parameter(torch.zeros(hyper_channels, _MIXTURE))

    def bits(self, z: Tensor) -> Tensor:
        """Bits, (B, Z, h, w), of the unit interval around each element of ``z`` (B, Z, h, w)."""
        shape = (1, -1, 1, 1, _MIXTURE)
        inverse = torch.exp(-self.log_scales).view(shape)
        centred = z.unsqueeze(-1) - self.means.view(shape)
        upper, lower = (centred + 0.5) * inverse, (centred - 0.5) * inverse
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
        log_mass = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-inverse))
        return -torch.logsumexp(log_mass + F.log_softmax(self.weights, -1).view(shape), -1) / math.log(2)


def _pointwise(*channels: int) -> nn.Sequential:
    """1x1 convolutions with leaky units between them, (B, C, h, w) -> (B, C', h, w)."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        layers += [nn.LeakyReLU(LEAK)] if i else []
        layers.append(nn.Conv2d(a, b, 1))
    return nn.Sequential(*layers)


def gate(x: Tensor) -> Tensor:
    """Piecewise linear sigmoid, x / 4 + 1 / 2 clamped to [0, 1], elementwise."""
    return (x / 4 + 0.5).clamp(0, 1)


class EntropyLayers(nn.Module):
    """The layers of both views: each is a list with the left view's layer at 0 and the right view's at 1.

    ``channels`` C are those of one view's latent, ``hyper_channels`` those of its hyper-latent. All features of the
    prediction have ``context_channels`` F, by default 2 C.
    """

    def __init__(
        self,
        channels: int,
        hyper_channels: int,
        context: Literal["raster", "checkerboard"],
        context_channels: int | None = None,
    ) -> None:
        super().__init__()
        if context not in ("raster", "checkerboard"):
            raise ValueError(f"context: expected 'raster' or 'checkerboard', got {context!r}")
        if channels % 2:
            raise ValueError(f"channels: expected an even number, got {channels}")
        if context_channels is not None and (not 4 <= context_channels <= 2 * channels or context_channels % 4):
            # More than twice the latent's would break the bound on memory of docs/packet.md.
            raise ValueError(f"context_channels: expected a multiple of 4 up to {2 * channels}, got {context_channels}")
        c, f = channels, 2 * channels if context_channels is None else context_channels
        self.context_channels = f
        self.channels, self.hyper_channels, self.context_kind = channels, hyper_channels, context
        raster = context == "raster"

        def views(make):  # noqa: ANN001, ANN202
            return nn.ModuleList([make(), make()])

        self.hyper_encoder = views(lambda: HyperEncoder(c, hyper_channels))
        self.hyper_density = views(lambda: HyperDensity(hyper_channels))
        self.hyper_decoder = views(lambda: HyperDecoder(hyper_channels, f))
        self.context = views(lambda: MaskedConv2d(c, f, 5, "A") if raster else nn.Conv2d(c, f, 5, padding=2))
        self.view_features = views(lambda: _pointwise(2 * f, f, f))
        self.attention = views(lambda: _pointwise(2 * f, f, f))
        self.attention_gate = views(lambda: MaskedConv2d(f, f, 3, "B") if raster else nn.Conv2d(f, f, 3, padding=1))
        self.estimator = views(lambda: _pointwise(3 * f, round(5 * f / 3), round(4 * f / 3), 2 * c))
