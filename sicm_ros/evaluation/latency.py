# SPDX-License-Identifier: Apache-2.0
"""Times of each stage of the codec, memory and packet sizes: medians with their spread."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..codec.decoder import StereoDecoder
from ..codec.encoder import StereoEncoder
from ..codec.packet import bits_per_pixel
from ..data.source import StereoFrame
from ..inference import Engine
from ..model_store import StoredModel, load_model

__all__ = ["BenchReport", "Spread", "bench", "describe_machine"]

WARM_UP_PAIRS = 3


@dataclass(frozen=True)
class Spread:
    """Median, 5th and 95th percentile of some measurements."""

    median: float
    p5: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        p5, median, p95 = np.percentile(np.asarray(values, np.float64), [5, 50, 95])
        return cls(float(median), float(p5), float(p95))


@dataclass(frozen=True)
class BenchReport:
    """Stages are in milliseconds for one pair, by side and stage; each side has a "total".

    ``entropy_share`` is the part of a pair's CPU time, of both sides together, that the entropy stages of both sides
    take. ``pairs_per_second`` is what the median total of each side allows when it does nothing else.
    ``bits_per_pixel`` counts the whole packet over the pixels of both original images. ``peak_memory_mib`` is the
    largest resident size of this process and, on a GPU, the most that PyTorch held there.
    """

    model: str
    device: str
    engine: str
    rate: float
    pairs: int
    image_size: tuple[int, int]
    stages_ms: dict[str, dict[str, Spread]]
    entropy_share: Spread
    pairs_per_second: dict[str, float]
    packet_bytes: Spread
    bits_per_pixel: Spread
    peak_memory_mib: dict[str, float]
    machine: dict[str, str | int | float] = field(default_factory=dict)


def describe_machine(device: torch.device) -> dict[str, str | int | float]:
    """The machine on which the times were measured, and its load just before."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith(("model name", "Model"))
        ]
        cpu = names[0] if names else cpu
    machine: dict[str, str | int | float] = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine


def bench(
    model: str | Path | StoredModel,
    frames: Sequence[StereoFrame],
    pairs: int,
    device: str = "cpu",
    rate: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    engine: Engine = "torch",
) -> BenchReport:
    """Encode and decode ``pairs`` pairs, cycling through ``frames``, after a few more that warm up and do not count.

    ``progress`` is called with pairs done and in all. Raises ModelError, EngineError and InputError.
    """
    if pairs < 1 or not frames:
        raise ValueError(f"pairs: expected at least 1, got {min(pairs, len(frames))}")
    stored = model if isinstance(model, StoredModel) else load_model(model, "both", device)
    machine = describe_machine(stored.device)
    encoder = StereoEncoder(stored, stored.device, rate, engine)
    decoder = StereoDecoder(stored, stored.device, engine=engine)
    if stored.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(stored.device)
    times: dict[str, dict[str, list[float]]] = {"encode": {}, "decode": {}}
    sizes, bits, shares = [], [], []
    for i in range(WARM_UP_PAIRS + pairs):
        frame = frames[i % len(frames)]
        coded = encoder.encode(frame.left, frame.right, frame.rig)
        found = decoder.decode(coded.packet)
        if i >= WARM_UP_PAIRS:
            for side, stages in (("encode", coded.stage_ms), ("decode", found.stage_ms)):
                for stage, value in (*stages.items(), ("total", sum(stages.values()))):
                    times[side].setdefault(stage, []).append(value)
            cpu = (*coded.cpu_ms.values(), *found.cpu_ms.values())
            shares.append((coded.cpu_ms["entropy"] + found.cpu_ms["entropy"]) / sum(cpu))
            sizes.append(len(coded.packet))
            bits.append(bits_per_pixel(len(coded.packet), frame.left.shape[1], frame.left.shape[0]))
            if progress is not None:
                progress(i + 1 - WARM_UP_PAIRS, pairs)
    stages_ms = {side: {stage: Spread.of(v) for stage, v in stages.items()} for side, stages in times.items()}
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    memory = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if stored.device.type == "cuda":
        memory["gpu"] = torch.cuda.max_memory_allocated(stored.device) / 2**20
    height, width = frames[0].left.shape[:2]
    return BenchReport(
        stored.name,
        str(stored.device),
        encoder.engine,
        encoder.rate,
        pairs,
        (width, height),
        stages_ms,
        Spread.of(shares),
        {side: 1000 / stages["total"].median for side, stages in stages_ms.items()},
        Spread.of(sizes),
        Spread.of(bits),
        memory,
        machine,
    )
