#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Small trainings of codecs of several shapes, side by side: bytes, feature error, AP, and time of each half.

Each variant is the given model with some fields of its configuration changed. Backbone and detector keep the model's
weights; the codec is trained from scratch on the feature error and the rate, the same number of steps with the same
samples, and evaluated at every rate on samples that no variant has seen:

    python benchmarks/architecture.py --samples RUN/samples --steps 800 \\
        --variant "" --variant "latent_channels=48 latent_stride=16" --variant "joint_channels=48,96"

``RUN/samples`` is what ``sicm train`` keeps in its output folder. AP is KITTI's for cars (R40, moderate); the first
line of the table is the uncompressed detector. Times are medians of one pair after the training, with the given
threads.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sicm_ros.evaluation.kitti_ap import evaluate
from sicm_ros.model_store import load_model
from sicm_ros.networks.config import MvsfcConfig
from sicm_ros.networks.mvsfc_net import MvsfcNet, count_complexity
from sicm_ros.training.augmentation import augment
from sicm_ros.training.losses import feature_error
from sicm_ros.training.samples import SampleStore
from sicm_ros.training.targets import collate
from sicm_ros.training.validation import detect_store, source_labels

METRICS = ("2D", "BEV loose", "3D loose")
FEATURE_WEIGHT = 3.0
PEAK_RATE, WARMUP, BATCH = 1e-3, 30, 4


def variant_config(base: MvsfcConfig, text: str) -> MvsfcConfig:
    """``base`` with fields such as ``latent_channels=48 joint_channels=48,96`` changed."""
    changes: dict[str, Any] = {}
    for item in text.split():
        name, _, value = item.partition("=")
        if not hasattr(base, name) or not value:
            raise SystemExit(f"--variant: expected fields of the configuration as name=value, got {item!r}")
        kind = type(getattr(base, name))
        parts = [json.loads(v) if v[0] in "-.0123456789" else v for v in value.split(",")]
        changes[name] = tuple(parts) if kind is tuple else parts[0]
    return replace(base, **changes)


def train_codec(net: MvsfcNet, store: SampleStore, steps: int, seed: int, say: Callable[[str], None]) -> None:
    """Feature error and rate over lambda, the backbone frozen."""
    codec = (net.smfc_encoder, net.entropy_model, net.smfc_decoder)
    parameters = [p for module in codec for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, PEAK_RATE)
    net.eval()
    for module in codec:
        module.train()
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    began, recent = time.monotonic(), []
    for step in range(steps):
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * cosine)
        rate = int(rng.integers(net.config.rates))
        chosen = rng.integers(len(store), size=BATCH)
        batch = collate([augment(store[int(i)], rng) for i in chosen], net.config.classes)
        with torch.no_grad():
            features = net.features(batch.left, batch.right)
        reconstruction, left, right = net.compress(features, float(rate))
        error = feature_error(reconstruction, features)
        bits = (left + right).mean() / (net.config.height * net.config.width)
        optimizer.zero_grad()
        (FEATURE_WEIGHT * error + bits / net.config.lambdas[rate]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        recent.append(float(error.detach()))
        if (step + 1) % 50 == 0:
            left_s = (time.monotonic() - began) / (step + 1) * (steps - step - 1)
            say(f"  step {step + 1}/{steps}, error {np.mean(recent[-50:]):.3f}, {left_s / 60:.1f} min left")
    net.eval()


@torch.no_grad()
def points(net: MvsfcNet, store: SampleStore, rates: list[float | None]) -> list[dict[str, Any]]:
    """Bytes, feature error and AP at each rate; None is without the codec."""
    labels, rows = source_labels(store, net), []
    probe = collate([store[i] for i in range(min(32, len(store)))], net.config.classes)
    features = net.features(probe.left, probe.right)
    for rate in rates:
        found, bits = detect_store(net, store, rate, torch.device("cpu"))
        table = evaluate(labels, found, net.config.classes)["R40"]
        error = 0.0 if rate is None else float(feature_error(net.compress(features, rate)[0], features))
        rows.append({"rate": rate, "bytes": bits / 8, "error": error, **{m: table[m]["Car"][1] for m in METRICS}})
    return rows


@torch.no_grad()
def half_times(net: MvsfcNet, repeats: int = 21) -> dict[str, float]:
    """Median milliseconds of one pair: both halves, and the entropy stage's share of their sum in percent."""
    view = torch.randn(1, 3, net.config.height, net.config.width)
    entropy, rate = net.entropy_model, net.config.default_rate
    coded = entropy(*net.latents(net.features(view, view)), rate)

    def once(function: Callable[[], Any]) -> float:
        began = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - began)

    runs = [
        (
            once(lambda: net.latents(net.features(view, view))),
            once(lambda: entropy(*net.latents(net.features(view, view)), rate)),
            once(lambda: net.detect(net.smfc_decoder(coded.left, coded.right))),
        )
        for _ in range(repeats)
    ]
    before, vehicle, remote = (median(column) for column in zip(*runs, strict=True))
    # Both sides evaluate the same prior; the range coder itself takes a few hundred microseconds.
    stage = max(vehicle - before, 0.0)
    return {"vehicle_ms": vehicle, "remote_ms": remote + stage, "entropy_%": 200 * stage / (vehicle + remote + stage)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--samples", type=Path, required=True, help="folder with train and val, as sicm train keeps it")
    parser.add_argument("--variant", action="append", help="changed fields, name=value; may be given several times")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--validation", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    trained = load_model(options.model).net
    weights = {k: v for k, v in trained.state_dict().items() if k.startswith(("backbone.", "analysis."))}
    train, val = SampleStore(options.samples / "train"), SampleStore(options.samples / "val")
    table = Table("variant", "M", "GMAC", "vehicle ms", "remote ms", "entropy %", "rate", "bytes", "error", *METRICS)
    results = []
    for number, text in enumerate(options.variant or [""]):
        config = variant_config(trained.config, text)
        torch.manual_seed(options.seed)
        net = MvsfcNet(config)
        net.load_state_dict(weights, strict=False)
        console.print(f"variant {number + 1}: {text or 'unchanged'}")
        train_codec(net, train, options.steps, options.seed, console.print)
        parameters, operations = count_complexity(config)["total"]
        times = half_times(net)
        rates: list[float | None] = [None] if number == 0 else []
        rows = points(net, val, rates + [float(r) for r in range(config.rates)])
        results.append({"variant": text, "parameters": parameters, "operations": operations, **times, "points": rows})
        for i, row in enumerate(rows):
            head = [text or "unchanged", f"{parameters / 1e6:.1f}", f"{operations / 1e9:.1f}"]
            head += [f"{v:.0f}" for v in times.values()]
            table.add_row(
                *(head if i == 0 else [""] * 6),
                "none" if row["rate"] is None else f"{row['rate']:g}",
                f"{row['bytes']:.0f}",
                f"{row['error']:.3f}",
                *(f"{row[m]:.1f}" for m in METRICS),
            )
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    console.print(table)


if __name__ == "__main__":
    main()
