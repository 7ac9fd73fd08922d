# SPDX-License-Identifier: Apache-2.0
"""The stages of a training: what each one trains, on which loss, how fast, and at which rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.config import MvsfcConfig
from ..networks.mvsfc_net import MvsfcNet
from .config import TrainConfig
from .losses import feature_error, task_loss, view_weights
from .targets import Batch

__all__ = ["Progress", "STAGES", "Trainee", "learning_rate", "prepare_stage", "rate_of_step"]

STAGES = ("detector", "codec", "joint", "entropy")


class Trainee(nn.Module):
    """The network with its losses, so that distributed training sees one forward pass."""

    def __init__(self, net: MvsfcNet, config: TrainConfig) -> None:
        super().__init__()
        self.net, self.config = net, config

    def forward(self, batch: Batch, stage: str, rate: int | None) -> dict[str, Tensor]:
        """The loss and its terms; ``rate`` None trains without the codec."""
        net = self.net
        if stage == "entropy":
            with torch.no_grad():
                latents = net.latents(net.features(batch.left, batch.right))
            coded = net.entropy_model(*latents, float(rate or 0) if net.config.variable_rate else 0.0)
            bits = (coded.bits_left + coded.bits_right).mean() / (net.config.height * net.config.width)
            return {"loss": bits, "bpp": bits}
        features = net.features(batch.left, batch.right)
        if rate is None:
            task = task_loss(net.detect(features), batch, net.analysis.anchors)
            return {
                "loss": task.total,
                "class": task.classification,
                "box": task.regression,
                "disparity": task.disparity,
            }
        reconstruction, bits_left, bits_right = net.compress(features, float(rate) if net.config.variable_rate else 0.0)
        bits = (bits_left + bits_right).mean() / (net.config.height * net.config.width)
        # Equation 8 over lambda: the same optimum, and steps of one size at every rate.
        loss, terms = bits / net.config.lambdas[rate], {"bpp": bits}
        if stage != "codec" or self.config.codec_task_loss:
            task = task_loss(net.detect(reconstruction), batch, net.analysis.anchors)
            loss = loss + task.total
            terms |= {"class": task.classification, "box": task.regression, "disparity": task.disparity}
        weight = self.config.feature_loss[stage == "joint"]
        if weight:
            # The joint stage lets it shape the features too: towards ones that the codec can carry.
            terms["feature"] = feature_error(reconstruction, features, view_weights(batch))
            loss = loss + weight * terms["feature"]
        return {"loss": loss, **terms}


def trained_prefixes(net: MvsfcNet, stage: str) -> list[str]:
    """State-dict prefixes of what a stage trains; parameters of batch norms belong to the first stage alone."""
    return {
        "detector": ["backbone.", "analysis."],
        "codec": ["smfc_encoder.", "entropy_model.", "smfc_decoder."],
        "joint": [""],
        "entropy": ["entropy_model."],
    }[stage]


def prepare_stage(net: MvsfcNet, stage: str, frozen_norms: bool) -> None:
    """Set what is trained in ``stage``: gradients, and batch norms frozen after the first stage, or in it too."""
    prefixes = trained_prefixes(net, stage)
    for name, p in net.named_parameters():
        # Without the error of the features, gains would only shrink.
        kept = stage == "entropy" and "_gain" in name
        p.requires_grad_(not kept and any(name.startswith(prefix) for prefix in prefixes))
    net.train()
    if stage != "detector" or frozen_norms:
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                module.eval()
                for p in module.parameters():
                    p.requires_grad_(False)


@dataclass
class Progress:
    """How far a run is. The schedule follows the steps, or the minutes where those run out first."""

    total_steps: tuple[int, int, int, int]
    max_minutes: float | None
    step: int = 0
    stage_step: int = 0
    minutes: float = 0.0
    stage: int = 0

    def stage_fraction(self) -> float:
        """How much of the present stage is done, 0 to 1."""
        share = self.total_steps[self.stage] / sum(self.total_steps)
        by_steps = self.stage_step / max(self.total_steps[self.stage], 1)
        if self.max_minutes is None or share == 0:
            return by_steps if share else 1.0
        start = sum(self.total_steps[: self.stage]) / sum(self.total_steps)
        return max(by_steps, (self.minutes / self.max_minutes - start) / share)


def learning_rate(config: TrainConfig, progress: Progress) -> float:
    """Cosine from the stage's learning rate to the final one, after a linear warm-up."""
    top = config.learning_rate[progress.stage]
    cosine = (1 + math.cos(math.pi * min(progress.stage_fraction(), 1.0))) / 2
    warm = min(1.0, (progress.stage_step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * (config.final_learning_rate + (top - config.final_learning_rate) * cosine)


def rate_of_step(stage: str, config: TrainConfig, model: MvsfcConfig, step: int) -> int | None:
    """Which rate a step trains: none in the detector stage; drawn at random where one model covers all rates.

    Every process draws the same, so that all use the same parameters in a step.
    """
    if stage == "detector":
        return None
    rng = np.random.default_rng((config.seed, 11, step))
    if stage == "joint" and rng.random() < config.uncompressed_share:
        return None
    return int(rng.integers(model.rates)) if model.variable_rate else config.rate
