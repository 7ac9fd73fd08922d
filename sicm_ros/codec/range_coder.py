# SPDX-License-Identifier: Apache-2.0
"""The entropy coder: symbols to bytes and back, under integer tables.

It is ``constriction``'s ANS coder (64-bit state, 32-bit words, 24-bit probabilities). It was chosen over CompressAI's
because it takes numpy arrays (CompressAI's takes lists, tables included, at each call), it cannot read beyond its input
(range checks there are debug assertions), and it does not bring in a whole training framework. Of the symbols of one
step, those with the same table are coded in one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from constriction import stream  # its submodules cannot be imported by their paths

from ..networks.entropy_layers import HYPER_SYMBOL_LIMIT, SCALE_LEVELS
from ..networks.entropy_tables import TOTAL, EntropyTables
from ..networks.integer_prior import symbol_limits

__all__ = ["RangeCoder", "SymbolDecoder", "SymbolEncoder"]


def _model(counts: np.ndarray) -> stream.model.Categorical:
    # With perfect=False the bounds are exact integers: floor(before * (2 ** 24 - n) / 2 ** 16) + i, see docs/packet.md.
    return stream.model.Categorical(counts.astype(np.float64) / TOTAL, perfect=False)


class RangeCoder:
    """The coder's models for one set of tables."""

    def __init__(self, tables: EntropyTables) -> None:
        self.tables = tables
        self.latent_models = [_model(row) for row in tables.latent_rows]
        self.hyper_models = [[_model(row) for row in view] for view in tables.hyper]


def _grouped(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coding order (n,) of symbols with scale indices (n,): by index, then as they come; and the ends of the groups."""
    return np.argsort(indices, kind="stable"), np.cumsum(np.bincount(indices, minlength=SCALE_LEVELS))


_LIMITS = symbol_limits().numpy().astype(np.int32)
_CENTRES = np.cumsum(2 * _LIMITS + 1) - _LIMITS - 1  # of each row in EntropyTables.latent


class SymbolEncoder:
    """Collects symbols in the order in which they are to be decoded; ``bits`` is their information content so far."""

    def __init__(self, coder: RangeCoder) -> None:
        self._coder = coder
        self._runs: list[tuple[np.ndarray, stream.model.Categorical]] = []
        self.bits = 0.0

    def hyper(self, view: int, symbols: np.ndarray) -> None:
        """Append a hyper-latent (Z, hz, wz) of integers in [-63, 63]; ``view`` 0 is left, 1 is right."""
        rows = symbols.reshape(len(symbols), -1).astype(np.int32) + HYPER_SYMBOL_LIMIT
        self._runs += zip(rows, self._coder.hyper_models[view], strict=True)
        self.bits += float(np.take_along_axis(self._coder.tables.hyper_bits[view], rows, 1).sum())

    def latents(self, symbols: np.ndarray, indices: np.ndarray) -> None:
        """Append the symbols of one step with their scale indices: integer arrays of one shape."""
        indices, symbols = indices.reshape(-1).astype(np.uint8), symbols.reshape(-1).astype(np.int32)
        order, ends = _grouped(indices)
        shifted = (symbols + _LIMITS[indices])[order]
        self.bits += float(self._coder.tables.latent_bits[symbols + _CENTRES[indices]].sum())
        start = 0
        for model, end in zip(self._coder.latent_models, ends.tolist(), strict=True):
            if end > start:
                self._runs.append((shifted[start:end], model))
            start = end

    def finish(self) -> bytes:
        """The coded bytes: little-endian words without the zero bytes at their end."""
        stack = stream.stack.AnsCoder()
        for symbols, model in reversed(self._runs):
            stack.encode_reverse(symbols, model)
        return stack.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class SymbolDecoder:
    """Returns symbols in the order in which they were given to a ``SymbolEncoder``.

    Damaged bytes give wrong symbols, but always symbols within the tables.
    """

    def __init__(self, coder: RangeCoder, payload: bytes) -> None:
        self._coder = coder
        words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32)
        # An ANS stream never ends in a zero word; only a forged one reaches the coder's own check, so drop them.
        used = np.flatnonzero(words)
        self._stack = stream.stack.AnsCoder(words[: used[-1] + 1] if len(used) else words[:0])

    def hyper(self, view: int, shape: Sequence[int]) -> np.ndarray:
        """The next hyper-latent (Z, hz, wz), int32."""
        count = int(np.prod(shape[1:]))
        rows = [self._stack.decode(model, count) for model in self._coder.hyper_models[view]]
        return np.stack(rows).reshape(shape) - HYPER_SYMBOL_LIMIT

    def latents(self, indices: np.ndarray) -> np.ndarray:
        """The next step's symbols, int32, in the shape of ``indices``."""
        flat = indices.reshape(-1).astype(np.uint8)
        order, ends = _grouped(flat)
        symbols = np.empty(len(flat), np.int32)
        start = 0
        for model, end in zip(self._coder.latent_models, ends.tolist(), strict=True):
            if end > start:
                symbols[order[start:end]] = self._stack.decode(model, end - start)
            start = end
        return (symbols - _LIMITS[flat]).reshape(indices.shape)

    def at_end(self) -> bool:
        """Whether exactly what was encoded has been decoded."""
        return bool(self._stack.is_empty())
