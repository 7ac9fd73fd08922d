# SPDX-License-Identifier: Apache-2.0
"""Anchors of the detection head, their priors, and boxes relative to them.

YOLOStereo3D: 2D anchors of several sizes and ratios, each with the mean and the standard deviation of depth and
observation angle that objects of its size had in the training labels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry import StereoRig
from .config import MvsfcConfig

__all__ = ["Anchors", "RIG_FIELDS", "TARGETS", "rig_tensor"]

# What the regression branch gives for each anchor: 2D box, projected centre, depth, twice the observation angle, size.
TARGETS = ("dx", "dy", "dw", "dh", "cx", "cy", "z", "sin2a", "cos2a", "w", "h", "l")
DIVISORS = (0.1, 0.1, 0.2, 0.2, 0.1, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
# An anchor can be an object's only where its prior depth puts it near the road: metres below the camera, to the side.
Y_RANGE, X_RANGE = (-0.5, 1.8), 40.0
RIG_FIELDS = ("fx", "fy", "cx", "cy", "tx", "ty", "tz", "focal_baseline")


def rig_tensor(rigs: list[StereoRig], device: torch.device | str = "cpu") -> Tensor:
    """Rigs of the network's input as (B, 8) float64; the columns are ``RIG_FIELDS``."""
    return torch.tensor(
        [[r.fx, r.fy, r.cx, r.cy, *r.left_translation, r.focal_baseline] for r in rigs],
        dtype=torch.float64,
        device=device,
    )


