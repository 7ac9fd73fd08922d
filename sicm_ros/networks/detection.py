# SPDX-License-Identifier: Apache-2.0
"""Visual analysis: disparity and 3D detection from reconstructed features (YOLOStereo3D; paper, section III-A)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..geometry import InputTransform, Object3D, wrap_angle
from .anchors import TARGETS, Anchors
from .backbone import BasicBlock, DecodedFeatures, conv_bn
from .config import MvsfcConfig
from .cost_volume import StereoMatching, VolumeFusion

__all__ = [
    "AnalysisOutput",
    "Detections",
    "DisparityRefinement",
    "VisualAnalysis",
    "can_exist",
    "expected_disparity",
    "to_objects",
]

MAX_CANDIDATES = 1000  # anchors of one image that go into non-maximum suppression, best first

# What a box can be, in metres; what is not between the bounds is refused. Twice as far as anything that KITTI labels,
# and from less than a toddler to more than a tram.
DEPTH_RANGE = (0.5, 200.0)
HEIGHT_RANGE, WIDTH_RANGE, LENGTH_RANGE = (0.1, 6.0), (0.1, 6.0), (0.1, 40.0)


class AnalysisOutput(NamedTuple):
    """Raw outputs for N anchors and K classes."""

    class_logits: Tensor  # (B, N, K)
    direction_logits: Tensor  # (B, N): sin(alpha) > 0
    regression: Tensor  # (B, N, 12), see anchors.TARGETS
    disparity_logits: Tensor | None  # (B, bins, H/4, W/4); None where the model does without it outside training
    refined_disparity: Tensor | None  # (B, H/4, W/4) pixels of the network's input; None without refinement


@dataclass(frozen=True)
class Detections:
    """The boxes found in one image, best first; see ``Anchors.decode`` for the columns of ``boxes`` (M, 14)."""

    boxes: np.ndarray
    scores: np.ndarray  # (M,)
    classes: np.ndarray  # (M,) index into the model's classes
    refused: int = 0  # boxes above the score threshold that cannot exist, see ``can_exist``; before suppression


def expected_disparity(logits: Tensor) -> Tensor:
    """Mean of the distributions with these logits, (B, bins, h, w) -> (B, h, w) float32, in bins."""
    bins = torch.arange(logits.shape[1], device=logits.device, dtype=torch.float32)
    # Not a matrix product, which autocast would round to bfloat16.
    return (logits.float().softmax(1) * bins[:, None, None]).sum(1)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class DisparityHead(nn.Module):
    """Logits of the left view's disparity at stride 4, one bin for each pixel of the network's input."""

    def __init__(self, in_channels: int, skip_channels: int, channels: tuple[int, ...], bins: int) -> None:
        super().__init__()
        widths = [in_channels, *channels]
        self.steps = nn.ModuleList(conv_bn(i, o) for i, o in pairwise(widths))
        self.skip = conv_bn(widths[-1] + skip_channels, widths[-1]) if skip_channels else None
        self.logits = nn.Conv2d(widths[-1], bins, 1)

    def forward(self, x: Tensor, stride4: Tensor | None, size: tuple[int, int]) -> Tensor:
        """The fused volume (B, C, h, w), the expanded one at stride 4 (B, C', H/4, W/4) where it is matched here, and
        ``size``, H/4 and W/4 -> (B, bins, H/4, W/4)."""
        for step in self.steps:  # the convolution comes first, a quarter of the work at the same size
            x = F.interpolate(step(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        x = x[:, :, : size[0], : size[1]]
        if self.skip is not None:
            assert stride4 is not None
            x = self.skip(torch.cat([x, stride4], 1))
        return self.logits(x)


class DisparityRefinement(nn.Module):
    """Correction of a disparity, from the difference between the left map and the right map warped by that disparity.

    The right map is also warped by half a cell more and less, so that the layers can locate the minimum of the squared
    difference to a fraction of a cell; the correlation volume is too coarse for that. The minimum of a parabola through
    the three differences is an input as well.
    """

    OFFSETS = 3  # half a cell of stride 4 apart, around the estimate

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        inputs = 2 * in_channels + self.OFFSETS + 1
        self.layers = nn.Sequential(conv_bn(inputs, channels), conv_bn(channels, channels))
        self.residual = nn.Conv2d(channels, 1, 3, padding=1)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)  # type: ignore[arg-type]

    def forward(self, left: Tensor, right: Tensor, disparity: Tensor) -> Tensor:
        """Both maps at stride 4 (B, C, h, w), disparity (B, h, w) in pixels of the network's input -> (B, h, w)."""
        _, _, h, w = left.shape
        # Made where they are used: a copy of numbers to a GPU waits for it.
        offsets = (torch.arange(self.OFFSETS, device=left.device)[:, None, None] - 1) / 2
        column = torch.arange(w, device=left.device, dtype=torch.float32)
        x = column - disparity.detach()[:, None] / 4 - offsets  # (B, offsets, h, w)
        x = 2 * x.transpose(1, 2).flatten(2) / (w - 1) - 1
        y = torch.linspace(-1, 1, h, device=left.device)[:, None].expand_as(x)
        # In float32 whatever the features are: a grid in bfloat16 is off by up to half a cell.
        grid = torch.stack([x, y], -1)
        warped = F.grid_sample(right.float(), grid, padding_mode="border", align_corners=True).unflatten(3, (-1, w))
        difference = left.float()[:, :, :, None] - warped  # (B, C, h, offsets, w)
        cost = (difference**2).mean(1).transpose(1, 2)  # (B, offsets, h, w)
        less, same, more = cost.unbind(1)
        minimum = (less - more) / (less - 2 * same + more).clamp(min=1e-3)  # in quarters of a cell: input pixels
        inputs = torch.cat([left, difference[:, :, :, 1], cost, minimum.clamp(-4, 4)[:, None]], 1)
        return disparity + self.residual(self.layers(inputs))[:, 0].float()


class DetectionHead(nn.Module):
    """Classification with the direction of the heading, and box regression, for every anchor."""

    def __init__(self, in_channels: int, depth_channels: int, config: MvsfcConfig, anchors_per_cell: int) -> None:
        super().__init__()
        a = config.analysis
        self.outputs = len(config.classes) + 1
        classify, regress = a.head_channels
        kernel, pad = a.head_output_kernel, a.head_output_kernel // 2
        self.classification = nn.Sequential(
            nn.Conv2d(in_channels, classify, 3, padding=1),
            nn.Dropout2d(a.dropout),
            nn.ReLU(inplace=True),
            nn.Conv2d(classify, classify, 3, padding=1),
            nn.Dropout2d(a.dropout),
            nn.ReLU(inplace=True),
        )
        self.class_output = nn.Conv2d(classify, anchors_per_cell * self.outputs, kernel, padding=pad)
        self.regression = nn.Sequential(conv_bn(in_channels + depth_channels, regress), BasicBlock(regress, regress))
        self.box_output = nn.Conv2d(regress + depth_channels, anchors_per_cell * len(TARGETS), kernel, padding=pad)
        for output in (self.class_output, self.box_output):
            for parameter in output.parameters():
                nn.init.zeros_(parameter)
        # Few anchors hold an object; start from that.
        assert self.class_output.bias is not None
        with torch.no_grad():
            self.class_output.bias.view(anchors_per_cell, self.outputs)[:, :-1] = -math.log(99.0)

    def forward(self, x: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor]:
        """The fused map (B, C, h, w), and depth as in ``_depth`` (B, D, h, w) -> (B, N, K + 1), (B, N, 12)."""
        b = x.shape[0]
        classes = self.class_output(self.classification(x))
        boxes = self.regression(x if depth is None else torch.cat([x, depth], 1))
        # In float32: bfloat16 tells 30 m from 30.2 m and no finer.
        with _without_autocast(x.device):
            boxes = self.box_output(boxes.float() if depth is None else torch.cat([boxes.float(), depth], 1))
        return (
            classes.permute(0, 2, 3, 1).reshape(b, -1, self.outputs),
            boxes.permute(0, 2, 3, 1).reshape(b, -1, len(TARGETS)),
        )


class VisualAnalysis(nn.Module):
    """Cost volumes, fusion, disparity and detection heads: features of both views to raw outputs."""

    # What the regression branch is told about depth: metres over this, where the disparity estimate says so.
    DEPTH_SCALE, MAX_DEPTH = 20.0, 80.0

    def __init__(self, config: MvsfcConfig) -> None:
        super().__init__()
        a = config.analysis
        self.anchors = Anchors(config)
        self.calibration = a.score_calibration
        if self.calibration and len(self.calibration) != len(config.classes):
            raise ValueError(
                f"score_calibration: expected scale and offset of {len(config.classes)} classes, "
                f"got {len(self.calibration)}"
            )
        self.pyramid = VolumeFusion(config)
        self.size4 = -(-config.height // 4), -(-config.width // 4)
        # Not a child of its own: stored weights have its parts beside the pyramid's.
        self._matching: list[StereoMatching] = []
        if config.matching == "remote":
            matching = StereoMatching(config)
            for name, part in matching.named_children():
                self.pyramid.add_module(name, part)
            self._matching.append(matching)
        elif a.disparity_refinement:
            raise ValueError("disparity_refinement needs f0, which is not decoded with matching: vehicle")
        self.depth_feedback = a.depth_feedback
        self.cell = a.head_stride // 4
        self.disparity_head = DisparityHead(
            self.pyramid.fused_channels,
            a.fusion_channels[0] if a.depth_feedback and self._matching else 0,
            a.disparity_channels,
            a.disparity_bins,
        )
        self.refinement = (
            DisparityRefinement(config.channels[0], a.disparity_refinement)
            if a.disparity_refinement and a.depth_feedback
            else None
        )
        depth_channels = self.cell**2 if a.depth_feedback else 0
        self.head = DetectionHead(self.pyramid.out_channels, depth_channels, config, self.anchors.per_cell)

    def forward(self, features: DecodedFeatures, volumes: Tensor | None = None) -> AnalysisOutput:
        """Features at strides 4, 8, 16 -> raw outputs; ``decode`` makes boxes of them.

        ``volumes`` (B, C, H/8, W/8): what ``StereoMatching`` gives, where that is not done here; then f0 may be None.
        """
        stride4 = None
        if volumes is None:
            f0, f1, f2 = features
            assert f0 is not None
            (matching,) = self._matching
            volumes, stride4 = matching((f0, f1, f2))
        x, for_disparity = self.pyramid(volumes, features)
        disparity_logits = refined = depth = None
        if self.training or self.depth_feedback:
            disparity_logits = self.disparity_head(for_disparity, stride4, self.size4)
        if self.depth_feedback:
            assert disparity_logits is not None
            disparity = expected_disparity(disparity_logits)
            if self.refinement is not None:
                assert features[0] is not None
                disparity = refined = self.refinement(*features[0], disparity)
            depth = self._depth(disparity[:, None], x.shape[2:])
        classes, regression = self.head(x, depth)
        return AnalysisOutput(classes[..., :-1], classes[..., -1], regression, disparity_logits, refined)

    def _depth(self, disparity: Tensor, size: torch.Size) -> Tensor:
        """Disparity (B, 1, H/4, W/4) -> depth for the reference rig, a cell's values as channels (B, cell^2, h, w)."""
        reference = self.anchors.reference_focal_baseline.float()
        depth = reference / torch.maximum(disparity, reference / self.MAX_DEPTH) / self.DEPTH_SCALE
        rows, columns = size[0] * self.cell, size[1] * self.cell
        depth = F.pad(depth, (0, columns - depth.shape[3], 0, rows - depth.shape[2]), mode="replicate")
        return F.pixel_unshuffle(depth, self.cell)

    @torch.no_grad()
    def decode(
        self,
        output: AnalysisOutput,
        rigs: Tensor,
        score_threshold: float,
        nms_iou: float,
        transforms: Sequence[InputTransform],
    ) -> list[Detections]:
        """Boxes of each image: scores above the threshold, class-agnostic non-maximum suppression, none that cannot
        exist.

        ``rigs`` (B, 8) are those of the network's input, see ``anchors.rig_tensor``; ``transforms`` (B) say how camera
        images became it.
        """
        logits = output.class_logits.float()
        if self.calibration:
            scale, offset = torch.tensor(self.calibration, device=logits.device).unbind(1)
            logits = logits * scale + offset
        # A little below the threshold, so that rounding decides nothing here: most anchors go no further.
        odds = score_threshold / (1 - score_threshold) if score_threshold < 1 else math.inf
        likely = logits.amax(2) > (math.log(odds) - 0.01 if odds > 0 else -math.inf)
        found = []
        for b in range(len(rigs)):
            index = likely[b].nonzero()[:, 0]
            scores, classes = logits[b, index].sigmoid().max(1)
            chosen = ((scores > score_threshold) & self.anchors.near_road(rigs[b], index)).nonzero()[:, 0]
            if len(chosen) > MAX_CANDIDATES:
                chosen = chosen[scores[chosen].topk(MAX_CANDIDATES).indices]
            index, scores, classes = index[chosen], scores[chosen], classes[chosen]
            boxes = self.anchors.decode(
                output.regression[b, index], output.direction_logits[b, index] > 0, classes, index, rigs[b]
            )
            rows, score = boxes.double().cpu().numpy(), scores.cpu().numpy()
            label = classes.cpu().numpy()
            # First of all, so that what cannot be suppresses nothing that can.
            fx, fy = rigs[b, :2].tolist()
            sound = can_exist(rows, (fx, fy), transforms[b].visible)
            rows, score, label = rows[sound], score[sound], label[sound]
            keep = non_maximum_suppression(rows[:, :4], score, nms_iou)
            found.append(Detections(rows[keep], score[keep], label[keep], int((~sound).sum())))
        return found


def can_exist(boxes: np.ndarray, focal: tuple[float, float], visible: tuple[float, float, float, float]) -> np.ndarray:
    """Which boxes (M, 14), columns as ``Anchors.decode`` gives them, can be those of an object: (M,) bool.

    Noise, a covered lens, untrained or damaged weights give boxes kilometres away, behind the camera, or of no size. A
    box is accepted where all its values are finite, its depth and its sizes are within ``DEPTH_RANGE``,
    ``HEIGHT_RANGE``, ``WIDTH_RANGE`` and ``LENGTH_RANGE`` (metres), and the image shows it: its 2D box overlaps
    ``visible`` (left, top, right, bottom), and its projected centre is no further outside than a box of this size
    reaches at this depth. ``focal`` (fx, fy) and ``visible`` are in pixels of the network's input.
    """
    left, top, right, bottom, h, w, length, _, _, z, _, _, u, v = boxes.T
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        reach = np.sqrt(h**2 + w**2 + length**2) / z
        sound = np.isfinite(boxes).all(1)
        for value, (low, high) in ((z, DEPTH_RANGE), (h, HEIGHT_RANGE), (w, WIDTH_RANGE), (length, LENGTH_RANGE)):
            sound &= (value >= low) & (value <= high)
        for low, high, centre, f, start, end in (
            (left, right, u, focal[0], visible[0], visible[2]),
            (top, bottom, v, focal[1], visible[1], visible[3]),
        ):
            sound &= np.minimum(high, end) > np.maximum(low, start)
            sound &= (centre >= start - f * reach) & (centre <= end + f * reach)
    return sound


def non_maximum_suppression(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """Indices, int64, of the 2D boxes (M, 4), pixels, with scores (M,) that are kept, best first."""
    order = np.argsort(-scores, kind="stable")
    left, top, right, bottom = boxes[order].T
    area = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    alive = np.ones(len(order), bool)
    kept = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        w = np.minimum(right, right[i]) - np.maximum(left, left[i])
        h = np.minimum(bottom, bottom[i]) - np.maximum(top, top[i])
        overlap = np.maximum(w, 0) * np.maximum(h, 0)
        alive &= overlap <= iou * (area + area[i] - overlap)
    return order[np.array(kept, np.int64)]


def to_objects(detections: Detections, transform: InputTransform, classes: tuple[str, ...]) -> list[Object3D]:
    """Boxes of one image as objects: the 2D box in pixels of the camera image, clipped to it; the rest as it is."""
    objects = []
    limit = np.array([transform.source_width - 1, transform.source_height - 1])
    for row, score, index in zip(detections.boxes, detections.scores, detections.classes, strict=True):
        corners = np.clip(transform.to_source(row[:4].reshape(2, 2)), 0, limit)
        left, top, right, bottom = map(float, corners.reshape(-1))
        h, w, length, x, y, z, rotation_y, alpha = map(float, row[4:12])
        objects.append(
            Object3D(
                classes[index],
                (left, top, right, bottom),
                h,
                w,
                length,
                x,
                y,
                z,
                float(wrap_angle(rotation_y)),
                float(wrap_angle(alpha)),
                score=float(score),
            )
        )
    return objects
