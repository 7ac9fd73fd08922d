#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast each engine runs the two halves of the network, side by side in one process.

    python benchmarks/engines.py --pairs 40 --threads 1

Takes rendered pairs. Each pair goes through every engine in turn, so that what else the machine does meets all of
them; preprocessing and entropy stage, which are the same for all, are left out. Prints the median of the wall time and
of the CPU time of all threads, with the 5th and the 95th percentile of the wall time, and the ratio of the CPU times to
PyTorch's. Below them is the floor: the multiply-accumulates of each half at the best rate of large matrix products.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from pairs import console, frames, watched
from rich.table import Table

from sicm_ros.inference import Engine
from sicm_ros.inference.engine import RemoteEngine, VehicleEngine, no_lap, remote_engine, vehicle_engine
from sicm_ros.model_store import load_model
from sicm_ros.networks.complexity import count_complexity
from sicm_ros.preprocessing import prepare

ENGINES: tuple[Engine, ...] = ("torch", "openvino-float32", "openvino")


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def _peak(dtype: torch.dtype, size: int = 1536) -> float:
    """Multiply-accumulates a second of the best of some matrix products, in G."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = min(_timed(lambda: a @ b)[0] for _ in range(9))
    return size**3 / best / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--seed", type=int, default=1, help="of the rendered pairs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    vehicle: dict[str, VehicleEngine] = {name: vehicle_engine(model, name) for name in ENGINES}
    remote: dict[str, RemoteEngine] = {name: remote_engine(model, name) for name in ENGINES}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    rate = model.config.default_rate
    with torch.inference_mode():
        for i, frame in enumerate(watched(frames(options.pairs, None, options.seed), options.pairs)):
            left, right, _ = prepare(frame.left, frame.right, model.transform, model.device)
            latents = vehicle["torch"](left, right, no_lap)
            coded = model.net.entropy_model.quantise(*latents, rate).latents()
            decoded = model.net.entropy_model.inverse_gain(*coded, rate)
            for name in ENGINES:
                for half, work in (
                    ("vehicle", partial(vehicle[name], left, right, no_lap)),
                    ("remote", partial(remote[name], *decoded, no_lap)),
                ):
                    if i == 0:
                        work()
                    times.setdefault((half, name), []).append(_timed(work))
    table = Table("half", "engine", "wall ms", "p5", "p95", "CPU ms", "CPU, torch = 1")
    for (half, engine), values in times.items():
        wall, cpu = np.array(values).T
        ratio = np.median(cpu) / np.median(np.array(times[half, "torch"])[:, 1])
        spread = [f"{x:.1f}" for x in np.percentile(wall, [50, 5, 95])]
        table.add_row(half, engine, *spread, f"{np.median(cpu):.1f}", f"{ratio:.2f}")
    console.print(f"{model.name}, {options.threads} threads, {options.pairs} rendered pairs", highlight=False)
    console.print(table)
    peaks = {"float32": _peak(torch.float32), "bfloat16": _peak(torch.bfloat16)}
    cost = count_complexity(model.config)
    parts = {"vehicle": ("backbone", "matching", "smfc_encoder"), "remote": ("smfc_decoder", "analysis")}
    for half, names in parts.items():
        products = sum(cost[name][1] for name in names if name in cost) / 1e9
        floors = (f"{1e3 * products / peak:.1f} ms at the {peak:.0f} G/s of {name}" for name, peak in peaks.items())
        console.print(f"{half}: {products:.2f} G multiply-accumulates, {', '.join(floors)}", highlight=False)


if __name__ == "__main__":
    main()
