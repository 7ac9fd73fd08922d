# SPDX-License-Identifier: Apache-2.0
"""bench: latency, throughput, memory and packet size of a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_MODEL, Device, EngineOption, Json, Model, Rate, chosen_device, examples
from .output import console, print_fields, print_json, progress_bar

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(epilog=examples("sicm bench", "sicm bench --kitti KITTI/object --pairs 100 --device cuda --json"))
def bench(
    model: Model = DEFAULT_MODEL,
    pairs: Annotated[int, typer.Option("--pairs", "-n", min=1, metavar="N", help="Pairs to measure.")] = 30,
    device: Device = "auto",
    engine: EngineOption = "auto",
    rate: Rate = None,
    kitti: Annotated[
        Path | None,
        typer.Option(
            "--kitti",
            metavar="PATH",
            show_default=False,
            help="KITTI folder to take pairs from. Default: rendered pairs.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, metavar="N", show_default=False, help="CPU threads of the network."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure latency, throughput, memory and packet size, stage by stage (median, 5th and 95th percentile)."""
    import torch

    from ..data.kitti import open_source
    from ..data.rendered import rendered_frames
    from ..evaluation.latency import bench as measure
    from ..model_store import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    stored = load_model(model, "both", chosen_device(device))
    if kitti is None:
        frames = rendered_frames(min(pairs, 8))
    else:
        source = open_source(kitti)
        frames = [source[i] for i in range(min(pairs, len(source), 20))]
    with progress_bar("measuring") as progress:
        report = measure(stored, frames, pairs, str(stored.device), rate, progress, engine)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    from rich.table import Table

    machine = report.machine
    print_fields(
        [
            (
                "machine",
                f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
                + (f", {machine['gpu']}" if "gpu" in machine else ""),
            ),
            (
                "load before",
                f"{machine['load_before']:g}"
                + (", others were at work too" if float(machine["load_before"]) > 0.5 else ""),
            ),
            ("software", f"torch {machine['torch']}, Python {machine['python']}"),
            ("model", f"{report.model} on {report.device}, engine {report.engine}, rate {report.rate:g}"),
            (
                "pairs",
                f"{report.pairs} of {report.image_size[0]}x{report.image_size[1]}, "
                f"{'rendered' if kitti is None else kitti}, {len(frames)} different",
            ),
        ]
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("side", "stage", "median ms", "p5", "p95"):
        table.add_column(name, justify="left" if name in ("side", "stage") else "right")
    for side, stages in report.stages_ms.items():
        for stage, spread in stages.items():
            first, total = stage == next(iter(stages)), stage == "total"
            table.add_row(
                side if first else "",
                stage,
                f"{spread.median:.1f}",
                f"{spread.p5:.1f}",
                f"{spread.p95:.1f}",
                style="bold" if total else None,
                end_section=total,
            )
    console().print(table)
    frequency, share = report.pairs_per_second, report.entropy_share
    print_fields(
        [
            (
                "entropy stage",
                f"{100 * share.median:.1f} % of a pair's CPU time, both sides together "
                f"(p5 {100 * share.p5:.1f} %, p95 {100 * share.p95:.1f} %)",
            ),
            ("throughput", f"encode {frequency['encode']:.1f}, decode {frequency['decode']:.1f} pairs a second"),
            (
                "packet",
                f"{report.packet_bytes.median:.0f} bytes (p5 {report.packet_bytes.p5:.0f}, "
                f"p95 {report.packet_bytes.p95:.0f}), {report.bits_per_pixel.median:.4f} bits per pixel",
            ),
            ("peak memory", ", ".join(f"{k} {v:.0f} MiB" for k, v in report.peak_memory_mib.items())),
        ]
    )
