# SPDX-License-Identifier: Apache-2.0
"""train: a model from stereo pairs and their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, examples

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(
    epilog=examples(
        "sicm train --config models/sicm-compact --out runs/first --samples 800 --max-minutes 10 -j 2 --processes 2",
        "sicm train --config models/mvsfc-r34 --data KITTI/object --out runs/kitti --resume",
    )
)
def train(
    config: Annotated[
        Path,
        typer.Option(
            "--config", metavar="DIR", show_default=False, help="Model folder with config.yaml and train.yaml."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", show_default=False, help="Folder for samples, checkpoint, logs and trained model."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="ROOT[:SHARE]",
            show_default=False,
            help="KITTI root with training/label_2, calib and, if there are any, images; several with the share of the "
            "samples that each gives, e.g. 0.3. Default: rendered scenes.",
        ),
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            "--splits",
            metavar="DIR",
            show_default=False,
            help="Folder with train.txt and val.txt. Default: ImageSets of each root.",
        ),
    ] = None,
    validate_on: Annotated[
        list[Path] | None,
        typer.Option(
            "--validate",
            metavar="ROOT",
            show_default=False,
            help="KITTI root to validate on, beside what --data holds out; several in turn.",
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            metavar="M",
            min=0,
            show_default=False,
            help="Time limit in minutes: every stage is shortened to fit.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")] = False,
    device: Device = "auto",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, show_default=False, help="Default: from train.yaml.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, metavar="N", help="Data-parallel processes; torchrun works as well.")
    ] = 1,
    workers: Annotated[
        int, typer.Option("--workers", "-j", min=1, metavar="N", help="Processes that render samples.")
    ] = 1,
    loaders: Annotated[
        int | None,
        typer.Option(
            "--loaders",
            min=0,
            metavar="N",
            show_default=False,
            help="Processes that make batches, for each training process. Default: none on a CPU, up to 4 for a GPU.",
        ),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option("--stages", metavar="A,B", show_default=False, help="Only these of detector,codec,joint,entropy."),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option("--start-from", metavar="FILE", show_default=False, help="Initial weights (safetensors)."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            metavar="N",
            show_default=False,
            help="Number of pairs to render, or maximum number to use of --data. Default: from train.yaml.",
        ),
    ] = None,
) -> None:
    """Train a model: the detector, then the codec, then both together, then the entropy model alone."""
    config = config.parent if config.name == "config.yaml" else config
    if not config.is_dir():
        raise ValueError(f"--config: expected a model folder with config.yaml and train.yaml, got {config}")
    if start_from is not None and not start_from.is_file():
        raise ValueError(f"--start-from: expected a safetensors file, got {start_from}")
    if start_from is not None:
        from ..model_store import read_weights

        read_weights(start_from)  # before the samples are made, which takes long
    from ..training.train import run

    run(
        config,
        data,
        out,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        seed=seed,
        processes=processes,
        workers=workers,
        splits=splits,
        start_from=start_from,
        stages=stages,
        samples=samples,
        validate_on=validate_on or (),
        loaders=loaders,
    )
