# SPDX-License-Identifier: Apache-2.0
"""Layers of the entropy model in exact fixed-point integers, as PyTorch's float64 or as compiled integer code.

Numbers have ``FRACTION_BITS`` binary places. A layer is one matrix product on unfolded rows. Its weights are rounded to
16 bits with a power-of-two scale for each output channel, and every partial sum is a multiple of that scale and stays
below 2 ** 52 of it, which is checked when the layer is built; so the product in float64 is exact whatever the order of
summation, the number of threads or the batch, and equal to that in 64-bit integers. There are no convolution calls
(Winograd and FFT variants round), and neither TF32 nor autocast applies to float64. Between layers numbers are rounded
down.

``FloatLayers`` runs on any device, ``CompiledLayers`` on a CPU, where it is faster. Both have the same methods, on rows
(B, n, C) of their own: float64 tensors, or int32 arrays.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .entropy_layers import LEAK

__all__ = ["FRACTION_BITS", "ONE", "CompiledLayers", "FloatLayers", "Layers"]

FRACTION_BITS = 10
ONE = float(1 << FRACTION_BITS)
WEIGHT_BITS = 15  # and a sign
LEAK_BITS = 6  # LEAK is 2 ** -6
_MAX_EXPONENT = 30  # of a channel's scale 2 ** -exponent
_LIMIT = float((1 << 21) - 1)  # activations saturate at about +-2048
_INPUT_LIMIT = float(1 << 22)  # no input of a layer is larger: decoded latents are a symbol plus a mean


class _Rounded:
    """The integers of a layer: ``weight`` (inputs, outputs), ``exponent`` and ``bias`` (outputs), float64.

    The layer is y = floor((x W + bias) / 2 ** exponent + 1/2), saturated. ``leaky``: then max(y, floor(y / 64)).
    ``gate``: then clamp(floor(y / 4) + ONE / 2, 0, ONE). As floor(floor(a) / n) = floor(a / n), one ``floor`` does for
    both. Raises ValueError for weights that are not finite or too large.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: str) -> None:
        assert bias is not None  # every convolution of the entropy model has one
        weight, bias = weight.detach().cpu().double(), bias.detach().cpu().double()
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise ValueError("entropy model: weights must be finite")
        # frexp: max |w| < 2 ** e, so that |w| 2 ** (15 - e) < 2 ** 15
        self.exponent = (WEIGHT_BITS - torch.frexp(weight.abs().amax(0))[1]).clamp(max=_MAX_EXPONENT)
        self.scale = torch.exp2(self.exponent.double())
        self.weight = torch.round(weight * self.scale)
        self.bias = torch.round(bias * ONE * self.scale)
        self.kind = kind
        # What is added before the shift, in units of y, and the shift that the gate's quarter is.
        self.offset, self.slope = (2 * ONE + 0.5, 0.25) if kind == "gate" else (0.5, 1.0)
        bound = self.weight.abs().sum(0) * _INPUT_LIMIT + self.bias.abs() + 2 * self.offset * self.scale
        if bound.max() >= 2.0**52 or self.exponent.min() < 0:
            raise ValueError("entropy model: weights are too large for exact integer evaluation")


class _FloatLayer:
    def __init__(self, integers: _Rounded, device: torch.device) -> None:
        # Scaling by a power of two is exact, so the shift after the product is folded into the operands.
        slope, scale = integers.slope, integers.scale
        self.weight = (integers.weight * slope / scale).to(device).contiguous()
        self.bias = ((integers.bias / scale + integers.offset) * slope).to(device)
        self.kind = integers.kind

    def sums(self, rows: Tensor, near: Tensor | None = None) -> Tensor:
        """The sums (B, n, outputs) before rounding, of ``rows`` at ``near`` (n, taps); later inputs count as zero."""
        x = _gather(rows, near)
        sums = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight[: x.shape[-1]])
        return sums.view(*x.shape[:-1], len(self.bias))

    def add(self, sums: Tensor, rows: Tensor, start: int, near: Tensor | None = None) -> Tensor:
        """Add the contribution of ``rows``, the inputs from ``start`` on, to ``sums``, in place."""
        x = _gather(rows, near)
        sums.view(-1, sums.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.weight[start : start + x.shape[-1]])
        return sums

    def rounded(self, sums: Tensor) -> Tensor:
        """Round, saturate, and apply the activation: rows; ``sums`` is overwritten."""
        if self.kind == "gate":
            return sums.floor_().clamp_(0, ONE)
        sums.clamp_(-_LIMIT, _LIMIT)
        return (functional.leaky_relu_(sums, LEAK) if self.kind == "leaky" else sums).floor_()

    def __call__(self, rows: Tensor, near: Tensor | None = None) -> Tensor:
        return self.rounded(self.sums(rows, near))


def _gather(rows: Tensor, near: Tensor | None) -> Tensor:
    """Rows (B, m, C) at ``near`` (n, taps): (B, n, taps * C)."""
    if near is None:
        return rows
    count, taps = near.shape
    return rows.index_select(1, near.reshape(-1)).view(rows.shape[0], count, taps * rows.shape[2])


