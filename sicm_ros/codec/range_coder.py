# SPDX-License-Identifier: Apache-2.0
"""The entropy coder: symbols to bytes and back, under integer tables.

The bytes are those of ``constriction``'s ANS coder, which the tests compare with. That library has wheels for x86_64
alone. Of the symbols of one step, those with the same table are coded one after another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..networks.entropy_layers import HYPER_SYMBOL_LIMIT, SCALE_LEVELS
from ..networks.entropy_tables import TABLE_BITS, EntropyTables
from ..networks.integer_prior import symbol_limits
from . import ans

__all__ = ["RangeCoder", "SymbolDecoder", "SymbolEncoder"]


class RangeCoder:
    """The coder's form of one set of tables: flat arrays of all rows, first the latents' (a row for each scale index),
    then the hyper-latents' (a row for each channel, left view first)."""

    def __init__(self, tables: EntropyTables) -> None:
        self.tables = tables
        self.channels = tables.hyper.shape[1]
        hyper = tables.hyper.reshape(-1, tables.hyper.shape[2])
        limits = [*symbol_limits().tolist(), *([HYPER_SYMBOL_LIMIT] * len(hyper))]
        self.limits = np.array(limits, np.int32)
        sizes = 2 * self.limits + 1
        self.centres = (np.cumsum(sizes) - self.limits - 1).astype(np.int32)
        self.bits = np.concatenate([tables.latent_bits, tables.hyper_bits.reshape(-1)])
        lows, widths, firsts = [], [], []
        for counts, start in zip([*tables.latent_rows, *hyper], self.centres - self.limits, strict=True):
            bounds = _bounds(counts)
            lows.append(bounds[:-1])
            widths.append(np.diff(bounds))
            buckets = np.arange(ans.BUCKETS) * (1 << ans.PRECISION) // ans.BUCKETS
            firsts.append(start + np.searchsorted(bounds, buckets, "right") - 1)
        self.low, self.width = (np.concatenate(x).astype(np.uint32) for x in (lows, widths))
        self.first = np.array(firsts, np.int32)
        self._hyper_rows: dict[tuple[int, int], np.ndarray] = {}

    def least_bits(self) -> tuple[float, float]:
        """The fewest bits of a latent's symbol, and those of one symbol of each hyper-latent channel together."""
        least = np.minimum.reduceat(self.bits, self.centres - self.limits)
        return float(least[:SCALE_LEVELS].min()), float(least[SCALE_LEVELS:].sum())

    def hyper_rows(self, view: int, shape: Sequence[int]) -> np.ndarray:
        """The row (Z * hz * wz,) uint16 of each symbol of a hyper-latent of ``shape`` (Z, hz, wz)."""
        if shape[0] != self.channels:
            raise ValueError(f"hyper-latent: expected {self.channels} channels, got {shape[0]}")
        cells = int(np.prod(shape[1:]))
        key = (view, cells)
        if key not in self._hyper_rows:
            start = SCALE_LEVELS + view * self.channels
            rows = np.arange(start, start + self.channels, dtype=np.uint16).repeat(cells)
            # A model has one size of both views; keep no more.
            self._hyper_rows = {k: v for k, v in self._hyper_rows.items() if k[1] == cells} | {key: rows}
        return self._hyper_rows[key]


def _bounds(counts: np.ndarray) -> np.ndarray:
    """Bounds (m + 1,) int64 of the symbols with ``counts`` (m,), in 2 ** -24; see docs/packet.md, section 2."""
    m = len(counts)
    before = np.concatenate([[0], np.cumsum(counts[:-1].astype(np.int64))])
    return np.append(before * ((1 << ans.PRECISION) - m) // (1 << TABLE_BITS) + np.arange(m), 1 << ans.PRECISION)


class SymbolEncoder:
    """Collects symbols in the order in which they are to be decoded; ``bits`` is their information content so far.

    Raises ValueError for symbols that their table does not have.
    """

    def __init__(self, coder: RangeCoder) -> None:
        self._coder = coder
        self._positions: list[np.ndarray] = []
        self.bits = 0.0

    def hyper(self, view: int, symbols: np.ndarray) -> None:
        """Append a hyper-latent (Z, hz, wz) of integers in [-63, 63]; ``view`` 0 is left, 1 is right."""
        self._append(symbols, self._coder.hyper_rows(view, symbols.shape))

    def latents(self, symbols: np.ndarray, indices: np.ndarray) -> None:
        """Append the symbols of one step with their scale indices: integer arrays of one shape."""
        self._append(symbols, indices.reshape(-1).astype(np.uint16))

    def _append(self, symbols: np.ndarray, rows: np.ndarray) -> None:
        positions = np.empty(len(rows), np.int32)
        flat = symbols.reshape(-1).astype(np.int32, copy=False)
        if len(flat) != len(rows):
            raise ValueError(f"symbols: expected a scale index for each, got {len(flat)} and {len(rows)}")
        coder = self._coder
        bits = ans.group(flat, rows, coder.limits, coder.centres, coder.bits, positions)
        if bits < 0:
            raise ValueError("symbols: expected those of their tables, got one beyond")
        self._positions.append(positions)
        self.bits += bits

    def finish(self) -> bytes:
        """The coded bytes: little-endian words without the zero bytes at their end."""
        positions = np.concatenate([np.empty(0, np.int32), *self._positions])
        return ans.encode(positions, self._coder.low, self._coder.width).astype("<u4").tobytes().rstrip(b"\0")


class SymbolDecoder:
    """Returns symbols in the order in which they were given to a ``SymbolEncoder``.

    Damaged bytes give wrong symbols, but always symbols within the tables.
    """

    def __init__(self, coder: RangeCoder, payload: bytes) -> None:
        self._coder = coder
        words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32)
        used = np.flatnonzero(words)  # an ANS stream never ends in a zero word
        left = int(used[-1]) + 1 if len(used) else 0
        state = 0
        while state < 1 << 32 and left:
            left -= 1
            state = state << 32 | int(words[left])
        self._words, self._stack = words, np.array([state, left], np.uint64)

    def hyper(self, view: int, shape: Sequence[int]) -> np.ndarray:
        """The next hyper-latent (Z, hz, wz), int32."""
        return self._take(self._coder.hyper_rows(view, shape)).reshape(shape)

    def latents(self, indices: np.ndarray) -> np.ndarray:
        """The next step's symbols, int32, in the shape of ``indices``."""
        return self._take(indices.reshape(-1).astype(np.uint16)).reshape(indices.shape)

    def _take(self, rows: np.ndarray) -> np.ndarray:
        coder, symbols = self._coder, np.empty(len(rows), np.int32)
        ans.decode(self._words, self._stack, rows, coder.low, coder.width, coder.first, coder.centres, symbols)
        return symbols

    def at_end(self) -> bool:
        """Whether exactly what was encoded has been decoded."""
        return not self._stack.any()
