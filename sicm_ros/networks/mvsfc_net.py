# SPDX-License-Identifier: Apache-2.0
"""MVSFC-Net: features of both views <-> latents <-> features -> detections (paper, section III and figure 1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .backbone import Backbone, StereoFeatures
from .config import MvsfcConfig
from .detection import AnalysisOutput, VisualAnalysis
from .entropy_model import StereoEntropyModel
from .smfc import SmfcDecoder, SmfcEncoder

__all__ = ["Half", "MvsfcNet", "MvsfcOutput", "count_complexity"]

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
        """Normalised views (B, 3, H, W) -> features of both at strides 4, 8, 16."""
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
        """Features through quantised latents: the reconstruction, and the bits of each view (B,)."""
        coded = self.entropy_model(*self.latents(features), rate)
        return self.reconstruct(coded.left, coded.right), coded.bits_left, coded.bits_right

    def forward(self, left: Tensor, right: Tensor, rate: Tensor | float = 0.0) -> MvsfcOutput:
        """Normalised views (B, 3, H, W), coded at ``rate``: a float or one for each image (B,)."""
        reconstruction, bits_left, bits_right = self.compress(self.features(left, right), rate)
        return MvsfcOutput(self.detect(reconstruction), bits_left, bits_right, reconstruction)


def count_complexity(config: MvsfcConfig) -> dict[str, tuple[int, int]]:
    """Parameters and multiply-accumulates of one stereo pair at inference, by part; counted on shapes alone.

    The disparity head counts only where inference needs it. A transposed convolution counts at its input's size. The
    context model counts as one pass over the whole latent, which is what the raster scan adds up to.
    """
    with torch.device("meta"):
        net = MvsfcNet(replace(config, variable_rate=False)).eval()
        views = [torch.empty(1, 3, config.height, config.width) for _ in range(2)]
        latents = [torch.empty(1, config.latent_channels, *config.latent_size) for _ in range(2)]

        def macs(module: nn.Module, *inputs: object) -> tuple[int, object]:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                out = module(*inputs)
            return counter.get_total_flops() // 2, out

        def parameters(module: nn.Module) -> int:
            return sum(p.numel() for p in module.parameters())

        counts = {}
        backbone, features = macs(net.backbone, *views)
        counts["backbone"] = (parameters(net.backbone), backbone)
        counts["smfc_encoder"] = (parameters(net.smfc_encoder), macs(net.smfc_encoder, features)[0])
        counts["entropy_model"] = (parameters(net.entropy_model), 0)
        counts["smfc_decoder"] = (parameters(net.smfc_decoder), macs(net.smfc_decoder, *latents)[0])
        unused = 0 if config.analysis.depth_feedback else parameters(net.analysis.disparity_head)
        counts["analysis"] = (parameters(net.analysis) - unused, macs(net.analysis, features)[0])
    # Not on meta tensors: it leaves autocast, which has no meta device. In training mode it is one pass.
    entropy_model = StereoEntropyModel.from_config(config).train()
    counts["entropy_model"] = (
        counts["entropy_model"][0],
        macs(entropy_model, *(torch.zeros(x.shape) for x in latents), 0.0)[0],
    )
    counts["total"] = (sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values()))
    return counts