class FloatLayers:
    """Layers and what lies between them, in float64 on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def layer(self, weight: Tensor, bias: Tensor | None, kind: str = "") -> _FloatLayer:
        """The layer of ``weight`` (inputs, outputs), with the activation ``kind``. Raises ValueError, see _Rounded."""
        return _FloatLayer(_Rounded(weight, bias, kind), self.device)

    def table(self, index: Tensor) -> Tensor:
        """An index table in the form in which the other methods take it."""
        return index.to(self.device)

    def zeros(self, batch: int, count: int, channels: int) -> Tensor:
        """Rows of zeros."""
        return torch.zeros(batch, count, channels, dtype=torch.float64, device=self.device)

    def rows(self, values: Tensor) -> Tensor:
        """Rows of integers in a tensor (B, n, C) of any dtype."""
        return values.to(self.device, torch.float64)

    def tensor(self, rows: Tensor) -> Tensor:
        """The same as float64."""
        return rows

    def take(self, rows: Tensor, cells: Tensor) -> Tensor:
        """A copy of some rows, or sums."""
        return rows.index_select(1, cells)

    def put(self, rows: Tensor, cells: Tensor, values: Tensor) -> None:
        """Set some rows."""
        rows.index_copy_(1, cells, values)

    def with_zero(self, rows: Tensor) -> Tensor:
        """A zero row behind the others."""
        return torch.cat([rows, rows.new_zeros(rows.shape[0], 1, rows.shape[2])], 1)

    def scaled(self, rows: Tensor, weights: Tensor) -> Tensor:
        """floor(rows * weights / ONE); ``rows`` are overwritten."""
        return rows.mul_(weights).mul_(1 / ONE).floor_()

    def interleaved(self, rows: Tensor, size: tuple[int, int], out: tuple[int, int]) -> Tensor:
        """Rows (B, h * w, 4 C) of ``size``, the four parities of each cell, to rows (B, h' * w', C) of ``out``."""
        y = rows.unflatten(2, (2, 2, -1)).unflatten(1, size)
        return y.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, : out[0], : out[1]].flatten(1, 2)


class _CompiledLayer:
    def __init__(self, integers: _Rounded) -> None:
        # Not at the top: it is compiled, or what is compiled is read, at its import, and a GPU does without.
        from .integer_kernel import padded

        exponent = integers.exponent.long()
        self.outputs = len(exponent)
        self._sums = padded(self.outputs)
        self._weight = integers.weight.numpy().astype(np.int32)  # (inputs, outputs)
        half = (1 << exponent) >> 1
        offset = int(2 * ONE) << exponent if integers.kind == "gate" else 0
        self._bias = (integers.bias.long() + half + offset).numpy()
        self._shift = (exponent + (2 if integers.kind == "gate" else 0)).numpy()
        self._low, self._high = (0, int(ONE)) if integers.kind == "gate" else (-int(_LIMIT), int(_LIMIT))
        self._leak = LEAK_BITS if integers.kind == "leaky" else 0
        self._products: dict[tuple[int, int, int], Any] = {}

    def sums(self, rows: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        """As _FloatLayer.sums, without the bias."""
        near = _every_row(rows.shape[1]) if near is None else near
        return self.add(np.zeros((len(rows), len(near), self._sums), np.int64), rows, 0, near)

    def add(self, sums: np.ndarray, rows: np.ndarray, start: int, near: np.ndarray | None = None) -> np.ndarray:
        """As _FloatLayer.add."""
        from .integer_kernel import Products

        near = _every_row(rows.shape[1]) if near is None else near
        key = (start, near.shape[1], rows.shape[2])
        if key not in self._products:
            self._products[key] = Products(self._weight[start : start + key[1] * key[2]], key[1])
        self._products[key].add(rows, near, sums)
        return sums

    def rounded(self, sums: np.ndarray) -> np.ndarray:
        """As _FloatLayer.rounded."""
        from .integer_kernel import finish

        rows = np.empty((*sums.shape[:2], self.outputs), np.int32)
        finish(sums, self._bias, self._shift, self._low, self._high, self._leak, rows)
        return rows

    def __call__(self, rows: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        return self.rounded(self.sums(rows, near))


@cache
def _every_row(count: int) -> np.ndarray:
    return np.arange(count)[:, None]


class CompiledLayers:
    """As FloatLayers, in integers on a CPU."""

    def layer(self, weight: Tensor, bias: Tensor | None, kind: str = "") -> _CompiledLayer:
        """As FloatLayers.layer."""
        return _CompiledLayer(_Rounded(weight, bias, kind))

    def table(self, index: Tensor) -> np.ndarray:
        """As FloatLayers.table."""
        return index.contiguous().numpy()

    def zeros(self, batch: int, count: int, channels: int) -> np.ndarray:
        """Rows of zeros."""
        return np.zeros((batch, count, channels), np.int32)

    def rows(self, values: Tensor) -> np.ndarray:
        """As FloatLayers.rows."""
        return values.to("cpu", torch.int32).contiguous().numpy()

    def tensor(self, rows: np.ndarray) -> Tensor:
        """As FloatLayers.tensor."""
        return torch.from_numpy(rows).double()

    def take(self, rows: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """A copy of some rows, or sums."""
        return rows.take(cells, 1)

    def put(self, rows: np.ndarray, cells: np.ndarray, values: np.ndarray) -> None:
        """Set some rows."""
        rows[:, cells] = values

    def with_zero(self, rows: np.ndarray) -> np.ndarray:
        """A zero row behind the others."""
        return np.concatenate([rows, np.zeros_like(rows[:, :1])], 1)

    def scaled(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """As FloatLayers.scaled."""
        return (rows.astype(np.int64) * weights >> FRACTION_BITS).astype(np.int32)

    def interleaved(self, rows: np.ndarray, size: tuple[int, int], out: tuple[int, int]) -> np.ndarray:
        """As FloatLayers.interleaved."""
        batch, (height, width) = len(rows), size
        y = rows.reshape(batch, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, 2 * height, 2 * width, -1)[:, : out[0], : out[1]]
        return np.ascontiguousarray(y).reshape(batch, out[0] * out[1], -1)


Layers = FloatLayers | CompiledLayers
