# SPDX-License-Identifier: Apache-2.0
"""Integer probability tables, and the entropy coder that turns symbols into bytes.

The coder is ``constriction``'s ANS coder (64-bit state, 32-bit words, 24-bit probabilities). It was chosen over
CompressAI's because it takes numpy arrays (CompressAI's takes lists, tables included, at each call), it cannot read
beyond its input (range checks there are debug assertions), and it does not bring in a whole training framework. Of the
symbols of one step, those with the same table are coded in one call: 0.5 ms for a pair of 19 200 symbols.

The tables are integers, made once, when a model is saved, and stored with its weights: two machines' ``erf`` may differ
in the last bit, and one different count breaks a stream.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from constriction import stream  # its submodules cannot be imported by their paths

from ..networks.entropy_model import HYPER_SYMBOL_LIMIT, SCALE_LEVELS, StereoEntropyModel, gaussian_bits, scale_table
from ..networks.integer_prior import symbol_limits

__all__ = ["TABLE_BITS", "EntropyTables", "SymbolDecoder", "SymbolEncoder", "TableError"]

TABLE_BITS = 16
TOTAL = 1 << TABLE_BITS


class TableError(ValueError):
    """Probability tables that are no tables of this codec; the message says which entry is wrong."""


def _counts(probabilities: np.ndarray) -> np.ndarray:
    """Integer counts (n,) that sum to TOTAL, none of them zero."""
    shares = probabilities / probabilities.sum() * (TOTAL - len(probabilities))
    counts = np.floor(shares).astype(np.int64) + 1
    counts[np.argmax(counts)] += TOTAL - counts.sum()
    return counts


def _model(counts: np.ndarray) -> stream.model.Categorical:
    # With perfect=False the bounds are exact integers: floor(before * (2 ** 24 - n) / 2 ** 16) + i, see docs/packet.md.
    return stream.model.Categorical(counts.astype(np.float64) / TOTAL, perfect=False)


@dataclass(frozen=True)
class EntropyTables:
    """How often, of 65536 times, each symbol is expected.

    ``latent``: counts of the symbols -limit .. limit of scale index 0, then of index 1, ...; 1-D int32, limits from
    ``symbol_limits``. ``hyper``: (2 views, Z, 127), int32, the symbols -63 .. 63 of each hyper-latent channel.
    """

    latent: np.ndarray
    hyper: np.ndarray

    def __post_init__(self) -> None:
        size = int((2 * symbol_limits() + 1).sum())
        if self.latent.shape != (size,):
            raise TableError(f"tables.latent: expected {size} counts, got shape {self.latent.shape}")
        width = 2 * HYPER_SYMBOL_LIMIT + 1
        if self.hyper.ndim != 3 or self.hyper.shape[0] != 2 or self.hyper.shape[2] != width:
            raise TableError(f"tables.hyper: expected shape (2, Z, {width}), got {self.hyper.shape}")
        for name, tables in (("latent", self.latent_rows), ("hyper", list(self.hyper.reshape(-1, width)))):
            for i, counts in enumerate(tables):
                if counts.min() < 1 or counts.sum() != TOTAL:
                    raise TableError(f"tables.{name}: row {i} must have positive counts that sum to {TOTAL}")

    @classmethod
    def build(cls, model: StereoEntropyModel) -> EntropyTables:
        """The tables of a trained model: normal densities for its latents, its learned ones for the hyper-latents."""
        latent = []
        log2_scales = torch.log2(scale_table())
        for i, limit in enumerate(symbol_limits().tolist()):
            symbols = torch.arange(-limit, limit + 1, dtype=torch.float64)
            latent.append(_counts(torch.exp2(-gaussian_bits(symbols, log2_scales[i])).numpy()))
        symbols = torch.arange(-HYPER_SYMBOL_LIMIT, HYPER_SYMBOL_LIMIT + 1, dtype=torch.float64)
        hyper = []
        with torch.no_grad():
            for density in model.hyper_density:
                z = symbols.view(1, 1, 1, -1).expand(1, model.hyper_channels, 1, -1)
                mass = torch.exp2(-copy.deepcopy(density).cpu().double().bits(z))[0, :, 0].numpy()
                hyper.append([_counts(row) for row in mass])
        return cls(np.concatenate(latent).astype(np.int32), np.array(hyper, np.int32))

    @cached_property
    def latent_rows(self) -> list[np.ndarray]:
        """Counts of each scale index."""
        ends = np.cumsum((2 * symbol_limits() + 1).numpy())
        return np.split(self.latent, ends[:-1])

    @cached_property
    def latent_bits(self) -> np.ndarray:
        """Information content of each entry of ``latent``, float64."""
        return TABLE_BITS - np.log2(self.latent)

    @cached_property
    def hyper_bits(self) -> np.ndarray:
        """Information content of each entry of ``hyper``, float64."""
        return TABLE_BITS - np.log2(self.hyper)

    @cached_property
    def latent_models(self) -> list[stream.model.Categorical]:
        """Coder model of each scale index."""
        return [_model(row) for row in self.latent_rows]

    @cached_property
    def hyper_models(self) -> list[list[stream.model.Categorical]]:
        """Coder model of each channel of each view's hyper-latent."""
        return [[_model(row) for row in view] for view in self.hyper]

    def tensors(self) -> dict[str, torch.Tensor]:
        """For the weights file."""
        return {"tables.latent": torch.from_numpy(self.latent), "tables.hyper": torch.from_numpy(self.hyper)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> EntropyTables:
        """From the weights file. Raises TableError."""
        try:
            latent, hyper = tensors["tables.latent"], tensors["tables.hyper"]
        except KeyError as e:
            raise TableError(f"missing tensor {e}") from None
        return cls(latent.cpu().numpy().astype(np.int32), hyper.cpu().numpy().astype(np.int32))


def _grouped(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order in which symbols with these scale indices are coded (by index, then as they come), and the groups' ends."""
    return np.argsort(indices, kind="stable"), np.cumsum(np.bincount(indices, minlength=SCALE_LEVELS))


_LIMITS = symbol_limits().numpy().astype(np.int32)
_CENTRES = np.cumsum(2 * _LIMITS + 1) - _LIMITS - 1          # of each row in EntropyTables.latent


class SymbolEncoder:
    """Collects symbols in the order in which they are to be decoded; ``bits`` is their information content so far."""

    def __init__(self, tables: EntropyTables) -> None:
        self._tables = tables
        self._runs: list[tuple[np.ndarray, stream.model.Categorical]] = []
        self.bits = 0.0

    def hyper(self, view: int, symbols: np.ndarray) -> None:
        """Append a hyper-latent (Z, hz, wz) with symbols in [-63, 63]."""
        rows = symbols.reshape(len(symbols), -1).astype(np.int32) + HYPER_SYMBOL_LIMIT
        self._runs += zip(rows, self._tables.hyper_models[view], strict=True)
        self.bits += float(np.take_along_axis(self._tables.hyper_bits[view], rows, 1).sum())

    def latents(self, symbols: np.ndarray, indices: np.ndarray) -> None:
        """Append the symbols of one step, any shape, with their scale indices."""
        indices, symbols = indices.reshape(-1).astype(np.uint8), symbols.reshape(-1).astype(np.int32)
        order, ends = _grouped(indices)
        shifted = (symbols + _LIMITS[indices])[order]
        self.bits += float(self._tables.latent_bits[symbols + _CENTRES[indices]].sum())
        start = 0
        for model, end in zip(self._tables.latent_models, ends.tolist(), strict=True):
            if end > start:
                self._runs.append((shifted[start:end], model))
            start = end

    def finish(self) -> bytes:
        """The coded bytes: little-endian words without the zero bytes at their end."""
        coder = stream.stack.AnsCoder()
        for symbols, model in reversed(self._runs):
            coder.encode_reverse(symbols, model)
        return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class SymbolDecoder:
    """Gives back symbols in the order in which they went into a ``SymbolEncoder``.

    Damaged bytes give wrong symbols, but always symbols within the tables.
    """

    def __init__(self, tables: EntropyTables, payload: bytes) -> None:
        self._tables = tables
        words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32)
        # An ANS stream never ends in a zero word; only a forged one reaches the coder's own check, so drop them.
        used = np.flatnonzero(words)
        self._coder = stream.stack.AnsCoder(words[: used[-1] + 1] if len(used) else words[:0])

    def hyper(self, view: int, shape: Sequence[int]) -> np.ndarray:
        """The next hyper-latent (Z, hz, wz), int32."""
        count = int(np.prod(shape[1:]))
        rows = [self._coder.decode(model, count) for model in self._tables.hyper_models[view]]
        return np.stack(rows).reshape(shape) - HYPER_SYMBOL_LIMIT

    def latents(self, indices: np.ndarray) -> np.ndarray:
        """The next step's symbols, int32, in the shape of ``indices``."""
        flat = indices.reshape(-1).astype(np.uint8)
        order, ends = _grouped(flat)
        symbols = np.empty(len(flat), np.int32)
        start = 0
        for model, end in zip(self._tables.latent_models, ends.tolist(), strict=True):
            if end > start:
                symbols[order[start:end]] = self._coder.decode(model, end - start)
            start = end
        return (symbols - _LIMITS[flat]).reshape(indices.shape)

    def at_end(self) -> bool:
        """Whether exactly what was encoded has been decoded."""
        return bool(self._coder.is_empty())
