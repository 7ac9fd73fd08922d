#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The paper's raster context against the parallel checkerboard context: rate, decoding time, sequential passes.

    python benchmarks/context.py --steps 2000 --seed 1
    python benchmarks/context.py --steps 0 --threads 2  (times alone)

Rate: one entropy model of each context is trained from the same first weights, on the same batches with the same noise,
on latents of a trained encoder with its gain at one rate, which stay as they are; learning rate, warm-up and
clipping are those of the codec stage in the model's train.yaml. Compared are the real payload bytes of held-out pairs.
Pairs are rendered at the network's size, and their mirror images are used too; ``--samples`` takes a sample folder of
``sicm train`` instead. Decoding time: of the entropy stage with random weights, at the sizes of ``--sizes`` (by
default mvsfc-r34), by turns in one run; ratios are of the CPU time of each turn. For those sizes also the wall time of
the whole codec, SMFC and entropy stage, with the checkerboard. A sequential pass is a network
evaluation that has to wait for the symbols of the one before: the hyper-decoder's, then one for each step.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pairs import watched
from torch import Tensor

from sicm_ros.codec.payload import compress, decompress
from sicm_ros.codec.range_coder import RangeCoder
from sicm_ros.evaluation.latency import Spread
from sicm_ros.geometry import InputTransform
from sicm_ros.model_store import StoredModel, load_config, load_model
from sicm_ros.networks.config import MvsfcConfig
from sicm_ros.networks.entropy_model import StereoEntropyModel
from sicm_ros.networks.entropy_tables import EntropyTables
from sicm_ros.networks.mvsfc_net import MvsfcNet
from sicm_ros.preprocessing import normalise
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import render_pair
from sicm_ros.training.config import TrainConfig, load_train_config
from sicm_ros.training.samples import SampleStore

Context = Literal["raster", "checkerboard"]
CONTEXTS: tuple[Context, Context] = ("raster", "checkerboard")
BATCH = 8


# ---------------------------------------------------------------------------------------------------- rate


def _images(
    config: MvsfcConfig, count: int, seed: int, samples: Path | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of the network's size, (h, w, 3) uint8 each."""
    store = SampleStore(samples) if samples else None
    if store is not None and (len(store) < count or store.images.shape[2:4] != (config.height, config.width)):
        raise SystemExit(
            f"{samples}: expected at least {count} samples of {config.width}x{config.height}, got "
            f"{len(store)} of {store.images.shape[3]}x{store.images.shape[2]}"
        )
    rig = InputTransform(*KITTI_SIZE, config.crop_top, config.width, config.height).rig(KITTI_RIG)
    for i in range(count):
        if store is not None:
            yield store.images[i, 0], store.images[i, 1]
        else:
            layout = random_layout(np.random.default_rng([seed, i]), KITTI_RIG, *KITTI_SIZE)
            pair = render_pair(layout, rig, config.width, config.height, seed + i)
            yield pair.left, pair.right


@torch.inference_mode()
def scaled_latents(
    model: StoredModel, count: int, rate: float, seed: int, samples: Path | None
) -> tuple[Tensor, np.ndarray]:
    """Latents after the gain of pairs and of their mirror images, (2 count, 2 views, C, h, w), and the payload bytes
    that the model's own entropy model makes of each."""
    net, coder = model.net.entropy_model, RangeCoder(model.tables)
    found, sizes = [], []
    for pair in watched(_images(model.config, count, seed, samples), count):
        for left, right in (pair, (pair[1][:, ::-1], pair[0][:, ::-1])):  # a mirror swaps the cameras
            views = [
                torch.from_numpy(normalise(x))[None].contiguous(memory_format=torch.channels_last)
                for x in (left, right)
            ]
            latents = model.net.latents(model.net.features(views[0], views[1]))
            found.append(torch.cat(net.gain(*latents, rate)))
            sizes.append(len(compress(net.quantise(*latents, rate), coder)[0]))
    return torch.stack(found), np.array(sizes)


def train(net: StereoEntropyModel, latents: Tensor, config: TrainConfig, steps: int, seed: int) -> None:
    """Train for the fewest bits on latents (N, 2, C, h, w) as they are."""
    net.train()
    optimizer = torch.optim.Adam(net.parameters())
    top = config.learning_rate[1]
    for step in watched(range(steps), steps, "steps"):
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = warm * (config.final_learning_rate + (top - config.final_learning_rate) * cosine)
        chosen = np.random.default_rng((seed, step)).choice(len(latents), BATCH)
        torch.manual_seed(seed * 1_000_003 + step)
        out = net(latents[chosen, 0], latents[chosen, 1])
        loss = (out.bits_left + out.bits_right).sum() / latents[chosen].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.gradient_clip)
        optimizer.step()
    net.eval()


