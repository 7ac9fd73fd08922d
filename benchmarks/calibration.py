#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What scores are worth: the share of boxes of each score that are right, and the calibration of the model.

    python benchmarks/calibration.py --samples RUN/samples/val --samples RUN/samples/val-real-1

``sicm train`` keeps its validation samples in these folders, rendered and real ones apart. Boxes are of decoded
features at the model's default rate (``--rate none``: uncompressed). A box is right if it overlaps an object of its
class in bird's-eye view by the IoU that is printed, and none with a higher score has taken that object. The calibration
is fitted to all samples, each folder with the same weight in all. "error" is the mean difference of score and share
before, and "calibrated" after, where half of the folder's samples have fitted the calibration for the other half. The
last lines go into ``config.yaml``. The last table is of cars after the calibration.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sicm_ros.evaluation.calibration import calibration_error, fit_calibration, judge, reliability
from sicm_ros.evaluation.recall import count_found
from sicm_ros.geometry import Object3D
from sicm_ros.model_store import load_model
from sicm_ros.training.samples import SampleStore
from sicm_ros.training.validation import detect_store, source_labels

EDGES = (0.05, 0.2, 0.4, 0.6, 0.8, 1.0001)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
IOU = {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25}  # in bird's-eye view; KITTI's lenient ones

Boxes = list[list[Object3D]]


def _calibrated(scores: np.ndarray, scale: float, offset: float) -> np.ndarray:
    p = np.clip(scores, 1e-6, 1 - 1e-6)
    return 1 / (1 + np.exp(-(scale * np.log(p / (1 - p)) + offset)))


def _rescored(boxes: Boxes, calibration: dict[str, tuple[float, float]]) -> Boxes:
    def one(o: Object3D) -> Object3D:
        return replace(o, score=float(_calibrated(np.array([o.score or 0.0]), *calibration[o.label])[0]))

    return [[one(o) for o in frame] for frame in boxes]


def _fit(sources: list[tuple[Boxes, Boxes]], name: str) -> tuple[float, float]:
    scores, right, weights = [], [], []
    for labels, found in sources:
        s, r = judge(labels, found, name, IOU[name])
        scores.append(s)
        right.append(r)
        weights.append(np.full(len(s), 1 / max(len(s), 1)))
    return fit_calibration(np.concatenate(scores), np.concatenate(right), np.concatenate(weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--samples", type=Path, action="append", required=True)
    parser.add_argument("--rate", default="", help="of the packets; none: uncompressed (default: the model's)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, console = load_model(options.model), Console(width=120)
    rate = None if options.rate == "none" else float(options.rate or model.config.default_rate)
    model.net.analysis.calibration = ()  # as trained
    sources = []
    for folder in options.samples:
        store = SampleStore(folder)
        found, _ = detect_store(model.net, store, rate, torch.device("cpu"), score_threshold=EDGES[0])
        sources.append((source_labels(store, model.net), found))
    calibration = {name: _fit(sources, name) for name in model.classes}
    console.print(f"{options.model} ({model.fingerprint:016x}), rate {'none' if rate is None else f'{rate:g}'}")
    for name in model.classes:
        table = Table(f"{name}, right at IoU {IOU[name]}", "boxes", "mean score", "right", "error", "calibrated")
        for folder, (labels, found) in zip(options.samples, sources, strict=True):
            crossed_scores, crossed_right = [], []
            for i in range(2):
                scores, right = judge(labels[i::2], found[i::2], name, IOU[name])
                other = _fit([(labels[1 - i :: 2], found[1 - i :: 2])], name)
                crossed_scores.append(_calibrated(scores, *other))
                crossed_right.append(right)
            after = reliability(np.concatenate(crossed_scores), np.concatenate(crossed_right), EDGES)
            scores, right = judge(labels, found, name, IOU[name])
            rows = reliability(scores, right, EDGES)
            errors = [calibration_error(r) for r in (rows, after)]
            table.add_row(str(folder), str(len(scores)), "", "", *(f"{e:.3f}" for e in errors))
            for row in rows:
                shares = ("", "") if not row.boxes else (f"{row.mean_score:.2f}", f"{row.right:.2f}")
                table.add_row(f"  {row.low:g} to {min(row.high, 1):g}", str(row.boxes), *shares)
        console.print(table)
    table = Table("threshold, calibrated", *(f"{folder}: cars found, false a frame" for folder in options.samples))
    for threshold in THRESHOLDS:
        cells = []
        for labels, found in sources:
            counts = count_found(labels, _rescored(found, calibration), threshold=threshold)
            cells.append(f"{counts.recall:.2f}, {counts.false_per_frame:.2f}")
        table.add_row(f"{threshold:g}", *cells)
    console.print(table)
    pairs = ", ".join(f"[{scale:.3f}, {offset:.3f}]" for scale, offset in calibration.values())
    console.print(f"analysis:\n  score_calibration: [{pairs}]", markup=False)


if __name__ == "__main__":
    main()
