# SPDX-License-Identifier: Apache-2.0
"""Boxes of a network in training on held-out samples, scored by KITTI's rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..evaluation.kitti_ap import LOW_SCORE, evaluate
from ..evaluation.recall import count_found, depth_errors
from ..geometry import InputTransform, Object3D
from ..networks.detection import AnalysisOutput, to_objects
from ..networks.mvsfc_net import MvsfcNet
from ..render.layouts import KITTI_SIZE
from .samples import SampleStore
from .targets import collate

__all__ = ["Coding", "detect_store", "source_labels", "source_transform", "validate"]

# Normalised views (B, 3, H, W) to what the detector makes of them after coding, and the bits of each pair (B,).
Coding: TypeAlias = Callable[[Tensor, Tensor], tuple[AnalysisOutput, Tensor]]


def source_transform(net: MvsfcNet) -> InputTransform:
    """Every stored sample counts as one of a KITTI image, in whose pixels the benchmark's size limits are."""
    return InputTransform(*KITTI_SIZE, net.config.crop_top, net.config.width, net.config.height)


def source_labels(store: SampleStore, net: MvsfcNet) -> list[list[Object3D]]:
    """The labels of a store with their 2D boxes in pixels of the KITTI image."""
    transform = source_transform(net)

    def moved(o: Object3D) -> Object3D:
        left, top, right, bottom = map(float, transform.to_source(np.array(o.bbox).reshape(2, 2)).reshape(-1))
        return replace(o, bbox=(left, top, right, bottom))

    return [[moved(o) for o in store.labels(i)] for i in range(len(store))]


@torch.no_grad()
def detect_store(
    net: MvsfcNet,
    store: SampleStore,
    rate: float | None,
    device: torch.device,
    batch_size: int = 8,
    score_threshold: float = LOW_SCORE,
    coding: Coding | None = None,
) -> tuple[list[list[Object3D]], float]:
    """Detections of every sample, uncompressed (``rate`` None) or through the codec, and the mean bits of a pair.

    ``coding``: another codec than the network's own, at a rate of its own.
    """
    was_training = net.training
    net.eval()
    found: list[list[Object3D]] = []
    bits = 0.0
    for start in range(0, len(store), batch_size):
        samples = [store[i] for i in range(start, min(start + batch_size, len(store)))]
        batch = collate(samples, net.config.classes, device)
        if coding is not None:
            output, pair_bits = coding(batch.left, batch.right)
            bits += float(pair_bits.sum())
        elif rate is None:
            output = net.detect(net.features(batch.left, batch.right))
        else:
            reconstruction, bits_left, bits_right = net.compress(net.features(batch.left, batch.right), rate)
            output = net.detect_decoded(reconstruction)
            bits += float((bits_left + bits_right).sum())
        transforms = [source_transform(net)] * len(samples)
        boxes = net.analysis.decode(output, batch.rigs, score_threshold, net.config.analysis.nms_iou, transforms)
        found += [to_objects(b, t, net.config.classes) for b, t in zip(boxes, transforms, strict=True)]
    net.train(was_training)
    return found, bits / max(len(store), 1)


def validate(
    net: MvsfcNet, store: SampleStore, rate: float | None, device: torch.device, coding: Coding | None = None
) -> dict[str, float]:
    """AP (R40, moderate) of each class that is labelled; of cars at the model's threshold recall ("found"), false
    positives per frame ("false"), and the median error of depth by range in metres; bytes of a pair (no headers)."""
    labels = source_labels(store, net)
    results, bits = detect_store(net, store, rate, device, coding=coding)
    table = evaluate(labels, results, net.config.classes)["R40"]
    near = count_found(labels, results, threshold=net.config.analysis.score_threshold)
    figures = {
        f"{name} {metric}": table[metric][name][1]
        for name in net.config.classes
        for metric in ("2D", "BEV loose", "3D loose", "BEV", "3D")
        if not math.isnan(table[metric][name][1])
    }
    errors = depth_errors(labels, results, threshold=net.config.analysis.score_threshold)
    biases = {f"depth {low}-{high} m": float(np.median(e)) for (low, high), e in errors.items() if e}
    return {**figures, "found": near.recall, "false": near.false_per_frame, **biases, "bytes": bits / 8}
