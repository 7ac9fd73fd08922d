# SPDX-License-Identifier: Apache-2.0
"""render, score: make labelled stereo pairs, and evaluate detections on labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from .options import Cluster, Json, examples
from .output import check_workers, console, print_json, progress_bar

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(
    epilog=examples(
        "sicm render out/rendered --count 100",
        "sicm render out/rendered --count 10000 --cluster tcp://10.0.0.5:8786",
        "sicm render out/kitti --layouts label_2 --calib calib --split val.txt --seed 1",
    )
)
def render(
    root: Annotated[
        Path,
        typer.Argument(
            metavar="ROOT",
            show_default=False,
            help="Folder to write: ROOT/training/image_2, image_3, label_2, calib, disp_occ_0.",
        ),
    ],
    layouts: Annotated[
        Path | None,
        typer.Option(
            "--layouts",
            metavar="DIR",
            show_default=False,
            help="KITTI label_2 folder whose scenes are rendered. Default: built-in statistics.",
        ),
    ] = None,
    calib: Annotated[
        Path | None,
        typer.Option("--calib", metavar="DIR", show_default=False, help="KITTI calib folder of those labels."),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split",
            metavar="FILE",
            show_default=False,
            help="File with frame ids to render, one per line. Default: all.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same pixels.")] = 0,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            min=1,
            metavar="N",
            show_default=False,
            help="Maximum number of frames. Default: all; 100 without --layouts.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, metavar="N", show_default=False, help="Processes. Default: 1."),
    ] = None,
    cluster: Cluster = "",
) -> None:
    """Render a KITTI folder: stereo pairs with exact labels, calibration and disparity. Can be resumed."""
    for option, folder in (("--layouts", layouts), ("--calib", calib)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{option}: expected a folder, got {folder}")
    check_workers(workers, cluster)
    from ..data.rendered import render_dataset

    with progress_bar("rendering") as progress:
        names = render_dataset(root, layouts, calib, split, seed, workers or 1, count, progress, cluster)
    print(f"{len(names)} frames in {root / 'training'}")


@commands.command(
    epilog=examples("sicm score kitti/training/label_2 results", "sicm score label_2 results --split val.txt --json")
)
def score(
    label_dir: Annotated[
        Path, typer.Argument(metavar="LABEL_DIR", help="Folder of label files NNNNNN.txt.", show_default=False)
    ],
    result_dir: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT_DIR",
            show_default=False,
            help="Folder of result files of the same names; a frame without a detection has an empty file.",
        ),
    ],
    split: Annotated[
        Path | None,
        typer.Option(
            "--split",
            metavar="FILE",
            show_default=False,
            help="File with the frame ids to score, one per line. Default: all in RESULT_DIR.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score detections by KITTI's rules: AP in 2D, bird's-eye view and 3D, and orientation similarity (AOS).

    R40 and R11, easy, moderate and hard; strict IoU is 0.7 for Car, 0.5 for Pedestrian and Cyclist, loose (BEV and 3D)
    0.5 and 0.25.
    """
    from ..data.kitti import KittiError, read_labels, read_split

    for folder in (label_dir, result_dir):
        if not folder.is_dir():
            raise KittiError(f"{folder}: expected a folder of files NNNNNN.txt, there is none")
    ids = read_split(split) if split is not None else sorted(p.stem for p in result_dir.glob("*.txt"))
    if not ids:
        raise KittiError(f"{result_dir}: expected result files NNNNNN.txt, found none")
    missing = [i for i in ids if not (result_dir / f"{i}.txt").is_file()]
    if missing:
        raise KittiError(
            f"{result_dir / missing[0]}.txt: no such file ({len(missing)} of {len(ids)} are missing; a "
            "frame without a detection has an empty file)"
        )
    labels, results = [], []
    with progress_bar("reading") as progress:
        for done, name in enumerate(ids, 1):
            labels.append(read_labels(label_dir / f"{name}.txt"))
            results.append(read_labels(result_dir / f"{name}.txt"))
            if any(o.score is None for o in results[-1]):
                raise KittiError(f"{result_dir / name}.txt: score: expected a 16th column on every line, one has none")
            if done % 50 == 0 or done == len(ids):
                progress(done, len(ids))
    from ..evaluation.kitti_ap import CLASSES, METRICS, evaluate

    table = evaluate(labels, results)
    if as_json:
        print_json({"frames": len(ids), **table})
        return
    from rich.table import Table

    shown = Table(
        title=f"{len(ids)} frames, average precision in percent", box=None, padding=(0, 2, 0, 0), title_justify="left"
    )
    for name in ("class", "metric", "R40 easy", "moderate", "hard", "R11 easy", "moderate", "hard"):
        shown.add_column(name, justify="left" if name in ("class", "metric") else "right")
    for name in CLASSES:
        for metric in METRICS:
            values = (*table["R40"][metric][name], *table["R11"][metric][name])
            shown.add_row(
                name if metric == METRICS[0] else "",
                metric,
                *("-" if math.isnan(v) else f"{v:.2f}" for v in values),
                end_section=metric == METRICS[-1],
            )
    console().print(shown)
