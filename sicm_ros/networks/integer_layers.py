# SPDX-License-Identifier: Apache-2.0
"""Layers of the entropy model in exact fixed-point integers, as PyTorch's float64 or as compiled integer code.

Numbers have ``FRACTION_BITS`` binary places. A layer is one matrix product on unfolded rows. Its weights are rounded to
16 bits with a power-of-two scale for each output channel, and every partial sum is a multiple of that scale and stays
below 2 ** 52 of it, which is checked when the layer is built; so the product in float64 is exact whatever the order of
summation, the number of threads or the batch, and equal to that in 64-bit integers. There are no convolution calls
(Winograd and FFT variants round), and neither TF32 nor autocast applies to float64. Between layers numbers are rounded
down.

``FloatLayers`` runs on any device, ``CompiledLayers`` on a CPU, where it is faster. Both have the same methods, on rows
(B, n, C) of their own kind.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .entropy_layers import LEAK, SCALE_LEVELS, SCALE_LOG2_MIN, SCALES_PER_OCTAVE

if TYPE_CHECKING:
    from .integer_kernel import Rows

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

    def __call__(self, *parts: tuple[Tensor, Tensor | None], into: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Rows (B, n, outputs) of the inputs that ``parts`` give, one after another; later inputs count as zero.

        A part is rows and a table (n, taps) of which of them are taken together, or None for each by itself. ``into``:
        rows that the result is put into, and at which n cells; these rows are returned then.
        """
        x = torch.cat([_gather(rows, near) for rows, near in parts], 2)
        sums = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight[: x.shape[-1]])
        out = self._rounded(sums).view(*x.shape[:-1], len(self.bias))
        return out if into is None else into[0].index_copy_(1, into[1], out)

    def _rounded(self, sums: Tensor) -> Tensor:
        if self.kind == "gate":
            return sums.floor_().clamp_(0, ONE)
        sums.clamp_(-_LIMIT, _LIMIT)
        return (functional.leaky_relu_(sums, LEAK) if self.kind == "leaky" else sums).floor_()


def _gather(rows: Tensor, near: Tensor | None) -> Tensor:
    """Rows (B, m, C) at ``near`` (n, taps): (B, n, taps * C)."""
    if near is None:
        return rows
    count, taps = near.shape
    return rows.index_select(1, near.reshape(-1)).view(rows.shape[0], count, taps * rows.shape[2])


