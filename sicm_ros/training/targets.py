# SPDX-License-Identifier: Apache-2.0
"""Training targets: anchor priors from labels, which anchor stands for which object, what each cell counts.

All of it is made on the CPU, before a batch goes to the device: it takes loops over objects, and lengths that the data
decide, each of which would make a GPU wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..geometry import Object3D, StereoRig, project
from ..networks.anchors import RIG_FIELDS, Anchors, rig_tensor
from ..preprocessing import normalise
from .samples import Sample

__all__ = [
    "Assignment",
    "Batch",
    "Targets",
    "anchor_priors",
    "assign",
    "collate",
    "disparity_weights",
    "match",
    "object_row",
    "view_weights",
]

POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
IGNORED = -1  # class index of what is neither an object to find nor background
# Labelled apart from the class next to them, and too like it to count as background.
NEIGHBOURS = {"Van": "Car", "Person_sitting": "Pedestrian"}
MIN_HEIGHT = 5.0  # pixels of the network's input below which an object is ignored
MIN_MATCHES = 10  # anchors that an anchor shape must have matched for statistics of its own
# The surface of an object is what its 2D box shows within so many metres of its centre. However far away, it counts for
# so many cells of the disparity in all, each of them at most so much; road and walls would else outvote small ones.
OBJECT_DEPTH, OBJECT_CELLS, OBJECT_WEIGHT = 3.0, 200.0, 20.0


class Batch:
    """Samples of one network size: views, and labels as lists over images, rows as in ``object_row``."""

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        disparity: Tensor,
        rigs: Tensor,
        objects: list[Tensor],
        classes: list[Tensor],
    ) -> None:
        self.left = left  # (B, 3, H, W) normalised
        self.right = right
        self.disparity = disparity  # (B, H/4, W/4) float32, 0 where unknown
        self.rigs = rigs  # (B, 8)
        self.objects = objects  # (M, 11)
        self.classes = classes  # (M,) class index, or IGNORED


class Targets:
    """What the losses compare the network's output for a batch with: P anchors that stand for an object, N anchors of
    each of the B images, cells of stride 4.

    Not a dataclass nor a tuple: Fabric casts every float that it finds in one to the precision of the training, and
    bfloat16 moves boxes by a pixel and depths by decimetres.
    """

    def __init__(
        self,
        image: Tensor,
        anchor: Tensor,
        class_index: Tensor,
        weight: Tensor,
        regression: Tensor,
        sin_positive: Tensor,
        background: Tensor,
        disparity: Tensor,
        left_weight: Tensor,
        right_weight: Tensor,
    ) -> None:
        self.image = image  # (P,) of which image
        self.anchor = anchor  # (P,) its number there
        self.class_index = class_index  # (P,)
        self.weight = weight  # (P,) as in Assignment, times that of its class
        self.regression = regression  # (P, 12) as ``Anchors.encode`` gives it
        self.sin_positive = sin_positive  # (P,) float32, 1 where the sine of the observation angle is positive
        self.background = background  # (B, N) bool
        self.disparity = disparity  # (B, H/4, W/4) float32, pixels, 0 where unknown
        self.left_weight = left_weight  # (B, H/4, W/4) how much a cell of the left view counts
        self.right_weight = right_weight

    def map(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """The targets with ``change`` done to each tensor."""
        return Targets(**{name: change(value) for name, value in vars(self).items()})


@dataclass
class Assignment:
    """Anchors of one image: which are some object's, and which are background."""

    anchor_index: Tensor  # (P,) anchors that stand for an object
    object_index: Tensor  # (P,) of which one
    weight: Tensor  # (P,) 1 / sqrt(anchors of that object), so that near objects do not drown far ones
    background: Tensor  # (N,) bool


def object_row(o: Object3D, rig: StereoRig) -> list[float]:
    """2D box, projected centre, z, alpha, w, h, l: a row of ``Anchors.encode``'s ``objects``."""
    uv, _ = project(rig.p_left, np.array([o.x, o.y - o.height / 2, o.z]))
    return [*o.bbox, float(uv[0]), float(uv[1]), o.z, o.alpha, o.width, o.height, o.length]


