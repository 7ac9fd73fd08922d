# SPDX-License-Identifier: Apache-2.0
"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..inference import Engine

DEFAULT_MODEL = "sicm-compact"
Left = Annotated[Path, typer.Argument(metavar="LEFT", help="Left rectified image, PNG or JPEG.", show_default=False)]
Right = Annotated[
    Path, typer.Argument(metavar="RIGHT", help="Right rectified image, of the same size.", show_default=False)
]
Calib = Annotated[
    Path,
    typer.Option(
        "--calib",
        "-c",
        metavar="FILE",
        show_default=False,
        help="Calibration: KITTI object (P2, P3), odometry calib.txt, or calib_cam_to_cam.txt of a raw drive.",
    ),
]
Model = Annotated[
    str, typer.Option("--model", "-m", metavar="NAME", help="Name of a model, or the path of its folder.")
]
Device = Annotated[
    str,
    typer.Option("--device", "-d", metavar="DEVICE", help="cpu, cuda, cuda:1, ...; auto uses a GPU if there is one."),
]
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="What runs the network: torch, openvino (on a CPU, in bfloat16 where it has that; a model is converted at "
        "its first use), openvino-float32, or auto, the fastest that is installed.",
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        "-r",
        metavar="R",
        show_default=False,
        help="From 0 (fewest bits) to the model's highest rate; fractions are allowed. Default: the model's.",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        "-t",
        metavar="SCORE",
        show_default=False,
        help="Minimum score of a detection, 0 to 1. Default: the model's.",
    ),
]
View = Annotated[
    str | None,
    typer.Option(
        "--view",
        metavar="WHERE",
        show_default=False,
        help="Show images, boxes, packet sizes and times in Rerun: window, or the name of an .rrd file to write.",
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(
        "--picture", "-p", metavar="FILE", show_default=False, help="Also write a picture of the boxes, PNG or JPEG."
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        show_default=False,
        help="KITTI label file whose boxes the picture shows as ground truth.",
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        show_default=False,
        help="Have the work done by a Dask cluster: the address of its scheduler, tcp://HOST:PORT. docs/scale.md.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]{line}[/cyan]" for line in lines)


def chosen_device(name: str) -> str:
    """The device that an option means: auto is a GPU if there is one."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def help_alone(context: typer.Context) -> None:
    """A group without a command prints its help."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit()
