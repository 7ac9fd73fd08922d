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
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .config import MvsfcConfig
from .entropy_layers import (
    HYPER_SYMBOL_LIMIT,
    SCALE_LEVELS,
    SCALE_LOG2_MIN,
    SCALES_PER_OCTAVE,
    EntropyLayers,
    Pair,
    checkerboard_anchors,
    gate,
    gaussian_bits,
)
from .integer_prior import IntegerPrior, QuantisedLatents

__all__ = ["EntropyOutput", "StereoEntropyModel"]

_GAIN_SPREAD = 3.0  # log2 of the gain at the highest rate over that at the lowest, before training


class EntropyOutput(NamedTuple):
    """The decoded latents and their size in bits.

    ``left`` and ``right`` (B, C, h, w) are the decoded latents after the inverse gain; ``bits_left`` and ``bits_right``
    (B,) include the hyper-latents.
    """

    left: Tensor
    right: Tensor
    bits_left: Tensor
    bits_right: Tensor


class _Clamp(torch.autograd.Function):
    """Clamp whose gradient vanishes only where a step would move the value further out of the range."""

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
    """Turn autocast off: positions of symbols and logarithms of small likelihoods need 24 bits."""
    return torch.autocast(x.device.type, enabled=False)


class StereoEntropyModel(EntropyLayers):
    """Joint entropy model of the latents of both views, each (B, C, h, w).

    ``rates`` is the number of trained rates; above 1 the latents are scaled by learned gains for each channel, view and
    rate before they are quantised. For the other arguments see ``EntropyLayers``.
    """

    def __init__(
        self,
        channels: int,
        hyper_channels: int,
        context: Literal["raster", "checkerboard"] = "checkerboard",
        rate_count: int = 1,
        context_channels: int | None = None,
    ) -> None:
        super().__init__(channels, hyper_channels, context, context_channels)
        self.rate_count = rate_count
        if rate_count > 1:
            start = (
                (torch.linspace(-_GAIN_SPREAD, 0, rate_count) * math.log(2))
                .view(1, rate_count, 1)
                .repeat(2, 1, channels)
            )
            self.log_gain = nn.Parameter(start.clone())
            self.log_inverse_gain = nn.Parameter(-start)
        self._integer: tuple[tuple, IntegerPrior] | None = None

    @classmethod
    def from_config(cls, config: MvsfcConfig) -> StereoEntropyModel:
        """The entropy model of a network's configuration."""
        return cls(
            config.latent_channels, config.hyper_channels, config.context, config.rate_count, config.context_channels
        )

    # ------------------------------------------------------------------------------------------------ gains

    def _gains(self, table: Tensor, rate: float | Tensor) -> Tensor:
        """Interpolate the logarithms of (2, rate_count, C) at ``rate``: gains (2, B or 1, C, 1, 1)."""
        if not isinstance(rate, Tensor):
            at = min(max(float(rate), 0.0), self.rate_count - 1.0)
            first = min(int(at), self.rate_count - 2)
            row = table[:, first] * (1 - (at - first)) + table[:, first + 1] * (at - first)
            return torch.exp(row)[:, None, :, None, None]
        rate = rate.to(table.device, torch.float32).reshape(-1).clamp(0, self.rate_count - 1)
        below = rate.floor().long().clamp(max=self.rate_count - 2)
        part = (rate - below)[None, :, None]
        return torch.exp(table[:, below] * (1 - part) + table[:, below + 1] * part)[..., None, None]

    def gain(self, left: Tensor, right: Tensor, rate: float | Tensor = 0.0) -> Pair:
        """Scale both latents (B, C, h, w) for ``rate``, a number or (B,), from 0 (fewest bits) to rate_count - 1."""
        if self.rate_count == 1:
            return left.float(), right.float()
        gains = self._gains(self.log_gain, rate)
        return left.float() * gains[0], right.float() * gains[1]

    def inverse_gain(self, left: Tensor, right: Tensor, rate: float | Tensor = 0.0) -> Pair:
        """Undo ``gain`` on decoded latents (B, C, h, w), at the same ``rate``."""
        if self.rate_count == 1:
            return left, right
        gains = self._gains(self.log_inverse_gain, rate)
        return left * gains[0], right * gains[1]

    # ------------------------------------------------------------------------------------------------ prediction

    def _predict(self, hyper: Pair, context: Pair) -> tuple[Pair, Pair]:
        """Log2 of the standard deviations, and means, (B, C, h, w) of each view, from features (B, F, h, w) of each."""
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
        """Quantise both latents (B, C, h, w), and estimate their bits.

        ``rate`` as for ``gain``. In training, the bits come from additive uniform noise, and the latents from rounding
        with a straight-through gradient. In evaluation, both come from the integer arithmetic of the real bitstream.
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
        """The exact integer evaluation of the current weights, rebuilt only if they have changed."""
        key = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.parameters())
        if self._integer is None or self._integer[0] != key:
            self._integer = (key, IntegerPrior(self))
        return self._integer[1]

    @torch.no_grad()
    def quantise(
        self, left: Tensor, right: Tensor, rate: float | Tensor = 0.0, prior: IntegerPrior | None = None
    ) -> QuantisedLatents:
        """Symbols and scale indices of both latents (B, C, h, w), in coding order. ``rate`` as for ``gain``.

        ``prior``: ``integer_prior``'s, for callers whose weights do not change; to look whether they have takes time.
        """
        with _float32(left):
            y = self.gain(left, right, rate)
            # What is no number is coded as something: a bad frame must not stop the stream.
            most = float(HYPER_SYMBOL_LIMIT)
            z = [
                net(x).float().clamp(-most, most).round().nan_to_num(0.0)
                for net, x in zip(self.hyper_encoder, y, strict=True)
            ]
        return (prior or self.integer_prior()).quantise(y, (z[0], z[1]))

    def _forward_exact(self, left: Tensor, right: Tensor, rate: float | Tensor) -> EntropyOutput:
        coded = self.quantise(left, right, rate)
        with _float32(left), torch.no_grad():
            y = self.inverse_gain(*coded.latents(), rate)
            bits = coded.latent_bits()
            hyper = [self.hyper_density[v].bits(coded.hyper[v].float()).sum((1, 2, 3)) for v in (0, 1)]
        return EntropyOutput(y[0], y[1], bits[0] + hyper[0], bits[1] + hyper[1])
