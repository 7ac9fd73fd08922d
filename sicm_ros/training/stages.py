# SPDX-License-Identifier: Apache-2.0
"""The stages of a training: what each one trains, on which loss, how fast, and at which rate.

The first three are the paper's progressive training strategy (section IV-A).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.config import MvsfcConfig
from ..networks.mvsfc_net import MvsfcNet
from .config import TrainConfig
from .loader import TrainingBatch
from .losses import TaskLoss, feature_error, rate_distortion_loss, task_loss, volume_error
from .samples import SampleStore
from .validation import validate

__all__ = [
    "MvsfcTrainee",
    "Progress",
    "STAGES",
    "Stage",
    "Trainee",
    "learning_rate",
    "prepare_stage",
    "rate_of_step",
    "rest_norms",
    "task_terms",
]

# What a stage trains, and on what (paper, section IV-A, "Training Strategy"):
# detector: feature extraction and analysis without a codec, on the task's loss (equation 7);
# codec:    the codec alone, on the rate-distortion loss (equation 8), all else at rest;
# joint:    everything, on equation 8;
# entropy:  the entropy model alone, on the rate; not in the paper.
Stage: TypeAlias = Literal["detector", "codec", "joint", "entropy"]
STAGES: tuple[Stage, ...] = get_args(Stage)  # in their order


class Trainee(nn.Module, ABC):
    """What is trained, with its losses, so that distributed training sees one forward pass.

    ``net`` is what checkpoints hold.
    """

    net: nn.Module

    @abstractmethod
    def forward(self, batch: TrainingBatch, stage: Stage, rate: int | None) -> dict[str, Tensor]:
        """The loss and its terms, scalars; ``rate``: index into the lambdas, None trains without the codec."""

    @abstractmethod
    def prepare(self, stage: Stage) -> None:
        """Set what is trained in a stage."""

    @abstractmethod
    def rate_of_step(self, stage: Stage, step: int) -> int | None:
        """Which rate a step trains; the same in every process."""

    @abstractmethod
    def validate(self, stage: Stage, store: SampleStore, device: torch.device) -> dict[str, dict[str, float]]:
        """Figures of what there is to validate in a stage, by its name."""


class MvsfcTrainee(Trainee):
    """The network of this package."""

    net: MvsfcNet

    def __init__(self, net: MvsfcNet, config: TrainConfig) -> None:
        super().__init__()
        self.net, self.config = net, config

    def prepare(self, stage: Stage) -> None:
        """See ``Trainee``."""
        prepare_stage(self.net, stage, self.config.frozen_norms)

    def rate_of_step(self, stage: Stage, step: int) -> int | None:
        """See ``Trainee``."""
        return rate_of_step(stage, self.config, self.net.config, step)

    def validate(self, stage: Stage, store: SampleStore, device: torch.device) -> dict[str, dict[str, float]]:
        """See ``Trainee``."""
        config = self.net.config
        with_codec = [config.default_rate if config.variable_rate else 0.0]
        rates = [None] if stage == "detector" else [None, *with_codec]
        return {
            "uncompressed" if rate is None else f"rate {rate:g}": validate(self.net, store, rate, device)
            for rate in rates
        }

    def forward(self, batch: TrainingBatch, stage: Stage, rate: int | None) -> dict[str, Tensor]:
        """The loss and its terms, scalars; ``rate``: index into the model's lambdas, None trains without the codec."""
        net = self.net
        if stage == "entropy":
            with torch.no_grad():
                latents = net.latents(net.features(batch.left, batch.right))
            coded = net.entropy_model(*latents, self._codec_rate(rate or 0))
            bits = self._bits_per_pixel(coded.bits_left, coded.bits_right)
            return {"loss": bits, "bpp": bits}
        features = net.features(batch.left, batch.right)
        if rate is None:
            task = task_loss(net.detect(features), batch.targets)
            return {"loss": task.total, **task_terms(task)}
        volumes = net.match(features)
        reconstruction, bits_left, bits_right = net.compress(features, self._codec_rate(rate), volumes)
        bits = self._bits_per_pixel(bits_left, bits_right)
        terms = {"bpp": bits}
        distortion: Tensor | float = 0.0
        if stage != "codec" or self.config.codec_task_loss:
            task = task_loss(net.detect_decoded(reconstruction), batch.targets)
            distortion = task.total
            terms |= task_terms(task)
        loss = rate_distortion_loss(bits, distortion, net.config.lambdas[rate])
        weights = batch.targets.left_weight, batch.targets.right_weight
        weight = self.config.feature_loss[stage == "joint"]
        if weight:
            # The joint stage lets it shape the features too: towards ones that the codec can carry.
            terms["feature"] = feature_error(reconstruction.features, features, weights)
            loss = loss + weight * terms["feature"]
        weight = self.config.volume_loss[stage == "joint"]
        if weight and volumes is not None and reconstruction.volumes is not None:
            terms["volume"] = volume_error(reconstruction.volumes, volumes, weights[0])
            loss = loss + weight * terms["volume"]
        return {"loss": loss, **terms}

    def _codec_rate(self, rate: int) -> float:
        return float(rate) if self.net.config.variable_rate else 0.0

    def _bits_per_pixel(self, bits_left: Tensor, bits_right: Tensor) -> Tensor:
        """Bits of both views (B,) each, as the mean over the batch, per pixel of one view of the network's input."""
        return (bits_left + bits_right).mean() / (self.net.config.height * self.net.config.width)


def task_terms(task: TaskLoss) -> dict[str, Tensor]:
    """The terms of the task's loss as the log names them."""
    return {"class": task.classification, "box": task.regression, "disparity": task.disparity}


def trained_prefixes(net: MvsfcNet, stage: Stage) -> list[str]:
    """State-dict prefixes of what a stage trains; parameters of batch norms belong to the first stage alone."""
    return {
        "detector": ["backbone.", "analysis."],
        "codec": ["smfc_encoder.", "entropy_model.", "smfc_decoder."],
        "joint": [""],
        "entropy": ["entropy_model."],
    }[stage]


def prepare_stage(net: MvsfcNet, stage: Stage, frozen_norms: bool) -> None:
    """Set what is trained in ``stage``: gradients, and batch norms frozen after the first stage, or in it too."""
    prefixes = trained_prefixes(net, stage)
    for name, p in net.named_parameters():
        # Without the error of the features, gains would only shrink.
        kept = stage == "entropy" and "_gain" in name
        p.requires_grad_(not kept and any(name.startswith(prefix) for prefix in prefixes))
    net.train()
    if stage != "detector" or frozen_norms:
        rest_norms(net)


def rest_norms(net: nn.Module) -> None:
    """Batch norms with the statistics and parameters that they have."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.eval()
            for p in module.parameters():
                p.requires_grad_(False)


@dataclass
class Progress:
    """The progress of a run. The schedule follows the steps, or the minutes where those run out first."""

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


def rate_of_step(stage: Stage, config: TrainConfig, model: MvsfcConfig, step: int) -> int | None:
    """Which rate a step trains: none in the detector stage; drawn at random where one model covers all rates.

    Every process draws the same, so that all use the same parameters in a step.
    """
    if stage == "detector":
        return None
    rng = np.random.default_rng((config.seed, 11, step))
    if stage == "joint" and rng.random() < config.uncompressed_share:
        return None
    return int(rng.integers(model.rate_count)) if model.variable_rate else config.rate
