# SPDX-License-Identifier: Apache-2.0
"""The sizes of an MVSFC-Net: one frozen dataclass that every module is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PACKET_VERSION", "AnalysisConfig", "AnchorConfig", "MvsfcConfig"]

# Of the packet's format (docs/packet.md). It stands down here because it is part of what a model's fingerprint means.
PACKET_VERSION = 1


@dataclass(frozen=True)
class AnchorConfig:
    """2D anchors of the detection head, in pixels of the network's input (YOLOStereo3D)."""

    base_size: float = 24.0
    scales: int = 16  # sizes base_size * 2 ** (i / scales_per_octave)
    scales_per_octave: float = 4.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width


@dataclass(frozen=True)
class AnalysisConfig:
    """The visual analysis network: cost volumes, fusion, heads."""

    correlation_bins: tuple[int, int] = (24, 24)  # shifts at strides 4 and 8
    correlations_per_pixel: int = 1  # shifts in each pixel of those maps; 2 adds half-pixel shifts
    concat_bins: int = 12  # shifts of the stride 16 concatenation volume
    concat_channels: int = 8
    fusion_channels: tuple[int, int, int] = (72, 288, 1152)
    head_stride: Literal[8, 16] = 16
    head_channels: tuple[int, int] = (256, 1408)  # of the classification and the regression branch
    head_output_kernel: int = 3
    dropout: float = 0.3  # of whole channels in the classification branch
    disparity_bins: int = 96  # logits of the disparity head: 0, 1, ... pixels of the network's input
    disparity_channels: tuple[int, ...] = (576, 288)
    depth_feedback: bool = False  # the disparity estimate is an input of the regression branch
    disparity_refinement: int = 0  # channels of the residual from features warped by the estimate; 0 goes without
    anchors: AnchorConfig = AnchorConfig()
    # For each class, scale and offset of the logit, such that a score is the share of boxes of this score that are
    # right; measured after the training (benchmarks/calibration.py). Empty: as trained.
    score_calibration: tuple[tuple[float, float], ...] = ()
    score_threshold: float = 0.75
    nms_iou: float = 0.4


@dataclass(frozen=True)
class MvsfcConfig:
    """Everything that fixes the shape of an MVSFC-Net. The defaults are the paper's network."""

    height: int = 288  # network input, rows and columns of one view
    width: int = 1280
    crop_top: int = 100  # rows cut from the camera image before it is scaled
    classes: tuple[str, ...] = ("Car", "Pedestrian")
    blocks: tuple[int, int, int] = (3, 4, 6)  # residual blocks of each stage (ResNet-34 without its last stage)
    stem_channels: int = 64
    strided_stem: bool = False  # a strided convolution beside the max-pool, which forgets where in its window it looked
    channels: tuple[int, int, int] = (64, 128, 256)  # of f0, f1, f2 at strides 4, 8, 16
    joint_channels: tuple[int, int] = (128, 256)  # of c0 and c0-1, the compact representations between the units
    latent_channels: int = 192  # of c0-2, for each view
    latent_stride: Literal[16, 32] = 32  # pixels of the network's input between cells of c0-2; the paper's is 32
    hyper_channels: int = 128
    context_channels: int | None = None  # of the features in the entropy model; None: twice latent_channels
    attention: Literal["efficient", "epipolar"] = "efficient"  # in the bi-directional contextual transform
    decoder_feedback: bool = True  # what a decoder unit has decoded goes into the next one
    # False is the paper's "w/o SMFC" (table III): each scale of each view goes into channels of the latent of its own.
    joint_features: bool = True
    # Where the views are matched at strides 4 and 8: remotely, on reconstructed features, as in the paper, or on the
    # vehicle, before anything is lost; then the result is coded beside the features.
    matching: Literal["remote", "vehicle"] = "remote"
    pad_features: bool = True  # zero-pad so that the latent is a multiple of 4; else pad nothing
    context: Literal["raster", "checkerboard"] = "raster"
    lambdas: tuple[float, ...] = (0.5, 1.0, 4.0, 16.0, 64.0, 256.0)  # the loss's weight at each rate
    variable_rate: bool = False  # one set of weights for every rate: learned gains
    default_rate: float = 0.0
    analysis: AnalysisConfig = AnalysisConfig()

    @property
    def rate_count(self) -> int:
        """Number of rates that the model's gains cover; 1 for a model that is trained for a single rate."""
        return len(self.lambdas) if self.variable_rate else 1

    @property
    def highest_rate(self) -> int:
        """The rate with the most bits; 0 is the one with the fewest."""
        return self.rate_count - 1

    def feature_size(self, level: int) -> tuple[int, int]:
        """Rows and columns of f0, f1 or f2 as the codec sees it (padded if ``pad_features``)."""
        stride = 4 << level
        height, width = -(-self.height // stride), -(-self.width // stride)
        if self.pad_features:
            multiple = self.latent_stride >> level  # so that the latent's sides are multiples of 4
            height, width = -(-height // multiple) * multiple, -(-width // multiple) * multiple
        return height, width

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of one view's latent, at ``latent_stride``."""
        height, width = self.feature_size(2)
        step = self.latent_stride // 16
        return -(-height // step), -(-width // step)
