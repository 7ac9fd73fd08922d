#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cars found on rendered frames that training never saw, by the uncompressed detector and through real packets.

Frames are rendered at 1242x375 for layouts of a KITTI label folder, or for random layouts, with a seed of their own:

    python benchmarks/recall.py --layouts KITTI --split KITTI/ImageSets/val.txt --count 200 --seed 2024 --rates 3

``KITTI/training`` holds ``label_2`` and ``calib``. Prints, for each way, the share of unoccluded cars within 30 m that
a detection overlaps on the ground (IoU 0.5), false cars a frame, mean packet bytes, and KITTI's AP (R40, moderate) of
every class.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.detector import StereoDetector
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.data.kitti import read_labels, read_object_calib, read_split
from sicm_ros.evaluation.kitti_ap import evaluate
from sicm_ros.evaluation.recall import count_found
from sicm_ros.geometry import Object3D
from sicm_ros.model_store import load_model
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import render_pair
from sicm_ros.training.validation import LOW_SCORE

UNCOMPRESSED = "uncompressed"
METRICS = ("2D", "BEV loose", "BEV", "3D loose", "3D")  # loose: IoU 0.5 for cars, 0.25 for the others


@dataclass(frozen=True)
class _Settings:
    model: str
    layouts: Path | None
    seed: int
    rates: tuple[float, ...]
    threads: int


@dataclass
class _Results:
    """Labels, detections by way, and packet sizes by way, of some frames in order."""

    labels: list[list[Object3D]]
    found: dict[str, list[list[Object3D]]]
    sizes: dict[str, list[int]]


_Frame = tuple[list[Object3D], dict[str, tuple[list[Object3D], int]]]
_coders: tuple[StereoDetector, StereoEncoder, StereoDecoder] | None = None  # of a worker process


def _frame(settings: _Settings, i: int, name: str) -> _Frame:
    """Labels of frame ``i``, and for each way its detections and packet size."""
    global _coders
    if _coders is None:
        torch.set_num_threads(settings.threads)
        model = load_model(settings.model)
        _coders = (
            StereoDetector(model, score_threshold=LOW_SCORE),
            StereoEncoder(model),
            StereoDecoder(model, score_threshold=LOW_SCORE),
        )
    detector, encoder, decoder = _coders
    rng = np.random.default_rng((settings.seed, i))
    rig, layout = KITTI_RIG, None
    if settings.layouts:
        layout = read_labels(settings.layouts / "training" / "label_2" / f"{name}.txt")
        rig = read_object_calib(settings.layouts / "training" / "calib" / f"{name}.txt")
    else:
        layout = random_layout(rng, rig, *KITTI_SIZE)
    pair = render_pair(layout, rig, *KITTI_SIZE, int(rng.integers(2**31)))
    ways = {UNCOMPRESSED: (detector.detect(pair.left, pair.right, rig), 0)}
    for rate in settings.rates:
        packet = encoder.encode(pair.left, pair.right, rig, rate=rate).packet
        ways[f"rate {rate:g}"] = (decoder.decode(packet).objects, len(packet))
    return pair.labels, ways


def run(settings: _Settings, ids: list[str], workers: int) -> _Results:
    """All frames, in ``workers`` processes; the result does not depend on their number."""
    results = _Results([], {}, {})
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        made: Iterator[_Frame] = map(partial(_frame, settings), range(len(ids)), ids)
        if workers > 1:
            # Spawned: a forked process would inherit PyTorch's threads in an unknown state.
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            made = stack.enter_context(pool).map(partial(_frame, settings), range(len(ids)), ids)
        for labels, ways in progress.track(made, len(ids), description="frames"):
            results.labels.append(labels)
            for way, (found, size) in ways.items():
                results.found.setdefault(way, []).append(found)
                results.sizes.setdefault(way, []).append(size)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--layouts", type=Path, help="KITTI root with training/label_2 and training/calib")
    parser.add_argument("--split", type=Path, help="file with frame ids, one a line")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--rates", type=float, nargs="*", help="default: the model's default rate")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the frames")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = load_model(options.model).config
    threshold = config.analysis.score_threshold
    rates = tuple(options.rates if options.rates is not None else [config.default_rate])
    settings = _Settings(options.model, options.layouts, options.seed, rates, options.threads)
    ids = read_split(options.split)[: options.count] if options.split else [f"{i:06d}" for i in range(options.count)]
    results = run(settings, ids, options.workers)
    table: dict[str, dict[str, Any]] = {}
    for way, found in results.found.items():
        near = count_found(results.labels, found, threshold=threshold)
        average = evaluate(results.labels, found, config.classes)["R40"]
        table[way] = {
            "found": near.found,
            "wanted": near.wanted,
            "recall": near.recall,
            "false_per_frame": near.false_per_frame,
            "bytes": float(np.mean(results.sizes[way])) if way != UNCOMPRESSED else None,
            **{f"{c} {m}": average[m][c][1] for c in config.classes for m in METRICS},
        }
    if options.json:
        print(json.dumps(table))
        return
    # Wide enough for the tables where the output goes to a file.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(
        f"{options.model}, {len(ids)} rendered frames, seed {options.seed}, threshold {threshold:g}", highlight=False
    )
    cars = Table("", "unoccluded cars within 30 m", "found", "recall", "false positives a frame", "bytes a packet")
    precision = Table("AP, R40, moderate", "", *METRICS)
    for way, row in table.items():
        size = f"{row['bytes']:.0f}" if row["bytes"] else ""
        recall, false = f"{100 * row['recall']:.1f} %", f"{row['false_per_frame']:.2f}"
        cars.add_row(way, str(row["wanted"]), str(row["found"]), recall, false, size)
        for c in config.classes:
            precision.add_row(way, c, *(f"{row[f'{c} {m}']:.1f}" for m in METRICS))
    console.print(cars)
    console.print(precision)


if __name__ == "__main__":
    main()