class FloatLayers:
    """Layers and what lies between them, in float64 on ``device``."""

    def __init__(self, device: torch.device) -> None:
        """Raises ValueError on a GPU whose float64 products are to be made of narrower ones."""
        if device.type == "cuda" and os.environ.get("CUBLAS_EMULATE_DOUBLE_PRECISION", "0") not in ("", "0"):
            raise ValueError("entropy model: CUBLAS_EMULATE_DOUBLE_PRECISION must be unset, its sums are not exact")
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

    def maps(self, values: Tensor) -> Tensor:
        """Numbers (B, C, h, w) in the form in which ``nearest`` takes them."""
        # Strided, their cells are slow to take.
        return values.to(self.device, torch.float64).flatten(2).transpose(1, 2).contiguous()

    def with_zero(self, values: Tensor) -> Tensor:
        """Rows of integers (B, C, h, w), and a zero row behind them."""
        return functional.pad(self.maps(values), (0, 0, 0, 1))

    def put(self, rows: Tensor, cells: Tensor, values: Tensor) -> None:
        """Set some rows."""
        rows.index_copy_(1, cells, values)

    def result(self, batch: int, count: int, channels: int) -> Tensor:
        """Where ``keep`` puts rows that no layer takes."""
        return torch.zeros(batch, count, channels, dtype=torch.int32, device=self.device)

    def keep(self, result: Tensor, cells: Tensor, values: Tensor) -> None:
        """Set some rows of a result."""
        result.index_copy_(1, cells, values.int())

    def scaled(self, rows: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
        """floor(rows at ``cells`` * weights / ONE)."""
        return rows.index_select(1, cells).mul_(weights).mul_(1 / ONE).floor_()

    def interleaved(self, rows: Tensor, size: tuple[int, int], out: tuple[int, int]) -> Tensor:
        """Rows (B, h * w, 4 C) of ``size``, the four parities of each cell, to rows (B, h' * w' + 1, C) of ``out``,
        with a zero row behind them."""
        y = rows.unflatten(2, (2, 2, -1)).unflatten(1, size)
        y = y.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, : out[0], : out[1]].flatten(1, 2)
        return functional.pad(y, (0, 0, 0, 1))

    def parameters(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Scale indices and means, (B, n + n', C), of both views' rows (B, n, 2 C): log2 of the scales, and means."""
        log2_scale, mean = torch.cat(outputs, 1).chunk(2, -1)
        index = (log2_scale * (SCALES_PER_OCTAVE / ONE) + (0.5 - SCALE_LOG2_MIN * SCALES_PER_OCTAVE)).floor_()
        return index.clamp_(0, SCALE_LEVELS - 1).int(), mean

    def nearest(
        self, maps: tuple[Tensor, Tensor], cells: tuple[Tensor, Tensor], index: Tensor, mean: Tensor, limits: Tensor
    ) -> Tensor:
        """The symbols that bring the means nearest to the ``cells`` of both views' maps, as far as ``limits`` (one for
        each scale index) let them; 0 for what is no number."""
        wanted = torch.cat([x.index_select(1, t) for x, t in zip(maps, cells, strict=True)], 1)
        limit = limits[index]
        return torch.floor(wanted - mean / ONE + 0.5).nan_to_num(0.0).clamp(-limit, limit)

    def values(self, symbols: Tensor, mean: Tensor, counts: tuple[int, int]) -> Sequence[Tensor]:
        """The decoded rows of both views, of which there are ``counts``."""
        return (symbols * ONE + mean).split(counts, 1)

    def symbols(self, symbols: np.ndarray) -> Tensor:
        """A decoder's symbols, int32, in the form in which ``values`` takes them."""
        return torch.from_numpy(symbols).to(self.device, torch.float64)

    def tensor(self, numbers: Tensor) -> Tensor:
        """A result, symbols or indices, int32."""
        return numbers.int()


class _CompiledLayer:
    def __init__(self, integers: _Rounded, kernel: Any) -> None:
        self._kernel = kernel
        exponent = integers.exponent.long()
        self.outputs = len(exponent)
        self._weight = integers.weight.numpy().astype(np.int32)  # (inputs, outputs)
        half = (1 << exponent) >> 1
        offset = int(2 * ONE) << exponent if integers.kind == "gate" else 0
        self._bias = (integers.bias.long() + half + offset).numpy()
        self._shift = (exponent + (2 if integers.kind == "gate" else 0)).numpy()
        low, high = (0, int(ONE)) if integers.kind == "gate" else (-int(_LIMIT), int(_LIMIT))
        self._range = low, high, LEAK_BITS if integers.kind == "leaky" else 0
        self._packed: dict[tuple[tuple[int, int], ...], Any] = {}

    def __call__(self, *parts: tuple[Any, np.ndarray | None], into: tuple[Any, np.ndarray] | None = None) -> Any:
        """As _FloatLayer."""
        tables = [(rows, _every_row(rows.count) if near is None else near) for rows, near in parts]
        key = tuple([(near.shape[1], rows.channels) for rows, near in tables])
        weights = self._packed.get(key)
        if weights is None:
            weights = self._packed[key] = self._kernel.Weights(self._weight, self._bias, self._shift, key)
        if into is None:
            count = len(tables[0][1])
            into = self._kernel.Rows(parts[0][0].batch, count, self.outputs, np.empty), _row_numbers(count)
        weights.apply(tables, *self._range, *into)
        return into[0]


@cache
def _row_numbers(count: int) -> np.ndarray:
    return np.arange(count)


@cache
def _every_row(count: int) -> np.ndarray:
    return np.arange(count)[:, None]


class CompiledLayers:
    """As FloatLayers, in integers on a CPU; rows are ``integer_kernel.Rows``, all else are arrays."""

    def __init__(self) -> None:
        # Not at the top: it is compiled, or what is compiled is read, at its import, and a GPU does without.
        from . import integer_kernel

        self._kernel = integer_kernel

    def layer(self, weight: Tensor, bias: Tensor | None, kind: str = "") -> _CompiledLayer:
        """As FloatLayers.layer."""
        return _CompiledLayer(_Rounded(weight, bias, kind), self._kernel)

    def table(self, index: Tensor) -> np.ndarray:
        """As FloatLayers.table."""
        return index.contiguous().numpy()

    def zeros(self, batch: int, count: int, channels: int) -> Rows:
        """Rows of zeros."""
        return self._kernel.Rows(batch, count, channels)

    def maps(self, values: Tensor) -> np.ndarray:
        """As FloatLayers.maps."""
        return values.detach().to("cpu", torch.float32).flatten(2).contiguous().numpy()

    def with_zero(self, values: Tensor) -> Rows:
        """As FloatLayers.with_zero."""
        numbers = values.to("cpu", torch.int32).flatten(2).transpose(1, 2).contiguous().numpy()
        batch, count, channels = numbers.shape
        rows = self.zeros(batch, count + 1, channels)
        rows.put(_row_numbers(count), numbers)
        return rows

    def put(self, rows: Rows, cells: np.ndarray, values: np.ndarray) -> None:
        """Set some rows."""
        rows.put(cells, values)

    def result(self, batch: int, count: int, channels: int) -> np.ndarray:
        """As FloatLayers.result."""
        return np.zeros((batch, count, channels), np.int32)

    def keep(self, result: np.ndarray, cells: np.ndarray, values: np.ndarray) -> None:
        """Set some rows of a result."""
        result[:, cells] = values

    def scaled(self, rows: Rows, cells: np.ndarray, weights: Rows) -> Rows:
        """As FloatLayers.scaled."""
        return rows.scaled(cells, weights, FRACTION_BITS)

    def interleaved(self, rows: Rows, size: tuple[int, int], out: tuple[int, int]) -> Rows:
        """As FloatLayers.interleaved."""
        return rows.interleaved(size, out)

    def parameters(self, outputs: tuple[Rows, Rows]) -> tuple[np.ndarray, np.ndarray]:
        """As FloatLayers.parameters."""
        offset = (1 << (FRACTION_BITS - 1)) - ((SCALE_LOG2_MIN * SCALES_PER_OCTAVE) << FRACTION_BITS)
        return self._kernel.scale_indices(outputs, SCALES_PER_OCTAVE, offset, FRACTION_BITS, SCALE_LEVELS - 1)

    def nearest(
        self,
        maps: tuple[np.ndarray, np.ndarray],
        cells: tuple[np.ndarray, np.ndarray],
        index: np.ndarray,
        mean: np.ndarray,
        limits: Tensor,
    ) -> np.ndarray:
        """As FloatLayers.nearest."""
        return self._kernel.nearest(maps, cells, index, mean, 1 / ONE, limits.numpy())

    def values(self, symbols: np.ndarray, mean: np.ndarray, counts: tuple[int, int]) -> Sequence[np.ndarray]:
        """As FloatLayers.values."""
        both = np.left_shift(symbols, FRACTION_BITS) + mean
        return np.ascontiguousarray(both[:, : counts[0]]), np.ascontiguousarray(both[:, counts[0] :])

    def symbols(self, symbols: np.ndarray) -> np.ndarray:
        """As FloatLayers.symbols."""
        return symbols

    def tensor(self, numbers: np.ndarray) -> Tensor:
        """As FloatLayers.tensor."""
        return torch.from_numpy(numbers)


Layers = FloatLayers | CompiledLayers
