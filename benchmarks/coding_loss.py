#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Where the detector loses what it loses through packets: in which scale's features, and by transform or rounding.

Detects on the validation samples that ``sicm train`` keeps, with the features uncompressed, with one scale of them (or
the volumes that the vehicle has matched) coded and the rest not, with all coded, and with all through the codec's
transform but not rounded:

    python benchmarks/coding_loss.py --samples RUN/samples/val --rates 3 5

``error`` is the squared error of f0, f1 and f2 over their variance, mean of the channels and views. AP is KITTI's (R40,
moderate).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sicm_ros.evaluation.kitti_ap import LOW_SCORE, evaluate
from sicm_ros.geometry import Object3D
from sicm_ros.model_store import load_model
from sicm_ros.networks.detection import to_objects
from sicm_ros.networks.mvsfc_net import MvsfcNet
from sicm_ros.networks.smfc import Reconstruction
from sicm_ros.training.losses import scale_errors
from sicm_ros.training.samples import SampleStore
from sicm_ros.training.targets import collate
from sicm_ros.training.validation import source_labels, source_transform

METRICS = (
    ("Car", "2D"),
    ("Car", "BEV loose"),
    ("Car", "BEV"),
    ("Car", "3D"),
    ("Pedestrian", "2D"),
    ("Pedestrian", "3D"),
)
BATCH = 8
# Name, rate, what is coded (the scales, and VOLUMES), whether it is rounded.
Way = tuple[str, float | None, tuple[int, ...], bool]
VOLUMES = 3


def ways(rates: list[float], matched: bool) -> list[Way]:
    """The rows of the table; ``matched``: the vehicle matches the views, and what is made of f0 is coded for it."""
    everything = (1, 2, VOLUMES) if matched else (0, 1, 2)
    rows: list[Way] = [("uncompressed", None, (), False)]
    for rate in rates:
        names = ("f0", "f1", "f2", "volumes")
        rows += [(f"rate {rate:g}, {names[i]} alone", rate, (i,), True) for i in everything]
        rows += [(f"rate {rate:g}", rate, everything, True), (f"rate {rate:g}, not rounded", rate, everything, False)]
    return rows


@torch.no_grad()
def measure(net: MvsfcNet, store: SampleStore, rows: list[Way]) -> tuple[list[list[list[Object3D]]], Tensor]:
    """Detections and errors of each row; all see the same features."""
    found: list[list[list[Object3D]]] = [[] for _ in rows]
    errors = torch.zeros(len(rows), 3)
    transform = source_transform(net)
    for start in range(0, len(store), BATCH):
        samples = [store[i] for i in range(start, min(start + BATCH, len(store)))]
        batch = collate(samples, net.config.classes, torch.device("cpu"))
        features = net.features(batch.left, batch.right)
        volumes = net.match(features)
        coded: dict[tuple[float | None, bool], Reconstruction] = {(None, False): Reconstruction(features, volumes)}
        latents = net.latents(features, volumes)
        for index, (_, rate, scales, rounded) in enumerate(rows):
            if (rate, rounded) not in coded:
                assert rate is not None
                if rounded:
                    out = net.entropy_model(*latents, rate)
                    y = (out.left, out.right)
                else:
                    y = net.entropy_model.inverse_gain(*net.entropy_model.gain(*latents, rate), rate)
                coded[rate, rounded] = net.reconstruct(*y)
            whole = coded[rate, rounded]
            mixed = Reconstruction(
                (
                    whole.features[0] if 0 in scales else features[0],
                    whole.features[1] if 1 in scales else features[1],
                    whole.features[2] if 2 in scales else features[2],
                ),
                whole.volumes if VOLUMES in scales else volumes,
            )
            share = len(samples) / len(store)
            errors[index] += share * scale_errors(mixed.features, features)
            output, iou = net.detect_decoded(mixed), net.config.analysis.nms_iou
            boxes = net.analysis.decode(output, batch.rigs, LOW_SCORE, iou, [transform] * len(samples))
            found[index] += [to_objects(b, transform, net.config.classes) for b in boxes]
    return found, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument(
        "--samples", type=Path, required=True, help="folder as sicm train keeps it, of the model's size"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[3.0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    store = SampleStore(options.samples)
    labels, rows = source_labels(store, model.net), ways(options.rates, model.config.matching == "vehicle")
    found, errors = measure(model.net, store, rows)
    table = Table("features", "error of f0, f1, f2", *(f"{name} {metric}" for name, metric in METRICS))
    for (name, *_), boxes, error in zip(rows, found, errors.tolist(), strict=True):
        ap = evaluate(labels, boxes, model.net.config.classes)["R40"]
        table.add_row(name, " ".join(f"{e:.3f}" for e in error), *(f"{ap[metric][c][1]:.1f}" for c, metric in METRICS))
    Console().print(f"{options.model} ({model.fingerprint:016x}), {len(store)} samples")
    Console().print(table)


if __name__ == "__main__":
    main()
