# SPDX-License-Identifier: Apache-2.0
"""Quantised latents to payload bytes and back, with the probabilities of the integer prior.

The arithmetic is in ``networks/integer_prior.py``, because the network's evaluation mode needs it as well; here it
meets the coder. Batches have one payload for each item.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..networks.entropy_layers import hyper_size
from ..networks.integer_prior import IntegerPrior, QuantisedLatents, to_maps
from .range_coder import RangeCoder, SymbolDecoder, SymbolEncoder

__all__ = ["DecodedLatents", "compress", "decompress", "decompress_batch", "least_bytes", "symbol_count"]


@dataclass(frozen=True)
class DecodedLatents:
    """Latents (1, C, h, w) float32 before the inverse gain, the hash of their symbols, and whether the payload ended
    with the last symbol."""

    left: Tensor
    right: Tensor
    symbol_hash: int
    complete: bool


class _SymbolHash:
    """CRC-32 of all symbols as little-endian 16-bit integers, in the order of coding before they are grouped."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, symbols: np.ndarray) -> None:
        self.value = zlib.crc32(symbols.astype("<i2").tobytes(), self.value)


def symbol_count(channels: int, hyper_channels: int, size: tuple[int, int]) -> int:
    """Number of symbols of one pair with latents of ``size`` (h, w)."""
    rows, columns = hyper_size(*size)
    return 2 * (channels * size[0] * size[1] + hyper_channels * rows * columns)


def least_bytes(coder: RangeCoder, channels: int, size: tuple[int, int]) -> int:
    """No payload of latents with ``channels`` and ``size`` (h, w) is shorter: every symbol the likeliest of its table,
    every latent's table the narrowest."""
    rows, columns = hyper_size(*size)
    latents, hyper = coder.least_bits()
    bits = 2 * channels * size[0] * size[1] * latents + rows * columns * hyper
    return max(0, int(bits / 8) - 8)  # the coder starts from an empty state, which is worth up to a word or two


def compress(coded: QuantisedLatents, coder: RangeCoder, item: int = 0) -> tuple[bytes, int, float]:
    """Payload, symbol hash and information content (bits under the tables) of one item of a batch."""
    encoder, symbol_hash = SymbolEncoder(coder), _SymbolHash()
    for view in (0, 1):
        symbols = coded.hyper[view][item].cpu().numpy().astype(np.int32)
        encoder.hyper(view, symbols)
        symbol_hash.update(symbols)
    for step_symbols, step_indices in zip(coded.symbols, coded.indices, strict=True):
        symbols = step_symbols[item].cpu().numpy()
        encoder.latents(symbols, step_indices[item].cpu().numpy())
        symbol_hash.update(symbols)
    return encoder.finish(), symbol_hash.value, encoder.bits


def decompress(payload: bytes, coder: RangeCoder, prior: IntegerPrior, size: tuple[int, int]) -> DecodedLatents:
    """Decode one pair with latents of ``size`` (h, w). Ends for any bytes; memory depends on ``size`` alone."""
    return decompress_batch([payload], coder, prior, size)[0]


def decompress_batch(
    payloads: Sequence[bytes], coder: RangeCoder, prior: IntegerPrior, size: tuple[int, int]
) -> list[DecodedLatents]:
    """Decode several pairs with one evaluation of the prior for all of them."""
    decoders, hashes = [SymbolDecoder(coder, payload) for payload in payloads], [_SymbolHash() for _ in payloads]

    def read(decode: Callable[[SymbolDecoder, int], np.ndarray]) -> np.ndarray:
        """The next symbols of every pair; ``decode`` gets a pair's decoder and its place in the batch."""
        symbols = [decode(decoder, item) for item, decoder in enumerate(decoders)]
        for symbol_hash, array in zip(hashes, symbols, strict=True):
            symbol_hash.update(array)
        return np.stack(symbols)

    shape = (prior.hyper_channels, *hyper_size(*size))
    hyper = [read(lambda decoder, _: decoder.hyper(0, shape)), read(lambda decoder, _: decoder.hyper(1, shape))]

    def latents(indices: np.ndarray) -> np.ndarray:
        return read(lambda decoder, item: decoder.latents(indices[item]))

    left, right = to_maps(prior.decode((torch.from_numpy(hyper[0]), torch.from_numpy(hyper[1])), size, latents), size)
    return [
        DecodedLatents(left[i : i + 1], right[i : i + 1], hashes[i].value, decoder.at_end())
        for i, decoder in enumerate(decoders)
    ]
