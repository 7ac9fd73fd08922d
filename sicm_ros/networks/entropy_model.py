# SPDX-License-Identifier: Apache-2.0
"""Entropy model of both latents: hyperprior, context of both views, likelihoods (Bi-CEM; paper, section III).

Two kinds of context share all layers:

* ``raster``: the paper's. A cell is predicted from the cells before it in raster order, in both views; the cells of
  both views at one position are coded in the same step.
* ``checkerboard``: two passes. Anchors are the even cells of the left view and the odd cells of the right view, and are
  predicted from the hyperprior alone. Every other cell then sees its decoded neighbours in its own view *and* the
  decoded cell at its own place in the other view, because the parities are staggered.

In training this module works in floating point. In evaluation it calls ``integer_prior``, which evaluates the same
layers in exact integers, so that ``forward`` returns exactly what a decoder of the bitstream reconstructs. Everything
that the integers have to reproduce is therefore piecewise linear with slopes that are powers of two: the leaky units,
the gate of the attention, the map from the predicted log-scale to an index of the scale table.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from .config import MvsfcConfig
    from .integer_prior import IntegerPrior, QuantisedLatents

__all__ = [
    "EntropyOutput",
    "HYPER_SYMBOL_LIMIT",
    "LEAK",
    "SCALES_PER_OCTAVE",
    "SCALE_LEVELS",
    "SCALE_LOG2_MIN",
    "StereoEntropyModel",
    "checkerboard_anchors",
    "hyper_size",
    "scale_table",
]

LEAK = 1 / 64  # slope of the leaky units: a shift by six bits
SCALE_LEVELS = 64  # standard deviations 2 ** (i / 7 - 3): from 1/8 to 64, seven to the octave
SCALES_PER_OCTAVE = 7
SCALE_LOG2_MIN = -3
HYPER_SYMBOL_LIMIT = 63  # symbols of the hyper-latents are in [-63, 63]
_MIXTURE = 3  # logistic components in the density of each hyper-latent channel
_GAIN_SPREAD = 3.0  # log2 of the gain at the highest rate over that at the lowest, before training

View = Literal[0, 1]
Pair = tuple[Tensor, Tensor]


class EntropyOutput(NamedTuple):
    """What comes out at the decoder, and what it costs.

    ``left`` and ``right`` (B, C, h, w) are the decoded latents after the inverse gain; ``bits_left`` and ``bits_right``
    (B,) include the hyper-latents.
    """

    left: Tensor
    right: Tensor
    bits_left: Tensor
    bits_right: Tensor


def scale_table(device: torch.device | str = "cpu") -> Tensor:
    """The standard deviations that an index stands for, (SCALE_LEVELS,) float64."""
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


class _Clamp(torch.autograd.Function):
    """Clamp whose gradient vanishes only where a step along it would leave the range further."""

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(x)
        ctx.limits = (low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor):  # noqa: ANN001, ANN205
        (x,) = ctx.saved_tensors
        low, high = ctx.limits
        outwards = ((x < low) & (grad > 0)) | ((x > high) & (grad < 0))
        return grad.masked_fill(outwards, 0), None, None


def _round_through(x: Tensor) -> Tensor:
    """Round, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


def _noisy(x: Tensor) -> Tensor:
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


def _float32(x: Tensor) -> torch.autocast:
    """Leave mixed precision: positions of symbols and logarithms of small likelihoods need 24 bits."""
    return torch.autocast(x.device.type, enabled=False)


def gaussian_bits(residual: Tensor, log2_scale: Tensor) -> Tensor:
    """Bits of the unit interval around ``residual`` under a normal density of standard deviation 2 ** log2_scale.

    Computed from logarithms of tails, so that outliers keep a gradient instead of underflowing.
    """
    inverse = torch.exp2(-log2_scale)
    distance = residual.abs()
    upper = torch.special.log_ndtr((0.5 - distance) * inverse)
    lower = torch.special.log_ndtr((-0.5 - distance) * inverse)
    # The clamp is only met where both tails round to the same number: a scale above the table's range.
    return -(upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-7)))) / math.log(2)


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees only cells before the current one in raster order (type A), or that one as well (B)."""

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
    """Hyper-latent to features (B, F, h, w); what a transposed convolution adds beyond that size is cut off."""

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
        """Bits of the unit interval around each element of ``z`` (B, Z, h, w)."""
        shape = (1, -1, 1, 1, _MIXTURE)
        inverse = torch.exp(-self.log_scales).view(shape)
        centred = z.unsqueeze(-1) - self.means.view(shape)
        upper, lower = (centred + 0.5) * inverse, (centred - 0.5) * inverse
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
        log_mass = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-inverse))
        return -torch.logsumexp(log_mass + F.log_softmax(self.weights, -1).view(shape), -1) / math.log(2)


def _pointwise(*channels: int) -> nn.Sequential:
    """1x1 convolutions with leaky units between them."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        layers += [nn.LeakyReLU(LEAK)] if i else []
        layers.append(nn.Conv2d(a, b, 1))
    return nn.Sequential(*layers)


