# SPDX-License-Identifier: Apache-2.0
"""demo: the whole pipeline over ROS 2 topics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_MODEL, Device, Model, Rate, Threshold, View, chosen_device, examples
from .output import check_range

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(
    epilog=examples("sicm demo", "sicm demo --view window", "sicm demo --kitti KITTI/object --out out/kitti --rate 3")
)
def demo(
    kitti: Annotated[
        Path | None,
        typer.Option(
            "--kitti",
            metavar="ROOT",
            show_default=False,
            help="KITTI object folder, raw drive or odometry sequence. Default: a few rendered pairs.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for pictures, bag, logs and summary.json.")
    ] = Path("out/demo"),
    model: Model = DEFAULT_MODEL,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            "-n",
            min=1,
            metavar="N",
            show_default=False,
            help="Maximum number of pairs. Default: 6 rendered ones, the first 20 of --kitti.",
        ),
    ] = None,
    rate: Rate = None,
    device: Device = "auto",
    threshold: Threshold = None,
    view: View = None,
) -> None:
    """Run the whole pipeline over ROS 2 topics: player, encoder node and decoder node as three processes.

    Writes a picture of each pair with its boxes, an overview, a bag and a summary of bytes and times.
    """
    check_range("--threshold", threshold, 0, 1)
    from ..jobs.demo import run
    from ..jobs.demo_watcher import DemoError

    try:
        status = run(
            kitti,
            out,
            model,
            frames=frames,
            rate=rate,
            device=chosen_device(device),
            score_threshold=threshold,
            view=view,
        )
    except DemoError as error:
        # Not the input's fault: a node's last words are worth more than one line.
        print(f"error: {error}", file=sys.stderr)
        status = 1
    raise typer.Exit(status)
