# SPDX-License-Identifier: Apache-2.0
"""Liu et al. 2023 ([30] of the paper): a codec of features, each view by itself, that predicts one scale from another.

f0 is coded, but f1 is what is decoded from it; f0 itself is predicted from the decoded f1. f2 has a codec of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...networks.config import MvsfcConfig
from ...networks.smfc import fit
from .compressai_layers import compressai
from .latents import LatentCoder, SymbolStream, even_latent_size
from .stereo_codec import Coded, Scales, StereoCodec

__all__ = ["Liu", "SubpixelPredictor"]

_STRIDE, _LATENT, _HYPER = 16, 32, 24
_CHANNELS = 96  # inside both codecs
_PREDICTOR_BLOCKS = 9


class SubpixelPredictor(nn.Module):
    """Doubles a map's size by a sub-pixel convolution, then adds what residual blocks find missing."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layers = compressai().layers
        self.upsample = layers.subpel_conv3x3(in_channels, out_channels, 2)
        self.refine = nn.Sequential(
            layers.conv3x3(out_channels, out_channels),
            *(layers.ResidualBlock(out_channels, out_channels) for _ in range(_PREDICTOR_BLOCKS)),
            layers.conv3x3(out_channels, out_channels),
            nn.LeakyReLU(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w)."""
        x = self.upsample(x)
        return x + self.refine(x)


class Liu(StereoCodec):
    """Both codecs have latents at stride 16. Features end in a ReLU, as those of the backbone do."""

    name, title, codes = "liu", "Liu [30]", "features"
    note = (
        "after Liu et al. 2023 and its public code: features of each view by itself, f1 decoded from coded f0, f0 "
        "predicted from decoded f1, f2 by a second codec, matched remotely; substituted: sizes, latents at stride 16, "
        "checkerboard for the serial context, one set of weights for all rates, training with the detector's loss and "
        "the features' error beside a detector that stays as it is"
    )
    distortion_weight = (3.0, 0.3)

    def __init__(self, config: MvsfcConfig, lambdas: tuple[float, ...] | None = None) -> None:
        super().__init__(config, lambdas or config.lambdas)
        layers = compressai().layers
        f0, f1, f2 = config.channels
        n = _CHANNELS
        self.sizes = [(-(-config.height // s), -(-config.width // s)) for s in (4, 8, 16)]
        self.latent_size = even_latent_size(*self.size, _STRIDE)
        self.encoder01 = nn.Sequential(
            layers.ResidualBlockWithStride(f0, n, 2),
            layers.ResidualBlock(n, n),
            layers.ResidualBlockWithStride(n, n, 2),
            layers.conv3x3(n, _LATENT),
        )
        self.decoder01 = nn.Sequential(
            layers.ResidualBlock(_LATENT, n),
            layers.ResidualBlockUpsample(n, n, 2),
            layers.ResidualBlock(n, n),
            layers.conv3x3(n, f1),
            nn.ReLU(),
        )
        self.predictor = nn.Sequential(SubpixelPredictor(f1, f0), nn.ReLU())
        self.encoder2 = nn.Sequential(
            layers.ResidualBlock(f2, n), layers.ResidualBlock(n, n), layers.conv3x3(n, _LATENT)
        )
        self.decoder2 = nn.Sequential(
            layers.ResidualBlock(_LATENT, n), layers.ResidualBlock(n, n), layers.conv3x3(n, f2), nn.ReLU()
        )
        self._stream = SymbolStream()
        self.latents01, self.latents2 = (
            LatentCoder(_LATENT, _HYPER, self.latent_size, len(self.lambdas), self._stream) for _ in range(2)
        )

    def forward(self, source: Scales, rate: int) -> Coded:
        """See ``StereoCodec``."""
        latents01, latents2 = self._encode(source)
        decoded01, bits01 = self.latents01(latents01, rate)
        decoded2, bits2 = self.latents2(latents2, rate)
        left, right = (bits01 + bits2).chunk(2)
        return Coded(self._decode(decoded01, decoded2), left + right)

    def prepare_coder(self) -> None:
        """See ``StereoCodec``."""
        self.latents01.prepare()
        self.latents2.prepare()

    def compress(self, source: Scales, rate: int) -> bytes:
        """See ``StereoCodec``."""
        latents01, latents2 = self._encode(source)
        self._stream.begin()
        self.latents01.compress(latents01, rate)
        self.latents2.compress(latents2, rate)
        return self._stream.finish()

    def decompress(self, data: bytes, rate: int) -> Scales:
        """See ``StereoCodec``."""
        self._stream.open(data)
        decoded01 = self.latents01.decompress(2, rate)
        return self._decode(decoded01, self.latents2.decompress(2, rate))

    def _encode(self, source: Scales) -> tuple[Tensor, Tensor]:
        """Latents (2B, C, h, w) of both views of f0 and of f2."""
        rows, columns = self.latent_size
        f0, _, f2 = (torch.cat(scale) for scale in source)
        return self.encoder01(fit(f0, (4 * rows, 4 * columns))), self.encoder2(fit(f2, (rows, columns)))

    def _decode(self, latents01: Tensor, latents2: Tensor) -> Scales:
        f1 = self.decoder01(latents01)
        maps = zip((self.predictor(f1), f1, self.decoder2(latents2)), self.sizes, strict=True)
        (l0, r0), (l1, r1), (l2, r2) = (fit(x, size).chunk(2) for x, size in maps)
        return (l0, r0), (l1, r1), (l2, r2)
