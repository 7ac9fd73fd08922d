# SPDX-License-Identifier: Apache-2.0
"""Integer probability tables of the entropy coder.

They are made once, when a model is saved, and stored with its weights: two machines' ``erf`` may differ in the last
bit, and one different count breaks a stream.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .entropy_layers import HYPER_SYMBOL_LIMIT, gaussian_bits, scale_table
from .entropy_model import StereoEntropyModel
from .integer_prior import symbol_limits

__all__ = ["TABLE_BITS", "EntropyTables", "TableError"]

TABLE_BITS = 16
TOTAL = 1 << TABLE_BITS


class TableError(ValueError):
    """Probability tables that are no tables of this codec; the message says which entry is wrong."""


def _counts(probabilities: np.ndarray) -> np.ndarray:
    """Integer counts (n,), none zero and with the sum TOTAL, from probabilities (n,)."""
    shares = probabilities / probabilities.sum() * (TOTAL - len(probabilities))
    counts = np.floor(shares).astype(np.int64) + 1
    counts[np.argmax(probabilities)] += TOTAL - counts.sum()
    return counts


@dataclass(frozen=True)
class EntropyTables:
    """The count of each symbol, out of 65536.

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
        """The tables of a trained model: normal densities for the latents, learned ones for the hyper-latents."""
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
        """Counts of each scale index i, (2 limit_i + 1,) int32 each."""
        ends = np.cumsum((2 * symbol_limits() + 1).numpy())
        return np.split(self.latent, ends[:-1])

    @cached_property
    def latent_bits(self) -> np.ndarray:
        """Information content of each entry of ``latent``, in bits, float64, of the same shape."""
        return TABLE_BITS - np.log2(self.latent)

    @cached_property
    def hyper_bits(self) -> np.ndarray:
        """Information content of each entry of ``hyper``, in bits, float64, of the same shape."""
        return TABLE_BITS - np.log2(self.hyper)

    def tensors(self) -> dict[str, Tensor]:
        """The tables as int32 tensors by name, for the weights file."""
        return {"tables.latent": torch.from_numpy(self.latent), "tables.hyper": torch.from_numpy(self.hyper)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EntropyTables:
        """The tables in the tensors of a weights file. Raises TableError."""
        try:
            latent, hyper = tensors["tables.latent"], tensors["tables.hyper"]
        except KeyError as e:
            raise TableError(f"missing tensor {e}") from None
        return cls(latent.cpu().numpy().astype(np.int32), hyper.cpu().numpy().astype(np.int32))
