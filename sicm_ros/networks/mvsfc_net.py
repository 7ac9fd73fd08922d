# SPDX-License-Identifier: Apache-2.0
"""MVSFC-Net: features of both views <-> latents <-> features -> detections (paper, section III and figure 1)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from .backbone import Backbone, StereoFeatures
from .config import MvsfcConfig
from .cost_volume import StereoMatching
from .detection import AnalysisOutput, VisualAnalysis
from .entropy_model import StereoEntropyModel
from .separate_features import SeparateDecoder, SeparateEncoder
from .smfc import Reconstruction, SmfcDecoder, SmfcEncoder

__all__ = ["Half", "MvsfcNet", "MvsfcOutput"]

Half = Literal["both", "vehicle", "remote"]


class MvsfcOutput(NamedTuple):
    """What a training step needs: the analysis of the reconstructed features, and the bits of each view (B,)."""

    analysis: AnalysisOutput
    bits_left: Tensor
    bits_right: Tensor
    reconstruction: Reconstruction


class MvsfcNet(nn.Module):
    """The whole network, or the half of it that runs on the vehicle or remotely."""

    def __init__(self, config: MvsfcConfig, half: Half = "both") -> None:
        super().__init__()
        self.config = config
        self.entropy_model = StereoEntropyModel.from_config(config)
        if half != "remote":
            self.backbone = Backbone(config)
            self.matching = StereoMatching(config) if config.matching == "vehicle" else None
            self.smfc_encoder = SmfcEncoder(config) if config.joint_features else SeparateEncoder(config)
        if half != "vehicle":
            self.smfc_decoder = SmfcDecoder(config) if config.joint_features else SeparateDecoder(config)
            self.analysis = VisualAnalysis(config)

    def features(self, left: Tensor, right: Tensor) -> StereoFeatures:
        """Normalised views (B, 3, H, W) -> features of both views, (B, C, H/s, W/s) at strides s = 4, 8, 16."""
        return self.backbone(left, right)

    def match(self, features: StereoFeatures) -> Tensor | None:
        """Features -> the fused volumes of strides 4 and 8 (B, C, H/8, W/8); None where they are made remotely."""
        return None if self.matching is None else self.matching(features)[0]

    def latents(self, features: StereoFeatures, volumes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features, and what ``match`` makes of them if that is at hand -> both views' latents
        (B, C, *config.latent_size), not quantised, before the gain."""
        return self.smfc_encoder(features, self.match(features) if volumes is None else volumes)

    def reconstruct(self, left: Tensor, right: Tensor, with_f0: bool = True) -> Reconstruction:
        """Dequantised latents, after the inverse gain -> features at strides 4, 8, 16, and the volumes if they are
        coded. ``with_f0`` False leaves f0 out if nothing remote needs it."""
        return self.smfc_decoder(left, right, with_f0 or self.config.matching == "remote")

    def detect(self, features: StereoFeatures) -> AnalysisOutput:
        """Features of the backbone -> raw outputs of the visual analysis."""
        return self.analysis(features, self.match(features))

    def detect_decoded(self, reconstruction: Reconstruction) -> AnalysisOutput:
        """Decoded features -> raw outputs of the visual analysis."""
        return self.analysis(*reconstruction)

    def compress(
        self, features: StereoFeatures, rate: Tensor | float, volumes: Tensor | None = None
    ) -> tuple[Reconstruction, Tensor, Tensor]:
        """Features, and ``volumes`` as in ``latents``, through quantised latents: the reconstruction, of equal shapes,
        and the bits of each view (B,)."""
        coded = self.entropy_model(*self.latents(features, volumes), rate)
        return self.reconstruct(coded.left, coded.right), coded.bits_left, coded.bits_right

    def forward(self, left: Tensor, right: Tensor, rate: Tensor | float = 0.0) -> MvsfcOutput:
        """Normalised views (B, 3, H, W), coded at ``rate``: a float or one for each image (B,)."""
        reconstruction, bits_left, bits_right = self.compress(self.features(left, right), rate)
        return MvsfcOutput(self.detect_decoded(reconstruction), bits_left, bits_right, reconstruction)