def class_index(o: Object3D, classes: tuple[str, ...]) -> int | None:
    """The class to learn, IGNORED, or None for background. Hardly visible objects are ignored."""
    if o.label == "DontCare" or NEIGHBOURS.get(o.label) in classes:
        return IGNORED
    if o.label not in classes:
        return None
    hidden = o.occluded > 2 or o.truncated > 0.7 or o.bbox[3] - o.bbox[1] < MIN_HEIGHT or o.z < 1.0
    return IGNORED if hidden else classes.index(o.label)


def collate(samples: list[Sample], classes: tuple[str, ...], device: torch.device | str = "cpu") -> Batch:
    """Samples of one network size to a batch."""
    objects, indices = [], []
    for s in samples:
        chosen = [(o, i) for o in s.labels if (i := class_index(o, classes)) is not None]
        objects.append(
            torch.tensor(
                [object_row(o, s.rig) if o.label != "DontCare" else [*o.bbox, *[0.0] * 7] for o, _ in chosen],
                dtype=torch.float32,
            )
            .reshape(-1, 11)
            .to(device)
        )
        indices.append(torch.tensor([i for _, i in chosen], dtype=torch.long, device=device))

    def views(side: str) -> Tensor:
        return torch.from_numpy(np.stack([normalise(getattr(s, side)) for s in samples])).to(device)

    disparity = torch.from_numpy(np.stack([stride4_disparity(s.disparity) for s in samples])).to(device)
    return Batch(
        views("left"), views("right"), disparity, rig_tensor([s.rig for s in samples], device), objects, indices
    )


