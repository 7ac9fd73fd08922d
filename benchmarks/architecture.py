#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Small trainings of several shapes of a model, side by side: AP, bytes, and time of each half.

Each variant is the given model with some fields of its configuration changed, and starts from the model's weights
wherever they fit. With ``--train codec`` backbone and detector keep them; the codec is trained, a third of the steps on
feature error and rate, the others on the task's loss and the rate, and evaluated at every rate; with ``--fresh`` it
starts from scratch. With ``--train detector`` backbone and detector are trained on the task's loss, and evaluated
without the codec. Every variant gets the same steps, samples in the same order, and samples for evaluation that none
has seen:

    python benchmarks/architecture.py --train codec --samples RUN/samples --steps 450 --rates 1 3 \\
        --variant "" --variant "matching=vehicle analysis.disparity_refinement=0"
    python benchmarks/architecture.py --train codec --fresh --samples RUN/samples --steps 800 \\
        --variant "" --variant "latent_channels=48 latent_stride=16" --variant "joint_channels=48,96"
    python benchmarks/architecture.py --train detector --samples RUN/samples --samples OTHER/samples --steps 600 \\
        --variant "" --variant "height=128 width=896 analysis.disparity_refinement=32"

``RUN/samples`` is what ``sicm train`` keeps in its output folder; a variant takes those of its own input size. AP is
KITTI's (R40, moderate); the first line of the codec's table is the uncompressed detector. Times are medians of one pair
after the training, with the given threads.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sicm_ros.evaluation.kitti_ap import evaluate
from sicm_ros.model_store import load_model
from sicm_ros.networks.complexity import count_complexity
from sicm_ros.networks.config import MvsfcConfig
from sicm_ros.networks.mvsfc_net import MvsfcNet
from sicm_ros.processor import bfloat16_is_native
from sicm_ros.training.augmentation import augment
from sicm_ros.training.initial_weights import adopt
from sicm_ros.training.losses import feature_error, rate_distortion_loss, task_loss, volume_error
from sicm_ros.training.samples import SampleStore
from sicm_ros.training.targets import Batch, Targets, anchor_priors, collate, match
from sicm_ros.training.validation import detect_store, source_labels

METRICS = (("Car", "2D"), ("Car", "BEV loose"), ("Car", "BEV"), ("Car", "3D"), ("Pedestrian", "3D"))
FEATURE_WEIGHT = 3.0
VOLUME_WEIGHT = 0.5  # of the coded volumes' error beside the task's loss
PEAK_RATE = {"codec": 6e-4, "detector": 4e-4}
WARMUP, BATCH = 30, 4


def _changed(config: Any, changes: Mapping[str, str]) -> Any:
    """A dataclass with the named fields parsed as JSON or words; ``a.b`` is field b of field a."""
    values: dict[str, Any] = {}
    nested: dict[str, dict[str, str]] = {}
    for name, text in changes.items():
        name, _, rest = name.partition(".")
        if not hasattr(config, name) or not text:
            raise SystemExit(f"--variant: expected fields of the configuration as name=value, got {name}={text}")
        if rest:
            nested.setdefault(name, {})[rest] = text
            continue
        parts = [v if v.isalpha() and v not in ("true", "false", "null") else json.loads(v) for v in text.split(",")]
        values[name] = tuple(parts) if isinstance(getattr(config, name), tuple) else parts[0]
    values |= {name: _changed(getattr(config, name), inner) for name, inner in nested.items()}
    return replace(config, **values)


def variant_config(base: MvsfcConfig, text: str) -> MvsfcConfig:
    """``base`` with fields changed, such as ``latent_channels=48 joint_channels=48,96 analysis.head_stride=16``."""
    items = [item.partition("=") for item in text.split()]
    return _changed(base, {name: value for name, _, value in items})


def train(
    net: MvsfcNet,
    part: Literal["codec", "detector"],
    store: SampleStore,
    steps: int,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Codec: feature error, then the task's loss, and rate over lambda, all else frozen. Detector: the task's loss."""
    codec = [net.smfc_encoder, net.entropy_model, net.smfc_decoder]
    modules = codec if part == "codec" else [net.backbone, net.analysis]
    net.requires_grad_(False)
    parameters = [p.requires_grad_() for module in modules for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, PEAK_RATE[part])
    net.eval()
    for module in modules:
        module.train()
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    began, recent = time.monotonic(), []
    for step in range(steps):
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE[part] * min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * cosine)
        rate = int(rng.integers(net.config.rate_count))
        chosen = rng.integers(len(store), size=BATCH)
        batch = collate([augment(store[int(i)], rng) for i in chosen], net.config.classes)
        targets = match(batch, net.analysis.anchors)
        if part == "codec":
            with autocast():
                loss, error = codec_loss(net, batch, targets, rate, step < steps // 3)
        else:
            with autocast():
                loss = error = task_loss(net.detect(net.features(batch.left, batch.right)), targets).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        recent.append(float(error.detach()))
        if (step + 1) % 50 == 0:
            left_s = (time.monotonic() - began) / (step + 1) * (steps - step - 1)
            say(f"  step {step + 1}/{steps}, loss {np.mean(recent[-50:]):.3f}, {left_s / 60:.1f} min left")
    net.eval()


def autocast() -> torch.autocast:
    """bfloat16 where the processor computes in it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_native())