def gate(x: Tensor) -> Tensor:
    """Piecewise linear sigmoid, x / 4 + 1 / 2 in [0, 1]."""
    return (x / 4 + 0.5).clamp(0, 1)


class StereoEntropyModel(nn.Module):
    """Joint entropy model of the latents of both views, each (B, C, h, w).

    Lists of modules hold the left view's at 0 and the right view's at 1. ``rates`` is the number of trained rates;
    above 1 the latents are scaled by learned gains for each channel, view and rate before they are quantised. All
    features that the prediction goes through have ``context_channels`` F, by default 2 C.
    """

    def __init__(
        self,
        channels: int,
        hyper_channels: int,
        context: Literal["raster", "checkerboard"] = "checkerboard",
        rates: int = 1,
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
        self.channels, self.hyper_channels, self.context_kind, self.rates = channels, hyper_channels, context, rates
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
        if rates > 1:
            start = (torch.linspace(-_GAIN_SPREAD, 0, rates) * math.log(2)).view(1, rates, 1).repeat(2, 1, c)
            self.log_gain = nn.Parameter(start.clone())
            self.log_inverse_gain = nn.Parameter(-start)
        self._integer: tuple[tuple, IntegerPrior] | None = None

    @classmethod
    def from_config(cls, config: MvsfcConfig) -> StereoEntropyModel:
        """The entropy model of a network's configuration."""
        return cls(config.latent_channels, config.hyper_channels, config.context, config.rates, config.context_channels)

    # ------------------------------------------------------------------------------------------------ gains

    def _gains(self, table: Tensor, rate: float | Tensor) -> Tensor:
        """Interpolate the logarithms of (2, rates, C) at ``rate``: gains (2, B or 1, C, 1, 1)."""
        rate = torch.as_tensor(rate, dtype=torch.float32, device=table.device).reshape(-1).clamp(0, self.rates - 1)
        below = rate.floor().long().clamp(max=self.rates - 2)
        part = (rate - below)[None, :, None]
        return torch.exp(table[:, below] * (1 - part) + table[:, below + 1] * part)[..., None, None]

    def gain(self, left: Tensor, right: Tensor, rate: float | Tensor = 0.0) -> Pair:
        """Scale both latents for ``rate``, a number or (B,), in [0, rates - 1]; 0 gives the fewest bits."""
        if self.rates == 1:
            return left.float(), right.float()
        gains = self._gains(self.log_gain, rate)
        return left.float() * gains[0], right.float() * gains[1]

    def inverse_gain(self, left: Tensor, right: Tensor, rate: float | Tensor = 0.0) -> Pair:
        """Undo ``gain`` after decoding."""
        if self.rates == 1:
            return left, right
        gains = self._gains(self.log_inverse_gain, rate)
        return left * gains[0], right * gains[1]

    # ------------------------------------------------------------------------------------------------ prediction

    def _predict(self, hyper: Pair, context: Pair) -> tuple[Pair, Pair]:
        """Log2 of the standard deviations, and means, of both views, from features (B, F, h, w) of each."""
        both = [torch.cat([h, c], 1) for h, c in zip(hyper, context, strict=True)]
        features = [net(x) for net, x in zip(self.view_features, both, strict=True)]
        log2_scales, means = [], []
        for v in (0, 1):
            own, other = features[v], features[1 - v]
            attention = gate(self.attention_gate[v](self.attention[v](torch.cat([own, other], 1))))
            # The context comes last, so that the integer evaluation can leave it out where it is zero.
            x = self.estimator[v][:-1](torch.cat([hyper[v], attention * other, context[v]], 1))
            with _float32(x):
                log2_scale, mean = self.estimator[v][-1](x.float()).chunk(2, 1)
            log2_scales.append(
                _Clamp.apply(log2_scale, float(SCALE_LOG2_MIN), (SCALE_LEVELS - 1) / SCALES_PER_OCTAVE + SCALE_LOG2_MIN)
            )
            means.append(mean)
        return (log2_scales[0], log2_scales[1]), (means[0], means[1])

    def _predict_raster(self, y: Pair, hyper: Pair) -> tuple[Pair, Pair]:
        # The decoded cells are not known before their means are: noise stands in for their rounding, as in Minnen 2018.
        return self._predict(hyper, (self.context[0](_noisy(y[0])), self.context[1](_noisy(y[1]))))

    def _predict_checkerboard(self, y: Pair, hyper: Pair) -> tuple[Pair, Pair]:
        nothing = torch.zeros_like(hyper[0])
        first_scales, first_means = self._predict(hyper, (nothing, nothing))
        anchors = checkerboard_anchors(y[0].shape[-2], y[0].shape[-1], y[0].device)
        decoded = [_round_through(y[v] - first_means[v]) + first_means[v] for v in (0, 1)]
        # After the first pass every place is decoded in exactly one view, so one map holds all that is known.
        known = torch.where(anchors[0], decoded[0], decoded[1])
        context = [self.context[v](known).masked_fill(anchors[v], 0) for v in (0, 1)]
        scales, means = self._predict(hyper, (context[0], context[1]))

        def merge(first: Pair, second: Pair) -> Pair:
            return (torch.where(anchors[0], first[0], second[0]), torch.where(anchors[1], first[1], second[1]))

        return merge(first_scales, scales), merge(first_means, means)

    def _hyper_latents(self, y: Pair) -> Pair:
        return tuple(
            _Clamp.apply(net(x).float(), -float(HYPER_SYMBOL_LIMIT), float(HYPER_SYMBOL_LIMIT))
            for net, x in zip(self.hyper_encoder, y, strict=True)
        )  # type: ignore[return-value]

    # ------------------------------------------------------------------------------------------------ both ways

    def forward(self, left: Tensor, right: Tensor, rate: float | Tensor = 0.0) -> EntropyOutput:
        """Quantise both latents, and say what they cost.

        In training the bits come from additive uniform noise, the latents from rounding with a straight-through
        gradient. In evaluation both are those of the real bitstream (of its integer arithmetic; bits are estimates).
        """
        if not self.training:
            return self._forward_exact(left, right, rate)
        y = self.gain(left, right, rate)
        z = self._hyper_latents(y)
        size = (left.shape[-2], left.shape[-1])
        hyper = (self.hyper_decoder[0](_round_through(z[0]), size), self.hyper_decoder[1](_round_through(z[1]), size))
        predict = self._predict_raster if self.context_kind == "raster" else self._predict_checkerboard
        log2_scales, means = predict(y, hyper)
        decoded, bits = [], []
        with _float32(left):
            for v in (0, 1):
                residual = y[v] - means[v]
                decoded.append(_round_through(residual) + means[v])
                bits.append(
                    gaussian_bits(_noisy(residual), log2_scales[v]).sum((1, 2, 3))
                    + self.hyper_density[v].bits(_noisy(z[v])).sum((1, 2, 3))
                )
            out_left, out_right = self.inverse_gain(decoded[0], decoded[1], rate)
        return EntropyOutput(out_left, out_right, bits[0], bits[1])

    def integer_prior(self) -> IntegerPrior:
        """The exact integer evaluation of the present weights, built again only where they have changed."""
        from .integer_prior import IntegerPrior  # imports this module

        key = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.parameters())
        if self._integer is None or self._integer[0] != key:
            self._integer = (key, IntegerPrior(self))
        return self._integer[1]

    @torch.no_grad()
    def quantise(self, left: Tensor, right: Tensor, rate: float | Tensor = 0.0) -> QuantisedLatents:
        """All symbols of both latents, and the indices of their scales, in the order in which they are coded."""
        with _float32(left):
            y = self.gain(left, right, rate)
            # What is no number is coded as something: a bad frame must not stop the stream.
            z = [torch.round(x).nan_to_num(0.0) for x in self._hyper_latents(y)]
        return self.integer_prior().quantise(y, (z[0], z[1]))

    def _forward_exact(self, left: Tensor, right: Tensor, rate: float | Tensor) -> EntropyOutput:
        coded = self.quantise(left, right, rate)
        with _float32(left), torch.no_grad():
            y = self.inverse_gain(*coded.latents(), rate)
            bits = coded.latent_bits()
            hyper = [self.hyper_density[v].bits(coded.hyper[v].float()).sum((1, 2, 3)) for v in (0, 1)]
        return EntropyOutput(y[0], y[1], bits[0] + hyper[0], bits[1] + hyper[1])
