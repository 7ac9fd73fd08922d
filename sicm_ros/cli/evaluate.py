# SPDX-License-Identifier: Apache-2.0
"""evaluate: compare systems, as the paper does, in tables, figures and one page."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_MODEL, Cluster, Json, Model, examples
from .output import check_workers, console, print_json, progress_bar

commands = typer.Typer(rich_markup_mode="rich")
ANCHORS = "vvc-intra,vvc-inter-one-qp"


def _list(wanted: bool) -> None:
    if not wanted:
        return
    from rich.table import Table

    from ..evaluation.systems import SYSTEMS

    shown = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("name", "what it is", "here"):
        shown.add_column(name, overflow="fold")
    for kind in SYSTEMS.values():
        shown.add_row(kind.name, f"{kind.title}: {kind.note}", kind.missing() or "can run")
    console().print(shown)
    raise typer.Exit()


@commands.command(
    epilog=examples(
        "sicm evaluate --data KITTI --split val.txt --count 20 --systems packets,vvc-intra,jpeg --out out/few",
        "sicm evaluate --data KITTI --split val.txt --out out/comparison --cluster tcp://10.0.0.5:8786",
        "sicm evaluate --data KITTI --split val.txt --systems packets,runs/mine/model --out out/mine",
    )
)
def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="ROOT",
            show_default=False,
            help="KITTI folder: ROOT/training with label_2, calib, image_2 and image_3. Without images, frames are "
            "rendered for the labels.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", show_default=False, help="Folder of the report; a run that was stopped goes on."
        ),
    ],
    systems: Annotated[
        str,
        typer.Option(
            "--systems",
            metavar="A,B",
            show_default=False,
            help="Names from --list, or models (names or folders). Default: all that can run here.",
        ),
    ] = "",
    split: Annotated[
        Path | None,
        typer.Option(
            "--split", metavar="FILE", show_default=False, help="File with frame ids, one a line. Default: all."
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, metavar="N", show_default=False, help="The first N frames. Default: all."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of rendered frames.")] = 2024,
    drive: Annotated[
        bool, typer.Option("--drive", help="The frames follow each other in time: video codecs take part.")
    ] = False,
    model: Model = DEFAULT_MODEL,
    anchors: Annotated[
        str, typer.Option("--anchors", metavar="A,B", help="Systems that BD-rates are against, where they ran.")
    ] = ANCHORS,
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, metavar="N", help="Frames with boxes of all systems in the report.")
    ] = 3,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", "-w", min=1, metavar="N", show_default=False, help="Processes. Default: one for each core."
        ),
    ] = None,
    cluster: Cluster = "",
    as_json: Json = False,
    shows_list: Annotated[
        bool, typer.Option("--list", help="Show the systems and exit.", is_eager=True, callback=_list)
    ] = False,
) -> None:
    """Compare ways to send a stereo pair to a 3D detector: bytes against average precision (the paper's protocol).

    Writes index.html with tables I to IV and figures 2 to 5, the figures as files, and points.csv. Every system sees
    the same frames. Times are CPU seconds of one thread.
    """
    check_workers(workers, cluster)
    from ..evaluation.comparison import chosen_systems, compare_systems
    from ..evaluation.frames import LabelledFrames
    from ..evaluation.systems import SYSTEMS

    try:
        import bjontegaard  # noqa: F401  # before the work, not after it

        from ..evaluation.report import box_pictures, facts, tables, write_report
        from ..evaluation.summary import summarise
    except ModuleNotFoundError as error:
        raise ValueError(f"sicm evaluate needs {error.name}: pip install -r requirements/evaluate.txt") from None
    frames = LabelledFrames.open(data, split, count, seed, drive)
    chosen, missing = chosen_systems(systems.split(",") if systems else list(SYSTEMS), frames, model)
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    wanted = anchors.split(",")
    names = [kind.name for kind, _ in chosen]
    if unknown := [name for name in wanted if name not in {*SYSTEMS, *names, *missing}]:
        raise ValueError(f"--anchors: expected names of systems, got {unknown[0]}")
    if not chosen:
        raise ValueError("--systems: none of them can run here")
    kinds = [kind for kind, _ in chosen]
    number = workers or os.cpu_count() or 1
    with progress_bar("frames") as progress:
        outcomes = compare_systems(frames, model, chosen, out, number, cluster, progress)
    with progress_bar("bootstrap") as progress:
        comparison = summarise(
            outcomes,
            frames.names,
            kinds,
            wanted,
            workers=min(number, len(chosen)),
            cluster=cluster,
            progress=progress,
        )
    known = facts(frames, model, shlex.join(["sicm", *sys.argv[1:]]), missing, cluster)
    page = write_report(comparison, out, known, box_pictures(outcomes, frames, comparison, model, pictures))
    outcomes.close()
    for name in wanted:
        if name not in names:
            print(f"no BD-rates against {name}, which is not among the systems of this run", file=sys.stderr)
    if as_json:
        print_json(
            {"page": str(page), "frames": len(frames), "tables": [table.__dict__ for table in tables(comparison)]}
        )
        return
    from rich.table import Table

    shown = Table(title=f"{len(frames)} frames", box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name in ("system", "bytes", "Car BEV@0.5", "BEV@0.7", "3D@0.7", "Pedestrian 3D@0.5"):
        shown.add_column(name, justify="left" if name == "system" else "right")
    columns = (("Car", "BEV loose"), ("Car", "BEV"), ("Car", "3D"), ("Pedestrian", "3D"))
    for kind in kinds:
        for point in comparison.points[kind.name]:
            size = f"{point.size:.0f}" if point.size else ""
            shown.add_row(kind.title, size, *(f"{point.precision[metric]:.1f}" for metric in columns))
    console().print(shown)
    print(f"{page}: tables, curves and pictures")
