# SPDX-License-Identifier: Apache-2.0
"""Latents of single views through CompressAI: hyperprior, checkerboard context, range coder, gains for each rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...networks.entropy_layers import LEAK, HyperDecoder, HyperEncoder, hyper_size
from .compressai_layers import compressai

__all__ = ["LatentCoder", "even_latent_size", "joined", "split"]

_GAIN_OCTAVES = 3.0  # between the lowest and the highest rate, before training
# Standard deviations of the coder's tables, in quantisation steps.
_SCALES = [0.11 * (64 / 0.11) ** (i / 63) for i in range(64)]
_LENGTH_BYTES = 3  # before each string but the last


def even_latent_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Rows and columns of a latent; the columns are even, since CompressAI splits a checkerboard into halves of rows."""
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

    def __init__(self, channels: int, hyper_channels: int, size: tuple[int, int], rate_count: int) -> None:
        super().__init__()
        parts = compressai()
        codecs, models = parts.latent_codecs, parts.entropy_models
        self.size = size
        self.shape = {"y": (channels, *size), "hyper": hyper_size(*size)}
        self.bottleneck = models.EntropyBottleneck(hyper_channels)
        # Found from the densities when the tables are made, instead of by an optimiser of their own.
        self.bottleneck.quantiles.requires_grad_(False)
        self.conditional = models.GaussianConditional(_SCALES)
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

    def compress(self, y: Tensor, rate: int) -> list[bytes]:
        """Three strings for each item."""
        strings = self.codec.compress(self._scaled(y, rate))["strings"]
        return [string for kind in strings for string in kind]

    def decompress(self, strings: Sequence[bytes], rate: int) -> Tensor:
        """The decoded latents of as many items as there are strings for."""
        items = len(strings) // 3
        kinds = [list(strings[i : i + items]) for i in range(0, len(strings), items)]
        return self._unscaled(self.codec.decompress(kinds, self.shape)["y_hat"], rate)

    def _scaled(self, y: Tensor, rate: int) -> Tensor:
        return y * self.log_gain[rate].exp()[:, None, None]

    def _unscaled(self, y: Tensor, rate: int) -> Tensor:
        return y * self.log_inverse_gain[rate].exp()[:, None, None]


def joined(strings: Sequence[bytes]) -> bytes:
    """Strings as one, with the lengths of all but the last."""
    lengths = [len(string).to_bytes(_LENGTH_BYTES, "little") for string in strings[:-1]]
    return b"".join([*lengths, *strings])


def split(data: bytes, count: int) -> list[bytes]:
    """The ``count`` strings that ``joined`` has joined."""
    place = _LENGTH_BYTES * (count - 1)
    strings = []
    for i in range(count - 1):
        length = int.from_bytes(data[_LENGTH_BYTES * i : _LENGTH_BYTES * (i + 1)], "little")
        strings.append(data[place : place + length])
        place += length
    return [*strings, data[place:]]
