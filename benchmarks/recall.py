#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cars found on rendered frames that training never saw, by the uncompressed detector and through real packets.

Frames are rendered at 1242x375 for layouts of a KITTI label folder, or for random layouts, with a seed of their own:

    python benchmarks/recall.py --layouts KITTI --split KITTI/ImageSets/val.txt --count 200 --seed 2024 --rates 3

``KITTI/training`` holds ``label_2`` and ``calib``. Prints, for each way, the share of unoccluded cars within 30 m that
a detection overlaps on the ground (IoU 0.5), false cars a frame, mean packet bytes, and KITTI's AP (R40, moderate).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.detector import StereoDetector
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.data.kitti import read_labels, read_object_calib, read_split
from sicm_ros.data.rendered import KITTI_RIG, KITTI_SIZE, random_layout, render_pair
from sicm_ros.evaluation.kitti_ap import evaluate
from sicm_ros.evaluation.recall import count_found
from sicm_ros.geometry import Object3D
from sicm_ros.model_store import load_model

LOW_SCORE = 0.05  # precision over all recalls needs weak detections too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--layouts", type=Path, help="KITTI root with training/label_2 and training/calib")
    parser.add_argument("--split", type=Path, help="file with frame ids, one a line")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--rates", type=float, nargs="*", help="default: the model's default rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    threshold = model.config.analysis.score_threshold
    rates = options.rates or [model.config.default_rate]
    detector = StereoDetector(model, score_threshold=LOW_SCORE)
    encoder, decoder = StereoEncoder(model), StereoDecoder(model, score_threshold=LOW_SCORE)
    ids = read_split(options.split)[: options.count] if options.split else [f"{i:06d}" for i in range(options.count)]
    labels: list[list[Object3D]] = []
    found: dict[str, list[list[Object3D]]] = {"uncompressed": [], **{f"rate {r:g}": [] for r in rates}}
    sizes: dict[str, list[int]] = {name: [] for name in found}
    for i, name in enumerate(ids):
        rng = np.random.default_rng((options.seed, i))
        rig, layout = KITTI_RIG, None
        if options.layouts:
            layout = read_labels(options.layouts / "training" / "label_2" / f"{name}.txt")
            rig = read_object_calib(options.layouts / "training" / "calib" / f"{name}.txt")
        else:
            layout = random_layout(rng, rig, *KITTI_SIZE)
        pair = render_pair(layout, rig, *KITTI_SIZE, int(rng.integers(2**31)))
        labels.append(pair.labels)
        found["uncompressed"].append(detector.detect(pair.left, pair.right, rig))
        for r in rates:
            coded = encoder.encode(pair.left, pair.right, rig, rate=r)
            sizes[f"rate {r:g}"].append(len(coded.packet))
            found[f"rate {r:g}"].append(decoder.decode(coded.packet).objects)
    table: dict[str, dict[str, Any]] = {}
    for way, results in found.items():
        near = count_found(labels, results, threshold=threshold)
        average = evaluate(labels, results, model.config.classes)["R40"]
        table[way] = {
            "found": near.found,
            "wanted": near.wanted,
            "recall": near.recall,
            "false_per_frame": near.false_per_frame,
            "bytes": float(np.mean(sizes[way])) if sizes[way] else None,
            **{f"{c} {m}": average[m][c][1] for c in model.config.classes for m in ("2D", "BEV loose", "BEV", "3D")},
        }
    if options.json:
        print(json.dumps(table))
        return
    print(f"{options.model}, {len(ids)} rendered frames, seed {options.seed}, threshold {threshold:g}")
    for way, row in table.items():
        size = f", {row['bytes']:.0f} bytes a packet" if row["bytes"] else ""
        print(
            f"{way}: found {row['found']} of {row['wanted']} unoccluded cars within 30 m "
            f"({100 * row['recall']:.1f} %), "
            f"{row['false_per_frame']:.2f} false cars a frame{size}; Car R40 moderate: "
            + ", ".join(f"{m} {row[f'Car {m}']:.1f}" for m in ("2D", "BEV loose", "BEV", "3D"))
        )


if __name__ == "__main__":
    main()