@torch.inference_mode()
def payload_bytes(net: StereoEntropyModel, latents: Tensor) -> np.ndarray:
    """Real payload bytes of each pair of latents (N, 2, C, h, w)."""
    coder = RangeCoder(EntropyTables.build(net))
    return np.array([len(compress(net.quantise(y[:1], y[1:]), coder)[0]) for y in latents])


def untrained(config: MvsfcConfig, seed: int) -> dict[Context, StereoEntropyModel]:
    """An entropy model of each context for one rate, with the same random weights."""
    config = replace(config, variable_rate=False)
    nets = {c: StereoEntropyModel.from_config(replace(config, context=c)).eval() for c in CONTEXTS}
    torch.manual_seed(seed)
    first = StereoEntropyModel.from_config(config).state_dict()
    for net in nets.values():
        net.load_state_dict(first)
    return nets


def compare_rates(
    model: StoredModel, rate: float, steps: int, count: int, held_out: int, seed: int, samples: Path | None
) -> None:
    """Train both, and print what held-out pairs take."""
    config = load_train_config(model.path)
    latents, own = scaled_latents(model, count + held_out, rate, seed, samples)
    latents = latents.clone()  # no inference tensors in training
    trained_on, others = latents[: 2 * count], latents[2 * count :: 2]
    nets, sizes = untrained(model.config, seed), {}
    for context, net in nets.items():
        before = payload_bytes(net, others).mean()
        train(net, trained_on, config, steps, seed)
        sizes[context] = payload_bytes(net, others)
        print(
            f"{context}: {before:.0f} bytes a pair before, {sizes[context].mean():.1f} after {steps} steps; "
            f"{payload_bytes(net, trained_on[: 2 * held_out : 2]).mean():.1f} on pairs it was trained on",
            flush=True,
        )
    ratio = Spread.of(100 * (sizes["checkerboard"] / sizes["raster"] - 1))
    total = 100 * (sizes["checkerboard"].mean() / sizes["raster"].mean() - 1)
    print(
        f"{held_out} held-out pairs: checkerboard against raster {total:+.2f} % bytes (pairs: median "
        f"{ratio.median:+.2f} %, {ratio.p5:+.2f} to {ratio.p95:+.2f} %); the model's own entropy model, trained for "
        f"all rates and much longer: {own[2 * count :: 2].mean():.1f} bytes"
    )


# ---------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Timing:
    """Decoding one pair with one context: seconds of each turn."""

    passes: int
    payload_bytes: int
    cpu: list[float]
    wall: list[float]


@torch.inference_mode()
def decoding_times(
    nets: dict[Context, StereoEntropyModel], size: tuple[int, int], turns: int, seed: int
) -> dict[Context, Timing]:
    """Time the entropy stage of a decoder with each net, by turns; latents are noise."""
    generator = torch.Generator().manual_seed(seed)
    first = next(iter(nets.values()))
    left, right = (6 * torch.randn(1, first.channels, *size, generator=generator) for _ in range(2))
    work, found = {}, {}
    for context, net in nets.items():
        coder = RangeCoder(EntropyTables.build(net))
        coded = net.quantise(left, right)
        payload, symbol_hash, _ = compress(coded, coder)
        decoded = decompress(payload, coder, net.integer_prior(), size)  # warms up as well
        assert decoded.complete and decoded.symbol_hash == symbol_hash
        work[context] = (payload, coder, net.integer_prior())
        found[context] = Timing(1 + len(coded.steps), len(payload), [], [])
    for _ in range(turns):
        for context, (payload, coder, integers) in work.items():
            cpu, wall = time.process_time(), time.perf_counter()
            decompress(payload, coder, integers, size)
            found[context].cpu.append(time.process_time() - cpu)
            found[context].wall.append(time.perf_counter() - wall)
    return found


