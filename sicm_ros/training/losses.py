# SPDX-License-Identifier: Apache-2.0
"""The losses of the paper: the task's (section III-C, equation 7) and rate-distortion (equation 8).

Nothing here waits for a GPU: what needs a loop over objects is in the targets already.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..networks.backbone import DecodedFeatures, StereoFeatures
from ..networks.detection import AnalysisOutput
from .targets import Targets

__all__ = [
    "TaskLoss",
    "disparity_loss",
    "feature_error",
    "rate_distortion_loss",
    "scale_errors",
    "task_loss",
    "volume_error",
]

FOCAL_GAMMA, FOCAL_ALPHA = 2.0, 0.25
# Where the error of each target turns from squared to absolute. That of the angles is large, so that the many cars that
# drive along the road do not outvote the few that cross it.
SMOOTH_L1_BETAS = (0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 1.0, 1.0, 0.04, 0.04, 0.04)
# dx, dy, dw, dh, cx, cy, z, sin2a, cos2a, w, h, l: depth, then heading, decide whether a box counts.
REGRESSION_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 12.0, 4.0, 4.0, 0.5, 0.5, 0.5)
DIRECTION_WEIGHT = 1.0
SOFT_ARGMAX_WEIGHT = 0.3  # of the error of the expected disparity, beside the cross-entropy
REFINED_WEIGHT, REFINED_BETA = 1.0, 0.1  # of the refined disparity's error; pixels of the network's input
LEAST_VARIANCE = 0.01  # of a channel whose error is worth coding
LAPLACE_SCALE = 0.5  # bins: spread of the soft label of the disparity


class TaskLoss(NamedTuple):
    """The terms of D_v (equation 7), each a scalar."""

    classification: Tensor
    regression: Tensor
    disparity: Tensor

    @property
    def total(self) -> Tensor:
        return self.classification + self.regression + self.disparity


def rate_distortion_loss(rate: Tensor, distortion: Tensor | float, rate_weight: float) -> Tensor:
    """Equation 8, L_T = lambda D_v + R_l + R_r, over lambda: the same optimum, and steps of one size at every rate.

    ``rate``: R_l + R_r, bits of both views per pixel of the network's input, a scalar; ``distortion``: D_v (equation 7,
    ``TaskLoss.total``), or 0 for the rate alone; ``rate_weight``: lambda.
    """
    return rate / rate_weight + distortion


def feature_error(
    reconstruction: DecodedFeatures, features: StereoFeatures, weights: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Mean of ``scale_errors``."""
    return scale_errors(reconstruction, features, weights).mean()


