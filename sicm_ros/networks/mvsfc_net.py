# SPDX-License-Identifier: Apache-2.0
"""MVSFC-Net: features of both views <-> latents <-> features -> detections (paper, section III and figure 1)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from .backbone import Backbone, StereoFeatures
from .config import MvsfcConfig
from .detection import AnalysisOutput, VisualAnalysis
from .entropy_model import StereoEntropyModel
from .smfc import SmfcDecoder, SmfcEncoder

__all__ = ["Half", "MvsfcNet", "MvsfcOutput"]

Half = Literal["both", "vehicle", "remote"]


class MvsfcOutput(NamedTuple):
    """What a training step needs: the analysis of the reconstructed features, and the bits of each view (B,)."""

    analysis: AnalysisOutput
    bits_left: Tensor
    bits_right: Tensor
    reconstruction: StereoFeatures


class MvsfcNet(nn.Module):
    """The whole network, or the half of it that runs on the vehicle or remotely."""

    def __init__(self, config: MvsfcConfig, half: Half = "both") -> None:
        super().__init__()
        self.config = config
        self.entropy_model = StereoEntropyModel.from_config(config)
        if half != "remote":
            self.backbone = Backbone(config)
            self.smfc_encoder = SmfcEncoder(config)
        if half != "vehicle":
            self.smfc_decoder = SmfcDecoder(config)
            self.analysis = VisualAnalysis(config)

    def features(self, left: Tensor, right: Tensor) -> StereoFeatures:
        """Normalised views (B, 3, H, W) -> features of both views, (B, C, H/s, W/s) at strides s = 4, 8, 16."""
        return self.backbone(left, right)

    def latents(self, features: StereoFeatures) -> tuple[Tensor, Tensor]:
        """Features -> both views' latents (B, C, *config.latent_size), not quantised, before the gain."""
        return self.smfc_encoder(features)

    def reconstruct(self, left: Tensor, right: Tensor) -> StereoFeatures:
        """Dequantised latents, after the inverse gain -> features at strides 4, 8, 16."""
        return self.smfc_decoder(left, right)

    def detect(self, features: StereoFeatures) -> AnalysisOutput:
        """Features, from the backbone or reconstructed -> raw outputs of the visual analysis."""
        return self.analysis(features)

    def compress(self, features: StereoFeatures, rate: Tensor | float) -> tuple[StereoFeatures, Tensor, Tensor]:
        """Features through quantised latents: the reconstruction, of equal shapes, and the bits of each view (B,)."""
        coded = self.entropy_model(*self.latents(features), rate)
        return self.reconstruct(coded.left, coded.right), coded.bits_left, coded.bits_right

    def forward(self, left: Tensor, right: Tensor, rate: Tensor | float = 0.0) -> MvsfcOutput:
        """Normalised views (B, 3, H, W), coded at ``rate``: a float or one for each image (B,)."""
        reconstruction, bits_left, bits_right = self.compress(self.features(left, right), rate)
        return MvsfcOutput(self.detect(reconstruction), bits_left, bits_right, reconstruction)
