# SPDX-License-Identifier: Apache-2.0
"""The losses of the paper (equations 7 and 8): focal classification, smooth L1 regression, disparity, rate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..networks.anchors import RIG_FIELDS, Anchors
from ..networks.backbone import StereoFeatures
from ..networks.detection import AnalysisOutput
from .targets import Batch, assign

__all__ = [
    "TaskLoss",
    "disparity_loss",
    "disparity_weights",
    "feature_error",
    "scale_errors",
    "task_loss",
    "view_weights",
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
# The surface of an object is what its 2D box shows within so many metres of its centre. However far away, it counts for
# so many cells of the disparity in all, each of them at most so much; road and walls would else outvote small ones.
OBJECT_DEPTH, OBJECT_CELLS, OBJECT_WEIGHT = 3.0, 200.0, 20.0


class TaskLoss(NamedTuple):
    """The terms of D_v (equation 7), each a scalar."""

    classification: Tensor
    regression: Tensor
    disparity: Tensor

    @property
    def total(self) -> Tensor:
        return self.classification + self.regression + self.disparity


def feature_error(
    reconstruction: StereoFeatures, features: StereoFeatures, weights: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Mean of ``scale_errors``."""
    return scale_errors(reconstruction, features, weights).mean()


def scale_errors(
    reconstruction: StereoFeatures, features: StereoFeatures, weights: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Mean squared error over the variance, averaged over channels and views, of each scale (3,); 1 where every channel
    is only its mean.

    The variance, not the power, and of each channel by itself: a mean that grows, or one channel that is large and
    easily coded, would make the error small for nothing. ``weights`` say how much a cell of stride 4 counts in the
    mean, (B, H/4, W/4) for each view; a coarser cell counts as its heaviest part.
    """
    errors = []
    for level, (scale, original) in enumerate(zip(reconstruction, features, strict=True)):
        for view, (a, b) in enumerate(zip(scale, original, strict=True)):
            square = (a - b) ** 2  # (B, C, h, w)
            if weights is None:
                mean = square.mean((0, 2, 3))
            else:
                weight = F.max_pool2d(weights[view][:, None], 1 << level, ceil_mode=True)
                mean = (square * weight).sum((0, 2, 3)) / weight.sum()
            errors.append((mean / b.var((0, 2, 3)).clamp(min=LEAST_VARIANCE)).mean())
    return torch.stack(errors).view(3, 2).mean(1)


def disparity_weights(batch: Batch) -> Tensor:
    """How much the disparity of each cell of stride 4 counts, (B, H/4, W/4): 1, and more on small objects."""
    weights = torch.ones_like(batch.disparity)
    for image, (rows, rig) in enumerate(zip(batch.objects, batch.rigs, strict=True)):
        focal_baseline = float(rig[RIG_FIELDS.index("focal_baseline")])
        for left, top, right, bottom, _, _, z, *_ in rows.tolist():
            if z <= 0:  # a region without an object
                continue
            box = (
                image,
                slice(max(0, int(top / 4)), max(0, int(bottom / 4) + 1)),
                slice(max(0, int(left / 4)), max(0, int(right / 4) + 1)),
            )
            disparity = batch.disparity[box]
            surface = disparity > focal_baseline / (z + OBJECT_DEPTH)
            surface &= disparity < focal_baseline / max(z - OBJECT_DEPTH, 1.0)
            weight = min(OBJECT_WEIGHT, OBJECT_CELLS / max(1, int(surface.sum())))
            weights[box] = torch.where(surface, weights[box].clamp(min=weight), weights[box])
    return weights


def view_weights(batch: Batch) -> tuple[Tensor, Tensor]:
    """``disparity_weights`` of the left view, and those of the right view's cells that show the same: (B, H/4, W/4)."""
    left = disparity_weights(batch)
    column = torch.arange(left.shape[2], device=left.device)
    # A cell without a disparity stays where it is, and counts 1.
    matched = (column - batch.disparity / 4).round().long().clamp(min=0)
    index = torch.where(batch.disparity > 0, matched, column)
    right = torch.ones_like(left).scatter_reduce(2, index, left, "amax")
    return left, right


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


def task_loss(output: AnalysisOutput, batch: Batch, anchors: Anchors) -> TaskLoss:
    """D_v of a batch: sums over the objects, each with the weight that ``assign`` gives its anchors."""
    device = batch.left.device
    near_road = anchors.near_road(batch.rigs)
    weights, betas = torch.tensor((REGRESSION_WEIGHTS, SMOOTH_L1_BETAS), device=device)
    logits = output.class_logits.float()
    assignments = [
        assign(anchors, o, c, near) for o, c, near in zip(batch.objects, batch.classes, near_road, strict=True)
    ]
    # Indexing whole batches once: the gradient of an index is as large as what it indexes.
    image = torch.cat([torch.full_like(a.anchor_index, b) for b, a in enumerate(assignments)])
    anchor = torch.cat([a.anchor_index for a in assignments])
    weight = torch.cat([a.weight for a in assignments])
    background = torch.stack([a.background for a in assignments])
    k = torch.cat([c[a.object_index] for c, a in zip(batch.classes, assignments, strict=True)])
    targets = [
        anchors.encode(o[a.object_index], c[a.object_index], a.anchor_index, rig)
        for o, c, a, rig in zip(batch.objects, batch.classes, assignments, batch.rigs, strict=True)
    ]
    alpha = torch.cat([o[a.object_index, 7] for o, a in zip(batch.objects, assignments, strict=True)])
    total_weight = weight.sum().clamp(min=1.0)

    negative = (1 - FOCAL_ALPHA) * logits.sigmoid() ** FOCAL_GAMMA * F.softplus(logits)
    positive = logits[image, anchor]
    chosen = F.one_hot(k, positive.shape[1]).float()
    p = positive.sigmoid()
    focal = chosen * FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * F.softplus(-positive) + (1 - chosen) * (
        1 - FOCAL_ALPHA
    ) * p**FOCAL_GAMMA * F.softplus(positive)
    classification = (negative * background[:, :, None]).sum() + (focal * weight[:, None]).sum()

    error = _smooth_l1(output.regression[image, anchor].float() - torch.cat(targets), betas)
    direction = F.binary_cross_entropy_with_logits(
        output.direction_logits[image, anchor].float(), (torch.sin(alpha) > 0).float(), reduction="none"
    )
    terms = (error * weights).sum(1) / len(weights) + DIRECTION_WEIGHT * direction
    regression = (terms * weight).sum()
    disparity = logits.new_zeros(())
    if output.disparity_logits is not None:
        shares = disparity_weights(batch)
        disparity = disparity_loss(output.disparity_logits, batch.disparity, shares)
        if output.refined_disparity is not None:
            bins = output.disparity_logits.shape[1]
            refined = refinement_loss(output.refined_disparity, batch.disparity, bins, shares)
            disparity = disparity + REFINED_WEIGHT * refined
    return TaskLoss(classification / total_weight, regression / total_weight, disparity)
