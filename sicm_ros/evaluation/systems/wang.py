# SPDX-License-Identifier: Apache-2.0
"""Wang et al. 2021 ([17] of the paper): a codec of single images for machines, each view by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...networks.config import MvsfcConfig
from .compressai_layers import compressai
from .latents import LatentCoder, SymbolStream, even_latent_size
from .stereo_codec import PAPER_LAMBDAS, Coded, Scales, StereoCodec

__all__ = ["InvertedBottleneck", "Wang"]

_STRIDE, _LATENT, _HYPER = 16, 64, 32
_ENCODER = (48, 64, 96)  # channels at strides 2, 4, 8
_DECODER = (80, 56, 40)  # at strides 8, 4, 2


class InvertedBottleneck(nn.Module):
    """A residual block that is wide inside: to ``expansion`` times the channels, a depthwise 3x3, and back."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1),
            nn.LeakyReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.LeakyReLU(),
            nn.Conv2d(wide, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        return x + self.layers(x)


class Wang(StereoCodec):
    """Inverted bottlenecks, then a decoder of residual sub-pixel blocks (Cheng et al. 2020); latents at stride 16."""

    name, title, codes = "wang", "Wang [17]", "images"
    note = (
        "after Wang et al. 2021, no public code: images of each view by itself, inverted bottlenecks in the encoder, "
        "hyperprior with context, trained with the detector's loss and the squared error; substituted: sizes, decoder, "
        "checkerboard for the serial context, one set of weights for all rates, one joint loss for the iterative "
        "optimisation, a detector that stays as it is"
    )

    def __init__(self, config: MvsfcConfig, lambdas: tuple[float, ...] = PAPER_LAMBDAS) -> None:
        super().__init__(config, lambdas)
        layers = compressai().layers
        a, b, c = _ENCODER
        self.latent_size = even_latent_size(*self.size, _STRIDE)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, a, 5, 2, 2),
            InvertedBottleneck(a, 2),
            nn.Conv2d(a, b, 3, 2, 1),
            InvertedBottleneck(b, 4),
            InvertedBottleneck(b, 4),
            nn.Conv2d(b, c, 3, 2, 1),
            InvertedBottleneck(c, 4),
            InvertedBottleneck(c, 4),
            nn.Conv2d(c, c, 3, 2, 1),
            InvertedBottleneck(c, 4),
            nn.Conv2d(c, _LATENT, 1),
        )
        c, b, a = _DECODER
        self.decoder = nn.Sequential(
            layers.ResidualBlockUpsample(_LATENT, c, 2),
            layers.ResidualBlockUpsample(c, b, 2),
            layers.ResidualBlockUpsample(b, a, 2),
            layers.subpel_conv3x3(a, 3, 2),
        )
        self._stream = SymbolStream()
        self.latents = LatentCoder(_LATENT, _HYPER, self.latent_size, len(lambdas), self._stream)

    def forward(self, source: Scales, rate: int) -> Coded:
        """See ``StereoCodec``."""
        decoded, bits = self.latents(self._encode(source), rate)
        left, right = bits.chunk(2)
        return Coded(self._decode(decoded), left + right)

    def prepare_coder(self) -> None:
        """See ``StereoCodec``."""
        self.latents.prepare()

    def compress(self, source: Scales, rate: int) -> bytes:
        """See ``StereoCodec``."""
        self._stream.begin()
        self.latents.compress(self._encode(source), rate)
        return self._stream.finish()

    def decompress(self, data: bytes, rate: int) -> Scales:
        """See ``StereoCodec``."""
        self._stream.open(data)
        return self._decode(self.latents.decompress(2, rate))

    def _encode(self, source: Scales) -> Tensor:
        """Both views' latents (2B, C, h, w)."""
        views = torch.cat(source[0])
        height, width = (_STRIDE * n for n in self.latent_size)
        # Repeated, not black: an edge would cost bits.
        views = F.pad(views, (0, width - views.shape[3], 0, height - views.shape[2]), mode="replicate")
        return self.encoder(views)

    def _decode(self, latents: Tensor) -> Scales:
        height, width = self.size
        left, right = self.decoder(latents)[:, :, :height, :width].chunk(2)
        return ((left, right),)
