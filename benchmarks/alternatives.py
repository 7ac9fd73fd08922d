#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a pair costs with this package, and with what one might take instead: bytes and CPU time at both ends.

    python benchmarks/alternatives.py --pairs 20 --point vvc-intra=37 --point jpeg=20

Every system in turn codes the same pairs and detects with the same weights. Image codecs get images of the network's
input size; behind them is the uncompressed detector. CompressAI's learned image codecs have random weights, so their
times count and their bytes do not; no detector is in them. "raster" is this package's codec with the paper's context,
also with random weights, and only its entropy stages. All on one thread; medians with 5th and 95th percentile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from pairs import frames, watched
from rich.console import Console
from rich.table import Table

from sicm_ros.codec.payload import compress, decompress
from sicm_ros.codec.range_coder import RangeCoder
from sicm_ros.data.source import StereoFrame
from sicm_ros.evaluation.systems import IMAGE_CODECS
from sicm_ros.evaluation.systems.compressai_layers import compressai
from sicm_ros.evaluation.systems.packets import PacketSystem
from sicm_ros.evaluation.systems.system import Outcome, System
from sicm_ros.evaluation.systems.uncompressed import ImageSystem, Uncompressed
from sicm_ros.inference import ENGINES
from sicm_ros.model_store import StoredModel, load_model
from sicm_ros.networks.entropy_model import StereoEntropyModel
from sicm_ros.networks.entropy_tables import EntropyTables
from sicm_ros.preprocessing import normalise, resize_view

POINTS = {"jpeg": 20, "hevc-intra": 37, "hevc-inter": 37, "vvc-intra": 37, "vvc-inter": 37, "vvc-inter-one-qp": 37}
Coder = Callable[[StereoFrame], tuple[float, float, float]]  # bytes, or NaN, and CPU seconds of both ends


def compressai_coder(name: str, model: StoredModel) -> Coder:
    """One of CompressAI's image codecs on both views, each by itself."""
    compressai()  # makes it importable
    from compressai.zoo import image_models

    net = image_models[name](quality=1, pretrained=False).eval()
    net.update(force=True)

    @torch.inference_mode()
    def run(frame: StereoFrame) -> tuple[float, float, float]:
        begin = time.process_time()
        transform = model.transform(frame.left.shape[1], frame.left.shape[0])
        views = [normalise(resize_view(view, transform)[None]) for view in (frame.left, frame.right)]
        pixels = torch.from_numpy(np.concatenate(views)).contiguous()
        pixels = torch.nn.functional.pad(pixels, (0, -pixels.shape[3] % 64, 0, -pixels.shape[2] % 64))
        coded = net.compress(pixels)
        encoded = time.process_time()
        net.decompress(coded["strings"], coded["shape"])
        return float("nan"), encoded - begin, time.process_time() - encoded

    return run


def raster_coder(model: StoredModel) -> Coder:
    """Quantisation, prior and coder of the raster context, on latents of the model."""
    torch.manual_seed(0)
    config = model.config
    net = StereoEntropyModel(
        config.latent_channels, config.hyper_channels, "raster", config.rate_count, config.context_channels
    ).eval()
    coder = RangeCoder(EntropyTables.build(net))

    @torch.inference_mode()
    def run(frame: StereoFrame) -> tuple[float, float, float]:
        del frame  # times alone count
        latents = [torch.randn(1, config.latent_channels, *config.latent_size) for _ in range(2)]
        begin = time.process_time()
        coded = net.quantise(latents[0], latents[1], 3.0)
        payload, _, _ = compress(coded, coder)
        encoded = time.process_time()
        decompress(payload, coder, net.integer_prior(), config.latent_size)
        return float("nan"), encoded - begin, time.process_time() - encoded

    return run


def system_coder(system: System, point: float) -> Coder:
    """A system at one of its points."""

    def run(frame: StereoFrame) -> tuple[float, float, float]:
        outcome: Outcome = system.run(frame, point)
        return float(outcome.size), outcome.encode_s, outcome.decode_s

    return run


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--rate", type=float, help="of the model; default: its own")
    parser.add_argument(
        "--engine", choices=ENGINES, default="torch", help="of the model's packets; all else is PyTorch's"
    )
    parser.add_argument("--point", action="append", default=[], metavar="CODEC=POINT", help="in place of the default")
    parser.add_argument("--seed", type=int, default=1, help="of the rendered pairs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = load_model(args.model)
    rate = model.config.default_rate if args.rate is None else args.rate
    points = dict(POINTS)
    for text in args.point:
        name, _, point = text.partition("=")
        if name not in IMAGE_CODECS or not point.isdecimal():
            parser.error(f"--point: expected CODEC=POINT with one of {', '.join(IMAGE_CODECS)}, got {text}")
        points[name] = int(point)
    threshold = model.config.analysis.score_threshold
    coders: dict[str, Coder] = {
        f"{model.name}, rate {rate:g}": system_coder(PacketSystem(model, threshold, args.engine), rate),
        "uncompressed": system_coder(Uncompressed(model, threshold), 0.0),
    }
    console = Console(width=120)
    for name, quality in points.items():
        codec = IMAGE_CODECS[name]
        if codec.missing():
            console.print(f"{name} is left out: {codec.missing()}")
            continue
        coders[f"{name} {quality}"] = system_coder(ImageSystem(codec, model, threshold), float(quality))
    for name in ("mbt2018-mean", "mbt2018"):
        try:
            coders[f"CompressAI {name}"] = compressai_coder(name, model)
        except ImportError as error:
            console.print(f"CompressAI {name} is left out: {error}")
    coders["raster, entropy stages"] = raster_coder(model)
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in coders}
    for i, frame in enumerate(watched(frames(args.pairs + 1, None, args.seed), args.pairs + 1)):
        for name, run in coders.items():
            found = run(frame)
            if i:  # the first pair warms up
                results[name].append(found)
    table = Table("system", "bytes", "encode, CPU ms", "p5 to p95", "decode and detect", "p5 to p95", "both, ours = 1")
    own = np.median([e + d for _, e, d in results[next(iter(coders))]])
    for name, values in results.items():
        size, encode, decode = np.array(values).T
        cells = [f"{np.median(size):.0f}" if np.isfinite(size).all() else ""]
        for seconds in (encode, decode):
            median, low, high = (1e3 * float(np.percentile(seconds, q)) for q in (50, 5, 95))
            cells += [f"{median:.1f}", f"{low:.1f} to {high:.1f}"]
        table.add_row(name, *cells, f"{np.median(encode + decode) / own:.2f}")
    console.print(f"{model.name}, {model.fingerprint:016x}, one thread, {args.pairs} rendered pairs", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
