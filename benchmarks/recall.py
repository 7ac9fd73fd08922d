#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Recall of cars outside the training data, with uncompressed features and through packets.

Frames are rendered at 1242x375 for layouts of a KITTI label folder, or for random layouts, with a seed of their own; or
they are those of folders with images:

    python benchmarks/recall.py --layouts KITTI --split KITTI/ImageSets/val.txt --count 200 --seed 2024 --rates 3
    python benchmarks/recall.py --images ROOT --images OTHER_ROOT

``KITTI/training`` holds ``label_2`` and ``calib``, ``ROOT/training`` also images. Prints for each of them the recall of
unoccluded cars within 30 m (a detection overlaps the ground truth in bird's-eye view with IoU 0.5 or more), the false
positives per frame, how many of them packets have invented (no label and no uncompressed detection overlaps them in the
image), the median error of depth by range, the mean packet size in bytes, and KITTI's AP (R40, moderate) of each class.
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
from sicm_ros.data.kitti import KittiObject, read_split
from sicm_ros.data.source import StereoFrame
from sicm_ros.evaluation.frames import LabelledFrames
from sicm_ros.evaluation.kitti_ap import LOW_SCORE, evaluate
from sicm_ros.evaluation.recall import count_found, count_invented, depth_errors
from sicm_ros.geometry import Object3D, StereoRig
from sicm_ros.inference import ENGINES, Engine
from sicm_ros.model_store import load_model
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import RenderedPair, render_pair

UNCOMPRESSED = "uncompressed"
METRICS = ("2D", "BEV loose", "BEV", "3D loose", "3D")  # loose: IoU 0.5 for cars, 0.25 for the others


@dataclass(frozen=True)
class _Settings:
    model: str
    layouts: LabelledFrames | None
    images: tuple[Path, ...]
    seed: int
    rates: tuple[float, ...]
    threads: int
    engine: Engine


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
            StereoEncoder(model, engine=settings.engine),
            StereoDecoder(model, score_threshold=LOW_SCORE, engine=settings.engine),
        )
    if settings.images:
        root, _, name = name.rpartition("/")
        frame: StereoFrame | RenderedPair = KittiObject(root, ids=[name])[0]
        return frame.labels or [], _ways(settings.rates, _coders, frame.left, frame.right, frame.rig)
    if settings.layouts is not None:
        frame = settings.layouts.frame(name)
    else:
        rng = np.random.default_rng((settings.seed, i))
        layout = random_layout(rng, KITTI_RIG, *KITTI_SIZE)
        frame = render_pair(layout, KITTI_RIG, *KITTI_SIZE, int(rng.integers(2**31)))
    return frame.labels or [], _ways(settings.rates, _coders, frame.left, frame.right, frame.rig)


def _ways(
    rates: tuple[float, ...],
    coders: tuple[StereoDetector, StereoEncoder, StereoDecoder],
    left: np.ndarray,
    right: np.ndarray,
    rig: StereoRig,
) -> dict[str, tuple[list[Object3D], int]]:
    """For each way the detections in a pair (H, W, 3), and the bytes of its packet."""
    detector, encoder, decoder = coders
    ways = {UNCOMPRESSED: (detector.detect(left, right, rig), 0)}
    for rate in rates:
        packet = encoder.encode(left, right, rig, rate=rate).packet
        ways[f"rate {rate:g}"] = (decoder.decode(packet).objects, len(packet))
    return ways


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
    parser.add_argument("--images", type=Path, action="append", default=[], help="root with training/image_2 and so on")
    parser.add_argument("--split", type=Path, help="file with frame ids, one a line")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--rates", type=float, nargs="*", help="default: the model's default rate")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the frames")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--engine", choices=ENGINES, default="torch", help="of both halves; none for uncompressed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = load_model(options.model).config
    threshold = config.analysis.score_threshold
    rates = tuple(options.rates if options.rates is not None else [config.default_rate])
    if options.images:
        ids = [f"{root}/{name}" for root in options.images for name in KittiObject(root).ids]
    elif options.split:
        ids = read_split(options.split)[: options.count]
    else:
        ids = [f"{i:06d}" for i in range(options.count)]
    layouts = None if options.layouts is None else LabelledFrames(options.layouts, tuple(ids), options.seed, True)
    settings = _Settings(
        options.model, layouts, tuple(options.images), options.seed, rates, options.threads, options.engine
    )
    results = run(settings, ids, options.workers)
    table: dict[str, dict[str, Any]] = {}
    for way, found in results.found.items():
        near = count_found(results.labels, found, threshold=threshold)
        invented = count_invented(results.labels, found, results.found[UNCOMPRESSED], threshold=threshold)
        depth = depth_errors(results.labels, found, threshold=threshold)
        average = evaluate(results.labels, found, config.classes)["R40"]
        table[way] = {
            "found": near.found,
            "wanted": near.wanted,
            "recall": near.recall,
            "false_per_frame": near.false_per_frame,
            "invented_per_frame": invented / len(ids),
            "depth": {f"{low}-{high} m": float(np.median(e)) for (low, high), e in depth.items() if e},
            "bytes": float(np.mean(results.sizes[way])) if way != UNCOMPRESSED else None,
            **{f"{c} {m}": average[m][c][1] for c in config.classes for m in METRICS},
        }
    if options.json:
        print(json.dumps(table))
        return
    # Wide enough for the tables where the output goes to a file.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(
        f"{options.model}, {len(ids)} {'' if options.images else 'rendered '}frames, "
        f"{'' if options.images else f'seed {options.seed}, '}threshold {threshold:g}",
        highlight=False,
    )
    counts = Table(
        "", "cars within 30 m", "found", "recall", "false a frame", "invented", "bytes", "median error of depth"
    )
    precision = Table("AP, R40, moderate", "", *METRICS)
    for way, row in table.items():
        size = f"{row['bytes']:.0f}" if row["bytes"] else ""
        recall, false = f"{100 * row['recall']:.1f} %", f"{row['false_per_frame']:.2f}"
        new = f"{row['invented_per_frame']:.2f}"
        errors = ", ".join(f"{reach}: {error:+.2f}" for reach, error in row["depth"].items())
        counts.add_row(way, str(row["wanted"]), str(row["found"]), recall, false, new, size, errors)
        for c in config.classes:
            precision.add_row(way, c, *(f"{row[f'{c} {m}']:.1f}" for m in METRICS))
    console.print(counts)
    console.print(precision)


if __name__ == "__main__":
    main()