def stride4_disparity(disparity: np.ndarray) -> np.ndarray:
    """(h, w) -> (h/4, w/4): the middle of each 4x4 block, its nearest surface where an edge crosses it."""
    h, w = disparity.shape
    blocks = disparity[: h // 4 * 4, : w // 4 * 4].reshape(h // 4, 4, w // 4, 4)[:, 1:3, :, 1:3]
    low, high, mean = blocks.min((1, 3)), blocks.max((1, 3)), blocks.mean((1, 3))
    return np.where(high - low < 0.5, mean, high).astype(np.float32)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of 2D boxes (left, top, right, bottom): (N, 4), (M, 4) -> (N, M)."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(2)

    def area(x: Tensor) -> Tensor:
        return (x[:, 2:] - x[:, :2]).clamp(min=0).prod(1)

    return overlap / (area(a)[:, None] + area(b)[None] - overlap).clamp(min=1e-6)


def _corner_form(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def assign(anchors: Anchors, objects: Tensor, classes: Tensor, near_road: Tensor) -> Assignment:
    """Match the anchors (N) of one image with its objects (M, 11); ``near_road`` (N,) bool as the anchors say."""
    device = anchors.boxes.device
    empty = torch.zeros(0, dtype=torch.long, device=device)
    if len(objects) == 0:
        return Assignment(empty, empty, torch.zeros(0, device=device), near_road)
    iou = box_iou(_corner_form(anchors.boxes), objects[:, :4])
    wanted = classes >= 0
    background = near_road & (iou.amax(1) < NEGATIVE_IOU)
    # An ignored region covers small anchors inside it, of which the IoU says nothing.
    centre = anchors.boxes[:, None, :2]
    inside = ((centre > objects[None, :, :2]) & (centre < objects[None, :, 2:4])).all(2) & ~wanted[None]
    background &= ~inside.any(1)
    if not wanted.any():
        return Assignment(empty, empty, torch.zeros(0, device=device), background)
    iou = torch.where(wanted[None], iou, torch.zeros_like(iou))
    best, object_index = iou.max(1)
    positive = near_road & (best >= POSITIVE_IOU)
    forced = iou.argmax(0)[wanted]
    object_index[forced] = wanted.nonzero()[:, 0]
    positive[forced] = True
    anchor_index = positive.nonzero()[:, 0]
    object_index = object_index[anchor_index]
    counts = torch.bincount(object_index, minlength=len(objects)).clamp(min=1)
    background[anchor_index] = False
    return Assignment(anchor_index, object_index, counts[object_index].rsqrt(), background)


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


def match(batch: Batch, anchors: Anchors, class_weights: Sequence[float] | None = None) -> Targets:
    """The targets of a batch: its objects matched with ``anchors``, on the device of both.

    ``class_weights``: how much an object of each class counts, in the order of the model's classes; None: all the same.
    """
    parts = []
    background = []
    for i, (objects, classes, rig) in enumerate(zip(batch.objects, batch.classes, batch.rigs, strict=True)):
        a = assign(anchors, objects, classes, anchors.near_road(rig))
        o, k = objects[a.object_index], classes[a.object_index]
        regression = anchors.encode(o, k, a.anchor_index, rig)
        sin_positive = (torch.sin(o[:, 7]) > 0).float()
        parts.append((torch.full_like(a.anchor_index, i), a.anchor_index, k, a.weight, regression, sin_positive))
        background.append(a.background)
    image, anchor, class_index, weight, regression, sin_positive = map(torch.cat, zip(*parts, strict=True))
    if class_weights is not None:
        weight = weight * torch.tensor(class_weights, dtype=weight.dtype, device=weight.device)[class_index]
    left_weight, right_weight = view_weights(batch)
    return Targets(
        image,
        anchor,
        class_index,
        weight,
        regression,
        sin_positive,
        torch.stack(background),
        batch.disparity,
        left_weight,
        right_weight,
    )


def anchor_priors(
    anchors: Anchors, classes: tuple[str, ...], labels: Iterable[tuple[list[Object3D], StereoRig]]
) -> None:
    """Fill the anchors' priors from training labels with 2D boxes in network pixels.

    Each anchor shape that overlaps an object (IoU above 0.5, wherever in the image it fits best) adds the object's
    depth, angle and size. Where a shape met fewer than MIN_MATCHES objects, depth follows from the class's mean height.
    """
    shapes = anchors.boxes[: anchors.per_cell, 2:].double().numpy()  # (A, 2) width, height
    rows: list[list[list[np.ndarray]]] = [[[] for _ in shapes] for _ in classes]
    sizes: list[list[list[float]]] = [[] for _ in classes]
    focal_baselines, focal = [], []
    for objects, rig in labels:
        focal_baselines.append(rig.focal_baseline)
        focal.append(rig.fy)
        for o in objects:
            index = class_index(o, classes)
            if index is None or index < 0 or o.occluded > 1 or o.z < 3:
                continue
            sizes[index].append([o.width, o.height, o.length])
            w, h = o.bbox[2] - o.bbox[0], o.bbox[3] - o.bbox[1]
            overlap = np.minimum(shapes[:, 0], w) * np.minimum(shapes[:, 1], h)
            iou = overlap / (shapes.prod(1) + w * h - overlap)
            value = np.array([o.z / rig.focal_baseline, np.sin(2 * o.alpha), np.cos(2 * o.alpha)])
            for a in np.nonzero(iou > 0.5)[0]:
                rows[index][a].append(value)
    reference = float(np.mean(focal_baselines))
    anchors.reference_focal_baseline.fill_(reference)
    for k, name in enumerate(classes):
        if len(sizes[k]) < 2:
            raise ValueError(
                f"anchor priors: class {name}: expected at least 2 labelled objects to learn from, got {len(sizes[k])}"
            )
        size_mean, size_std = np.mean(sizes[k], 0), np.maximum(np.std(sizes[k], 0), 0.05)
        for a, shape in enumerate(shapes):
            values = np.array(rows[k][a]).reshape(-1, 3)
            if len(values) >= MIN_MATCHES:
                mean, std = values.mean(0), np.maximum(values.std(0), [0.05 * values[:, 0].mean(), 0.1, 0.1])
                mean[0], std[0] = mean[0] * reference, std[0] * reference
            else:
                z = np.mean(focal) * size_mean[1] / shape[1]
                mean, std = np.array([z, 0.0, 0.0]), np.array([0.25 * z, 0.7, 0.7])
            anchors.prior_mean[k, a] = torch.tensor(np.concatenate([mean, size_mean]))
            anchors.prior_std[k, a] = torch.tensor(np.concatenate([std, size_std]))
