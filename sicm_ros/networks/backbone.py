# SPDX-License-Identifier: Apache-2.0
"""Stereo feature extraction: a ResNet feature pyramid of both views (paper, section III-A; He et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import MvsfcConfig

__all__ = ["Backbone", "BasicBlock", "DecodedFeatures", "StereoFeatures", "ViewPair", "conv_bn"]

ViewPair = tuple[Tensor, Tensor]  # the left and the right view's map (B, C, h, w)
StereoFeatures = tuple[ViewPair, ViewPair, ViewPair]  # at three scales (strides 4, 8, 16)
# Where the vehicle has matched the views, nothing remote needs f0.
DecodedFeatures = tuple[ViewPair | None, ViewPair, ViewPair]


def conv_bn(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and, by default, ReLU: (B, C, H, W) -> (B, C', ceil(H/stride), ceil(W/stride))."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """The two-convolution residual block of ResNet-18 and ResNet-34."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv_bn(in_channels, out_channels, 3, stride)
        self.conv2 = conv_bn(out_channels, out_channels, relu=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv_bn(in_channels, out_channels, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Backbone(nn.Module):
    """ResNet without its last stage; both views go through it as one batch."""

    def __init__(self, config: MvsfcConfig) -> None:
        super().__init__()
        self.stem = conv_bn(3, config.stem_channels, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        # Matching to a fraction of a pixel needs the phase that a maximum loses.
        self.strided = (
            conv_bn(config.stem_channels, config.stem_channels, 3, 2, relu=False) if config.strided_stem else None
        )
        self.stages = nn.ModuleList()
        in_channels = config.stem_channels
        for stage, (blocks, channels) in enumerate(zip(config.blocks, config.channels, strict=True)):
            self.stages.append(
                nn.Sequential(
                    *(
                        BasicBlock(in_channels if i == 0 else channels, channels, 2 if stage > 0 and i == 0 else 1)
                        for i in range(blocks)
                    )
                )
            )
            in_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if self.strided is not None:
            nn.init.zeros_(self.strided[1].weight)  # type: ignore[arg-type]

    def forward(self, left: Tensor, right: Tensor) -> StereoFeatures:
        """Normalised views (B, 3, H, W) -> f0, f1, f2 of both views, (B, C, H/s, W/s) at strides s = 4, 8, 16."""
        x = self.stem(torch.cat([left, right]))
        x = self.pool(x) if self.strided is None else self.pool(x) + self.strided(x)
        scales = []
        for stage in self.stages:
            x = stage(x)
            f_left, f_right = x.chunk(2)
            scales.append((f_left, f_right))
        return (scales[0], scales[1], scales[2])