def compare_times(config: MvsfcConfig, name: str, turns: int, seed: int) -> None:
    """Print the decoding times of both contexts at the sizes of a model."""
    times = decoding_times(untrained(config, seed), config.latent_size, turns, seed)
    height, width = config.latent_size
    print(f"{name}: latents {config.latent_channels} x {height} x {width}, random weights, {turns} turns")
    for context, timing in times.items():
        cpu, wall = Spread.of([1e3 * t for t in timing.cpu]), Spread.of([1e3 * t for t in timing.wall])
        print(
            f"  {context}: {timing.passes} sequential passes; CPU {cpu.median:.1f} ms "
            f"({cpu.p5:.1f} to {cpu.p95:.1f}), wall {wall.median:.1f} ms ({wall.p5:.1f} to {wall.p95:.1f})"
        )
    ratio = Spread.of([a / b for a, b in zip(times["raster"].cpu, times["checkerboard"].cpu, strict=True)])
    print(f"  raster over checkerboard: {ratio.median:.2f} ({ratio.p5:.2f} to {ratio.p95:.2f})")


@torch.inference_mode()
def codec_times(config: MvsfcConfig, name: str, turns: int, seed: int) -> None:
    """Print what the whole codec takes with the parallel context: features to payload, and payload to features."""
    torch.manual_seed(seed)
    net = MvsfcNet(replace(config, context="checkerboard", variable_rate=False)).eval()
    view = torch.randn(1, 3, config.height, config.width).contiguous(memory_format=torch.channels_last)
    features, coder = net.features(view, view), RangeCoder(EntropyTables.build(net.entropy_model))

    def encode() -> bytes:
        return compress(net.entropy_model.quantise(*net.latents(features)), coder)[0]

    payload = encode()

    def decode() -> None:
        coded = decompress(payload, coder, net.entropy_model.integer_prior(), config.latent_size)
        net.reconstruct(coded.left, coded.right)

    times: dict[Callable[[], object], list[float]] = {encode: [], decode: []}
    for function in (encode, decode) * (turns + 1):
        began = time.perf_counter()
        function()
        times[function].append(1e3 * (time.perf_counter() - began))
    encoding, decoding = (Spread.of(values[1:]) for values in times.values())  # the first of each warms up
    print(
        f"{name}: SMFC and entropy stage with the checkerboard, random weights, {torch.get_num_threads()} threads, "
        f"{turns} turns: encode {encoding.median:.0f} ms ({encoding.p5:.0f} to {encoding.p95:.0f}), decode "
        f"{decoding.median:.0f} ms ({decoding.p5:.0f} to {decoding.p95:.0f}), wall"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sicm-compact", help="whose encoder gives the latents")
    parser.add_argument("--rate", type=float, help="default: the model's default rate")
    parser.add_argument("--steps", type=int, default=2000, help="of each training; 0: times alone")
    parser.add_argument("--pairs", type=int, default=600, help="to train on")
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--samples", type=Path, help="sample folder of sicm train; default: rendered pairs")
    parser.add_argument(
        "--sizes",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "models" / "mvsfc-r34",
        help="folder with the config.yaml whose decoding times are measured",
    )
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model, sizes = load_model(options.model), load_config(options.sizes / "config.yaml")
    codec_times(sizes, options.sizes.name, options.turns, options.seed)
    compare_times(sizes, options.sizes.name, options.turns, options.seed)
    compare_times(model.config, model.name, options.turns, options.seed)
    if options.steps:
        rate = model.config.default_rate if options.rate is None else options.rate
        print(
            f"trained on latents of {model.name} at rate {rate:g}: {options.pairs} pairs and their mirror images, "
            f"{options.steps} steps of {BATCH}, seed {options.seed}"
        )
        compare_rates(model, rate, options.steps, options.pairs, options.held_out, options.seed, options.samples)


if __name__ == "__main__":
    main()