def codec_loss(net: MvsfcNet, batch: Batch, targets: Targets, rate: int, features_only: bool) -> tuple[Tensor, Tensor]:
    """Rate and error over lambda, and the error itself: that of the features and volumes, or the task's loss."""
    with torch.no_grad():
        features = net.features(batch.left, batch.right)
        volumes = net.match(features)
    reconstruction, left, right = net.compress(features, float(rate), volumes)
    weights = targets.left_weight, targets.right_weight
    if features_only:
        error = FEATURE_WEIGHT * feature_error(reconstruction.features, features, weights)
    else:
        error = task_loss(net.detect_decoded(reconstruction), targets).total
    if volumes is not None and reconstruction.volumes is not None:
        weight = FEATURE_WEIGHT if features_only else VOLUME_WEIGHT
        error = error + weight * volume_error(reconstruction.volumes, volumes, weights[0])
    bits = (left + right).mean() / (net.config.height * net.config.width)
    return rate_distortion_loss(bits, error, net.config.lambdas[rate]), error


@torch.no_grad()
def points(net: MvsfcNet, store: SampleStore, rates: list[float | None]) -> list[dict[str, Any]]:
    """Bytes, feature error and AP at each rate; None is without the codec."""
    labels, rows = source_labels(store, net), []
    probe = collate([store[i] for i in range(min(32, len(store)))], net.config.classes)
    features = net.features(probe.left, probe.right)
    for rate in rates:
        found, bits = detect_store(net, store, rate, torch.device("cpu"))
        table = evaluate(labels, found, net.config.classes)["R40"]
        error = 0.0 if rate is None else float(feature_error(net.compress(features, rate)[0].features, features))
        average = {f"{c} {m}": table[m][c][1] for c, m in METRICS}
        rows.append({"rate": rate, "bytes": bits / 8, "error": error, **average})
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
            once(lambda: net.detect_decoded(net.reconstruct(coded.left, coded.right, with_f0=False))),
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
    parser.add_argument("--train", choices=("codec", "detector"), default="codec")
    parser.add_argument(
        "--samples", type=Path, action="append", required=True, help="folder with train and val, as sicm train keeps it"
    )
    parser.add_argument("--variant", action="append", help="changed fields, name=value; may be given several times")
    parser.add_argument("--fresh", action="store_true", help="train the codec from scratch")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rates", type=float, nargs="*", help="of the codec's table (default: all; no number: none)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    trained = load_model(options.model).net
    stores = [(SampleStore(folder / "train"), SampleStore(folder / "val")) for folder in options.samples]
    # Found by the size of the network's input.
    by_size = {(train.index["height"], train.index["width"]): (train, val) for train, val in stores}
    table = Table("variant", "M", "GMAC", "vehicle ms", "remote ms", "entropy %", "rate", "bytes", "error")
    for name, metric in METRICS:
        table.add_column(f"{name} {metric}")
    results = []
    for number, text in enumerate(options.variant or [""]):
        config = variant_config(trained.config, text)
        if (config.height, config.width) not in by_size:
            raise SystemExit(f"--samples: expected a folder with samples of {config.height}x{config.width}")
        samples, val = by_size[config.height, config.width]
        torch.manual_seed(options.seed)
        net = MvsfcNet(config)
        kept = ("backbone.", "analysis.") if options.fresh else ("",)
        new, partial = adopt(net, {k: v for k, v in trained.state_dict().items() if k.startswith(kept)})
        if config.analysis.anchors != trained.config.analysis.anchors:
            labels = ((samples.labels(i), samples.rig(i)) for i in range(len(samples)))
            anchor_priors(net.analysis.anchors, config.classes, labels)
        console.print(
            f"variant {number + 1}: {text or 'unchanged'}; new: {len(new)} tensors, {len(partial)} with new channels"
        )
        train(net, options.train, samples, options.steps, options.seed, console.print)
        parameters, operations = count_complexity(config)["total"]
        times = half_times(net)
        rates: list[float | None] = [None] if number == 0 or options.train == "detector" else []
        if options.train == "codec":
            rates += [float(r) for r in range(config.rate_count)] if options.rates is None else options.rates
        rows = points(net, val, rates)
        results.append({"variant": text, "parameters": parameters, "operations": operations, **times, "points": rows})
        head = [text or "unchanged", f"{parameters / 1e6:.1f}", f"{operations / 1e9:.1f}"]
        head += [f"{v:.0f}" for v in times.values()]
        if not rows:
            table.add_row(*head)
        for i, row in enumerate(rows):
            table.add_row(
                *(head if i == 0 else [""] * 6),
                "none" if row["rate"] is None else f"{row['rate']:g}",
                f"{row['bytes']:.0f}",
                f"{row['error']:.3f}",
                *(f"{row[f'{c} {m}']:.1f}" for c, m in METRICS),
            )
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    console.print(table)


if __name__ == "__main__":
    main()
