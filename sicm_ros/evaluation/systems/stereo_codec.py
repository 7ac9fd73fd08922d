# SPDX-License-Identifier: Apache-2.0
"""What a learned codec is that is compared with: a network beside a trained detector, which stays as it is.

A codec of images decodes what the detector's backbone sees, a codec of features what its analysis sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...networks.backbone import ViewPair
from ...networks.config import MvsfcConfig
from ...networks.detection import AnalysisOutput
from ...networks.mvsfc_net import MvsfcNet
from ...preprocessing import MEAN, STD
from .compressai_layers import compressai_missing

__all__ = ["PAPER_LAMBDAS", "Coded", "Scales", "StereoCodec", "detect", "source_of", "to_eight_bits"]

PAPER_LAMBDAS = (0.5, 1.0, 4.0, 16.0, 64.0, 256.0)  # section III-C

Scales = tuple[ViewPair, ...]  # the one pair of normalised images (B, 3, H, W), or the features of three strides


class Coded(NamedTuple):
    """What comes out of a codec, of the shapes that went in, and the bits of each pair (B,)."""

    decoded: Scales
    bits: Tensor


class StereoCodec(nn.Module, ABC):
    """A codec for the input size and the features of one detector, with one set of weights for all rates."""

    name: ClassVar[str]  # in commands and of the folder of its weights
    title: ClassVar[str]  # in tables and figures
    note: ClassVar[str]  # what is faithful to its source and what is substituted
    codes: ClassVar[Literal["images", "features"]]
    needs_compressai: ClassVar[bool] = True
    # Of the squared error in training, beside the detector's loss: in the first stage, and in the second.
    distortion_weight: ClassVar[tuple[float, float]] = (1.0, 1.0)

    def __init__(self, config: MvsfcConfig, lambdas: tuple[float, ...] = PAPER_LAMBDAS) -> None:
        """``config``: the detector's; ``lambdas``: the task loss's weight at each rate, from few bits to many."""
        super().__init__()
        self.lambdas = lambdas
        self.size = config.height, config.width

    @classmethod
    def absent(cls) -> str:
        """What it needs that is not here, in one line, or nothing."""
        return compressai_missing() if cls.needs_compressai else ""

    @abstractmethod
    def forward(self, source: Scales, rate: int) -> Coded:
        """Code and decode without bytes. In training, noise stands for rounding where bits are estimated."""

    @abstractmethod
    def prepare_coder(self) -> None:
        """Make the coder's tables from the weights; they are not stored."""

    @abstractmethod
    def compress(self, source: Scales, rate: int) -> bytes:
        """What is sent for one pair."""

    @abstractmethod
    def decompress(self, data: bytes, rate: int) -> Scales:
        """What a receiver makes of it."""


def source_of(codec: StereoCodec, detector: MvsfcNet, left: Tensor, right: Tensor) -> Scales:
    """What the codec codes of two normalised views (B, 3, H, W)."""
    return detector.features(left, right) if codec.codes == "features" else ((left, right),)


def detect(codec: StereoCodec, detector: MvsfcNet, decoded: Scales) -> AnalysisOutput:
    """The uncompressed detector on what was decoded."""
    if codec.codes == "images":
        ((left, right),) = decoded
        return detector.detect(detector.features(left, right))
    f0, f1, f2 = decoded
    return detector.detect((f0, f1, f2))


def to_eight_bits(view: Tensor) -> Tensor:
    """A normalised view (B, 3, H, W) as it is after a camera image's 256 levels."""
    mean, std = (torch.tensor(x, device=view.device).view(1, 3, 1, 1) for x in (MEAN, STD))
    return (((view * std + mean) * 255).round().clamp(0, 255) / 255 - mean) / std