def scale_errors(
    reconstruction: DecodedFeatures, features: StereoFeatures, weights: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Mean squared error over the variance, averaged over channels and views, of each scale (3,); 1 where every channel
    is only its mean.

    The variance, not the power, and of each channel by itself: a mean that grows, or one channel that is large and
    easily coded, would make the error small without any gain. ``weights`` say how much a cell of stride 4 counts in the
    mean, (B, H/4, W/4) for each view; a coarser cell counts as its heaviest part.
    """
    errors = []
    for level, (scale, original) in enumerate(zip(reconstruction, features, strict=True)):
        assert scale is not None
        for view, (a, b) in enumerate(zip(scale, original, strict=True)):
            errors.append(_map_error(a, b, None if weights is None else weights[view], level))
    return torch.stack(errors).view(3, 2).mean(1)


def volume_error(reconstruction: Tensor, volumes: Tensor, weights: Tensor | None = None) -> Tensor:
    """The same for the volumes of ``StereoMatching`` (B, C, H/8, W/8); ``weights`` of the left view (B, H/4, W/4)."""
    return _map_error(reconstruction, volumes, weights, 1)


def _map_error(decoded: Tensor, original: Tensor, weights: Tensor | None, level: int) -> Tensor:
    """Of one map (B, C, h, w) at stride 4 << level: the mean over the channels of squared error over variance."""
    square = (decoded.float() - original.float()) ** 2
    if weights is None:
        mean = square.mean((0, 2, 3))
    else:
        weight = F.max_pool2d(weights[:, None], 1 << level, ceil_mode=True)
        mean = (square * weight).sum((0, 2, 3)) / weight.sum()
    return (mean / original.float().var((0, 2, 3)).clamp(min=LEAST_VARIANCE)).mean()


def disparity_loss(logits: Tensor, disparity: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with a Laplace-shaped soft label around the true disparity, over the pixels that have one.

    ``logits`` (B, bins, h, w), ``disparity`` (B, h, w) in bins, ``weights`` of its mean (B, h, w).
    """
    bins = torch.arange(logits.shape[1], device=logits.device, dtype=torch.float32)[None, :, None, None]
    valid = _valid_weights(disparity, logits.shape[1], weights)
    target = torch.softmax(-(bins - disparity[:, None]).abs() / LAPLACE_SCALE, 1)
    log_probability = F.log_softmax(logits.float(), 1)
    entropy = -(target * log_probability).sum(1)
    # The soft argmax is what depth is made of, so it is pulled towards the truth itself too.
    expected = (log_probability.exp() * bins).sum(1)
    error = F.smooth_l1_loss(expected, disparity, beta=0.5, reduction="none")
    return ((entropy + SOFT_ARGMAX_WEIGHT * error) * valid).sum() / valid.sum().clamp(min=1)


def refinement_loss(refined: Tensor, disparity: Tensor, bins: int, weights: Tensor | None = None) -> Tensor:
    """Smooth L1 of the refined disparity (B, h, w) where the true one is known and below ``bins``."""
    valid = _valid_weights(disparity, bins, weights)
    error = F.smooth_l1_loss(refined, disparity, beta=REFINED_BETA, reduction="none")
    return (error * valid).sum() / valid.sum().clamp(min=1)


def _valid_weights(disparity: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    """The weights where the true disparity is known and below ``bins``, 0 elsewhere."""
    valid = ((disparity > 0) & (disparity < bins - 1)).float()
    return valid if weights is None else valid * weights


def _smooth_l1(error: Tensor, betas: Tensor) -> Tensor:
    """Smooth L1 loss of each element, with a beta for each column."""
    size = error.abs()
    return torch.where(size < betas, 0.5 * size**2 / betas, size - 0.5 * betas)


@cache
def _regression_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights and betas of the regression's targets, (12,) each; kept, since a copy to a GPU waits for it."""
    weights, betas = torch.tensor((REGRESSION_WEIGHTS, SMOOTH_L1_BETAS), device=device)
    return weights, betas


def task_loss(output: AnalysisOutput, targets: Targets) -> TaskLoss:
    """D_v of a batch (equation 7): sums over the objects, each with the weight that ``assign`` gives its anchors."""
    # Indexing whole batches once: the gradient of an index is as large as what it indexes.
    positive = targets.image, targets.anchor
    total_weight = targets.weight.sum().clamp(min=1.0)
    classification = _focal_loss(output.class_logits.float(), targets)
    weights, betas = _regression_constants(output.regression.device)
    error = _smooth_l1(output.regression[positive].float() - targets.regression, betas)
    direction = F.binary_cross_entropy_with_logits(
        output.direction_logits[positive].float(), targets.sin_positive, reduction="none"
    )
    terms = (error * weights).sum(1) / len(weights) + DIRECTION_WEIGHT * direction
    regression = (terms * targets.weight).sum()
    disparity = classification.new_zeros(())
    if output.disparity_logits is not None:
        disparity = disparity_loss(output.disparity_logits, targets.disparity, targets.left_weight)
        if output.refined_disparity is not None:
            bins = output.disparity_logits.shape[1]
            refined = refinement_loss(output.refined_disparity, targets.disparity, bins, targets.left_weight)
            disparity = disparity + REFINED_WEIGHT * refined
    return TaskLoss(classification / total_weight, regression / total_weight, disparity)


def _focal_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Focal loss of the classes, summed over background anchors and objects; ``logits`` (B, N, classes)."""
    negative = (1 - FOCAL_ALPHA) * logits.sigmoid() ** FOCAL_GAMMA * F.softplus(logits)
    positive = logits[targets.image, targets.anchor]
    # Not ``one_hot``, which reads its indices.
    chosen = (targets.class_index[:, None] == torch.arange(logits.shape[2], device=logits.device)).float()
    p = positive.sigmoid()
    focal = chosen * FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * F.softplus(-positive) + (1 - chosen) * (
        1 - FOCAL_ALPHA
    ) * p**FOCAL_GAMMA * F.softplus(positive)
    return (negative * targets.background[:, :, None]).sum() + (focal * targets.weight[:, None]).sum()
