# SPDX-License-Identifier: Apache-2.0
"""Lei et al. 2022 ([7] of the paper): a codec of stereo images, both views coded jointly.

The paper's SMFC and entropy model have taken their bi-directional contextual transform and their bi-directional
conditional entropy model from it. So this codec is made of the very modules of this package's networks, and its bytes
come from this package's coder: what differs from MVSFC-Net is that images are coded, not features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...codec.payload import compress, decompress
from ...codec.range_coder import RangeCoder
from ...networks.config import MvsfcConfig
from ...networks.entropy_model import StereoEntropyModel
from ...networks.entropy_tables import EntropyTables
from ...networks.smfc import GeneralizedDivisiveNormalization, StereoDecoderUnit, StereoEncoderUnit
from .stereo_codec import PAPER_LAMBDAS, Coded, Scales, StereoCodec

__all__ = ["Lei"]

_STRIDE = 16
_CHANNELS, _JOINT, _LATENT, _HYPER = 48, 64, 48, 32  # at strides 2 and 4; 8; 16; 64
_ATTENTION = "efficient"
_FIRST_GAIN = math.log(8)  # of the highest rate, before training


def _view_encoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, _CHANNELS, 5, 2, 2),
        GeneralizedDivisiveNormalization(_CHANNELS),
        nn.Conv2d(_CHANNELS, _CHANNELS, 5, 2, 2),
        GeneralizedDivisiveNormalization(_CHANNELS),
    )


def _view_decoder() -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(_CHANNELS, _CHANNELS, 5, 2, 2, 1),
        GeneralizedDivisiveNormalization(_CHANNELS, inverse=True),
        nn.ConvTranspose2d(_CHANNELS, 3, 5, 2, 2, 1),
    )


class Lei(StereoCodec):
    """Strided convolutions of each view; contextual transforms of both views at strides 8 and 16, and mirrored."""

    name, title, codes, needs_compressai = "lei", "Lei [7]", "images", False
    note = (
        "after Lei et al. 2022, no public code: images of both views, bi-directional contextual transforms, "
        "bi-directional conditional entropy model with a raster context, as this package has them for MVSFC-Net; "
        "trained with the detector's loss and the squared error; substituted: sizes, one set of weights for all rates, "
        "a detector that stays as it is"
    )

    def __init__(self, config: MvsfcConfig, lambdas: tuple[float, ...] = PAPER_LAMBDAS) -> None:
        super().__init__(config, lambdas)
        self.latent_size = -(-config.height // _STRIDE), -(-config.width // _STRIDE)
        self.encoders = nn.ModuleList([_view_encoder(), _view_encoder()])
        self.encoder8 = StereoEncoderUnit(_CHANNELS, _JOINT, _ATTENTION)
        self.encoder16 = StereoEncoderUnit(_JOINT, _LATENT, _ATTENTION, normalize=False)
        self.entropy_model = StereoEntropyModel(_LATENT, _HYPER, "raster", len(lambdas), _LATENT)
        with torch.no_grad():  # latents of images are smaller at first than those of features
            self.entropy_model.log_gain.add_(_FIRST_GAIN)
            self.entropy_model.log_inverse_gain.sub_(_FIRST_GAIN)
        self.decoder16 = StereoDecoderUnit(_LATENT, 0, _JOINT, _ATTENTION, normalize=True)
        self.decoder8 = StereoDecoderUnit(_JOINT, 0, _CHANNELS, _ATTENTION, normalize=True)
        self.decoders = nn.ModuleList([_view_decoder(), _view_decoder()])
        self._coder: RangeCoder | None = None

    def forward(self, source: Scales, rate: int) -> Coded:
        """See ``StereoCodec``."""
        coded = self.entropy_model(*self._encode(source), float(rate))
        return Coded(self._decode(coded.left, coded.right), coded.bits_left + coded.bits_right)

    def prepare_coder(self) -> None:
        """See ``StereoCodec``."""
        self._coder = RangeCoder(EntropyTables.build(self.entropy_model))

    def compress(self, source: Scales, rate: int) -> bytes:
        """See ``StereoCodec``."""
        assert self._coder is not None
        return compress(self.entropy_model.quantise(*self._encode(source), float(rate)), self._coder)[0]

    def decompress(self, data: bytes, rate: int) -> Scales:
        """See ``StereoCodec``."""
        assert self._coder is not None
        latents = decompress(data, self._coder, self.entropy_model.integer_prior(), self.latent_size)
        return self._decode(*self.entropy_model.inverse_gain(latents.left, latents.right, float(rate)))

    def _encode(self, source: Scales) -> tuple[Tensor, Tensor]:
        height, width = (_STRIDE * n for n in self.latent_size)
        views = []
        for encoder, view in zip(self.encoders, source[0], strict=True):
            padded = F.pad(view, (0, width - view.shape[3], 0, height - view.shape[2]), mode="replicate")
            views.append(encoder(padded))
        return self.encoder16(*self.encoder8(*views))

    def _decode(self, left: Tensor, right: Tensor) -> Scales:
        height, width = self.size
        both = self.decoder8(*self.decoder16(left, right))
        left, right = (decoder(view)[:, :, :height, :width] for decoder, view in zip(self.decoders, both, strict=True))
        return ((left, right),)
