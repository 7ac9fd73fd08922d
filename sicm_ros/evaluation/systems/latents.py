# SPDX-License-Identifier: Apache-2.0
"""Latents of single views through CompressAI: hyperprior, checkerboard context, range coder, gains for each rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...networks.entropy_layers import LEAK, HyperDecoder, HyperEncoder, hyper_size
from .compressai_layers import compressai

__all__ = ["LatentCoder", "SymbolStream", "even_latent_size"]

_GAIN_OCTAVES = 3.0  # between the lowest and the highest rate, before training
# Standard deviations of the coder's tables, in quantisation steps.
_SCALES = [0.11 * (64 / 0.11) ** (i / 63) for i in range(64)]


class SymbolStream:
    """All symbols of a pair in one string, in place of one for each call, which would cost some 10 bytes each.

    Stands for the coder in CompressAI's entropy models. While they encode, they look at once at what a decoder would
    get; that is the symbols themselves.
    """

    def __init__(self) -> None:
        self._ans = compressai().ans
        self._encoder: Any = None
        self._decoder: Any = None

    def begin(self) -> None:
        """Start a string."""
        self._encoder = self._ans.BufferedRansEncoder()

    def finish(self) -> bytes:
        """The string of all symbols since ``begin``."""
        return bytes(self._encoder.flush())

    def open(self, data: bytes) -> None:
        """Decode this string from now on."""
        self._decoder = self._ans.RansDecoder()
        self._decoder.set_stream(data)

    def encode_with_indexes(self, symbols: list[int], *tables: object) -> list[int]:
        """See CompressAI's ``RansEncoder``; returns the symbols in place of a string."""
        self._encoder.encode_with_indexes(symbols, *tables)
        return symbols

    def decode_with_indexes(self, symbols: list[int] | None, *tables: object) -> list[int]:
        """See CompressAI's ``RansDecoder``; None stands for the string."""
        return self._decoder.decode_stream(*tables) if symbols is None else symbols


def even_latent_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Rows and columns of a latent; the columns are even, since CompressAI splits each row in two halves."""
    columns = -(-width // stride)
    return -(-height // stride), columns + columns % 2


class _SizedHyperDecoder(nn.Module):
    """The hyper-decoder for latents of one size."""

    def __init__(self, hyper_channels: int, out_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.net, self.size = HyperDecoder(hyper_channels, out_channels), size

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z, self.size)


class LatentCoder(nn.Module):
    """Codes latents (B, C, h, w) of one ``size`` (h, w); every item of the batch by itself.

    Mean-scale hyperprior with a context in two passes (He et al. 2021), as CompressAI's latent codecs have them. Each
    rate has learned gains of the channels, before and after, as this package's own variable-rate models do.
    """

    def __init__(
        self, channels: int, hyper_channels: int, size: tuple[int, int], rate_count: int, stream: SymbolStream
    ) -> None:
        super().__init__()
        parts = compressai()
        codecs, models = parts.latent_codecs, parts.entropy_models
        self.size = size
        self.shape = {"y": (channels, *size), "hyper": hyper_size(*size)}
        self.bottleneck = models.EntropyBottleneck(hyper_channels)
        # Found from the densities when the tables are made, instead of by an optimiser of their own.
        self.bottleneck.quantiles.requires_grad_(False)
        self.conditional = models.GaussianConditional(_SCALES)
        self.bottleneck.entropy_coder = self.conditional.entropy_coder = stream
        features = 2 * channels
        entropy_parameters = nn.Sequential(
            nn.Conv2d(2 * features, 5 * features // 3, 1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(5 * features // 3, 4 * features // 3, 1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(4 * features // 3, features, 1),
        )
        self.codec = codecs.HyperpriorLatentCodec(
            {
                "hyper": codecs.HyperLatentCodec(
                    self.bottleneck,
                    HyperEncoder(channels, hyper_channels),
                    _SizedHyperDecoder(hyper_channels, features, size),
                    quantizer="ste",
                ),
                "y": codecs.CheckerboardLatentCodec(
                    {"y": codecs.GaussianConditionalLatentCodec(gaussian_conditional=self.conditional)},
                    entropy_parameters,
                    parts.layers.CheckerboardMaskedConv2d(channels, features, 5, padding=2),
                ),
            }
        )
        start = torch.linspace(0, _GAIN_OCTAVES, rate_count)[:, None].repeat(1, channels) * math.log(2)
        self.log_gain, self.log_inverse_gain = nn.Parameter(start), nn.Parameter(-start)

    def forward(self, y: Tensor, rate: int) -> tuple[Tensor, Tensor]:
        """The decoded latents, and the bits of each (B,)."""
        # Likelihoods and positions of symbols need 24 bits.
        with torch.autocast(y.device.type, enabled=False):
            out = self.codec(self._scaled(y.float(), rate))
            bits = [-torch.log2(likelihood).sum((1, 2, 3)) for likelihood in out["likelihoods"].values()]
            return self._unscaled(out["y_hat"], rate), torch.stack(bits).sum(0)

    def prepare(self) -> None:
        """Make the coder's tables."""
        self.bottleneck.update(force=True, update_quantiles=True)
        self.conditional.update()

    def compress(self, y: Tensor, rate: int) -> None:
        """Put the symbols of all items into the stream."""
        self.codec.compress(self._scaled(y, rate))

    def decompress(self, items: int, rate: int) -> Tensor:
        """The decoded latents of the next ``items`` of the stream."""
        return self._unscaled(self.codec.decompress([[None] * items] * 3, self.shape)["y_hat"], rate)

    def _scaled(self, y: Tensor, rate: int) -> Tensor:
        return y * self.log_gain[rate].exp()[:, None, None]

    def _unscaled(self, y: Tensor, rate: int) -> Tensor:
        return y * self.log_inverse_gain[rate].exp()[:, None, None]