class Anchors(nn.Module):
    """All N anchors of one image, with their priors for each class as buffers that are stored with the weights."""

    boxes: Tensor
    shape_index: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    reference_focal_baseline: Tensor
    _divisors: Tensor

    def __init__(self, config: MvsfcConfig) -> None:
        super().__init__()
        a, stride = config.analysis.anchors, config.analysis.head_stride
        rows, columns = -(-config.height // stride), -(-config.width // stride)
        sizes = a.base_size * 2.0 ** (np.arange(a.scales) / a.scales_per_octave)
        ratios = np.array(a.ratios)
        # (scales, ratios): every ratio of one scale has the same area.
        w = (sizes[:, None] / np.sqrt(ratios)).reshape(-1)
        h = (sizes[:, None] * np.sqrt(ratios)).reshape(-1)
        self.per_cell = len(w)
        v, u = np.meshgrid(
            (np.arange(rows) + 0.5) * stride - 0.5, (np.arange(columns) + 0.5) * stride - 0.5, indexing="ij"
        )
        boxes = np.stack(np.broadcast_arrays(u[..., None], v[..., None], w, h), -1).reshape(-1, 4)
        # Recomputed from the configuration, so not part of the weights: (N, 4) centre u, v, width, height.
        self.register_buffer("boxes", torch.tensor(boxes, dtype=torch.float32), persistent=False)
        self.register_buffer("shape_index", torch.arange(self.per_cell).repeat(rows * columns), persistent=False)
        classes = len(config.classes)
        # z, sin2a, cos2a, w, h, l for each class and anchor shape.
        self.register_buffer("prior_mean", torch.zeros(classes, self.per_cell, 6))
        self.register_buffer("prior_std", torch.ones(classes, self.per_cell, 6))
        # Depth priors hold for this focal length times baseline (pixel metres); others scale depth.
        self.register_buffer("reference_focal_baseline", torch.zeros((), dtype=torch.float64))
        self.register_buffer("_divisors", torch.tensor(DIVISORS), persistent=False)

    def priors(self, class_index: Tensor, anchor_index: Tensor) -> tuple[Tensor, Tensor]:
        """Prior means and standard deviations, (M, 6) each, for M pairs of a class and an anchor, indices (M,) int64.

        Columns: z in metres, sin(2 alpha), cos(2 alpha), width, height, length in metres.
        """
        shape = self.shape_index[anchor_index]
        return self.prior_mean[class_index, shape], self.prior_std[class_index, shape]

    def near_road(self, rig: Tensor, anchor_index: Tensor | slice = slice(None)) -> Tensor:
        """(M,) bool: whether the prior depth puts an anchor where objects of some class are.

        ``rig`` (8,), see ``rig_tensor``; ``anchor_index`` (M,) int64, by default all N.
        """
        fx, fy, cx, cy, tx, ty, tz, fb = rig.float().unbind(0)
        z = self.prior_mean[:, self.shape_index[anchor_index], 0]  # (K, M)
        z = z * (fb / self.reference_focal_baseline.float().clamp(min=1e-6))
        u, v = self.boxes[anchor_index].unbind(1)[:2]
        x = (u * (z + tz) - cx * z - tx) / fx
        y = (v * (z + tz) - cy * z - ty) / fy
        return ((y > Y_RANGE[0]) & (y < Y_RANGE[1]) & (x.abs() < X_RANGE)).any(0)

    def encode(self, objects: Tensor, class_index: Tensor, anchor_index: Tensor, rig: Tensor) -> Tensor:
        """Regression targets (M, 12), without units, of M objects at M anchors.

        ``objects`` (M, 11): 2D box (left, top, right, bottom) and projected centre (u, v) in pixels of the network's
        input, z in metres, alpha in radians, w, h, l in metres. ``class_index``, ``anchor_index`` (M,) int64.
        ``rig`` (8,), see ``rig_tensor``.
        """
        box = self.boxes[anchor_index]
        mean, std = self.priors(class_index, anchor_index)
        left, top, right, bottom, u, v, z, alpha = objects[:, :8].unbind(1)
        w, h = (right - left).clamp(min=1), (bottom - top).clamp(min=1)
        au, av, aw, ah = box.unbind(1)
        reference_z = z * (self.reference_focal_baseline / rig[7]).float()
        values = torch.stack([reference_z, torch.sin(2 * alpha), torch.cos(2 * alpha), *objects[:, 8:11].unbind(1)], 1)
        image = torch.stack(
            [
                ((left + right) / 2 - au) / aw,
                ((top + bottom) / 2 - av) / ah,
                torch.log(w / aw),
                torch.log(h / ah),
                (u - au) / aw,
                (v - av) / ah,
            ],
            1,
        )
        return torch.cat([image, (values - mean) / std], 1) / self._divisors

    def decode(
        self, targets: Tensor, sin_positive: Tensor, class_index: Tensor, anchor_index: Tensor, rig: Tensor
    ) -> Tensor:
        """Inverse of ``encode``: (M, 12), and whether sin(alpha) > 0 (M,) -> (M, 14).

        Columns: 2D box (left, top, right, bottom) in pixels of the network's input; h, w, l and x, y (bottom), z in
        metres; rotation_y and alpha in radians; projected centre (u, v) in pixels. ``rig`` (8,), see ``rig_tensor``.
        Depth and sizes are as the network gives them, negative ones included: the caller refuses impossible boxes.
        """
        targets = targets.float() * self._divisors
        mean, std = self.priors(class_index, anchor_index)
        au, av, aw, ah = self.boxes[anchor_index].unbind(1)
        fx, fy, cx, cy, tx, ty, tz, fb = rig.float().unbind(0)
        du, dv, dw, dh, pu, pv = targets[:, :6].unbind(1)
        z, sin2a, cos2a, w, h, length = (targets[:, 6:] * std + mean).unbind(1)
        z = z * (fb / self.reference_focal_baseline.float())
        u2, v2 = au + du * aw, av + dv * ah
        half_w, half_h = aw * dw.clamp(max=3).exp() / 2, ah * dh.clamp(max=3).exp() / 2
        u, v = au + pu * aw, av + pv * ah
        x = (u * (z + tz) - cx * z - tx) / fx
        y = (v * (z + tz) - cy * z - ty) / fy + h / 2
        # Half of the double angle lies in [0, pi): right where sin(alpha) > 0, else half a turn away.
        alpha = torch.remainder(torch.atan2(sin2a, cos2a) / 2, torch.pi)
        alpha = torch.where(sin_positive, alpha, alpha - torch.pi)
        rotation_y = torch.remainder(alpha + torch.atan2(x, z) + torch.pi, 2 * torch.pi) - torch.pi
        return torch.stack(
            [u2 - half_w, v2 - half_h, u2 + half_w, v2 + half_h, h, w, length, x, y, z, rotation_y, alpha, u, v], 1
        )
