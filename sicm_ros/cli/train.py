# SPDX-License-Identifier: Apache-2.0
"""train, train-system: a model, or a codec to compare with, from stereo pairs and their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_MODEL, Device, Model, examples

commands = typer.Typer(rich_markup_mode="rich")


Out = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", show_default=False, help="Folder for samples, checkpoint, logs and trained model."
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="ROOT[:SHARE]",
        show_default=False,
        help="KITTI root with training/label_2, calib and, if there are any, images; several with the share of the "
        "samples that each gives, e.g. 0.3. Default: rendered scenes.",
    ),
]
Splits = Annotated[
    Path | None,
    typer.Option(
        "--splits",
        metavar="DIR",
        show_default=False,
        help="Folder with train.txt and val.txt. Default: ImageSets of each root.",
    ),
]
ValidateOn = Annotated[
    list[Path] | None,
    typer.Option(
        "--validate",
        metavar="ROOT",
        show_default=False,
        help="KITTI root to validate on, beside what --data holds out; several in turn.",
    ),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        metavar="M",
        min=0,
        show_default=False,
        help="Time limit in minutes: every stage is shortened to fit.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, show_default=False, help="Default: from train.yaml.")
]
Processes = Annotated[
    int, typer.Option("--processes", min=1, metavar="N", help="Data-parallel processes; torchrun works as well.")
]
Workers = Annotated[int, typer.Option("--workers", "-j", min=1, metavar="N", help="Processes that render samples.")]
Loaders = Annotated[
    int | None,
    typer.Option(
        "--loaders",
        min=0,
        metavar="N",
        show_default=False,
        help="Processes that make batches, for each training process. Default: none on a CPU, up to 4 for a GPU.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        min=1,
        metavar="N",
        show_default=False,
        help="Number of pairs to render, or maximum number to use of --data. Default: from train.yaml (train) or 5000.",
    ),
]


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
    out: Out,
    data: Data = None,
    splits: Splits = None,
    validate_on: ValidateOn = None,
    max_minutes: MaxMinutes = None,
    resume: Resume = False,
    device: Device = "auto",
    seed: Seed = None,
    processes: Processes = 1,
    workers: Workers = 1,
    loaders: Loaders = None,
    stages: Annotated[
        str | None,
        typer.Option("--stages", metavar="A,B", show_default=False, help="Only these of detector,codec,joint,entropy."),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option("--start-from", metavar="FILE", show_default=False, help="Initial weights (safetensors)."),
    ] = None,
    samples: Samples = None,
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


@commands.command(
    epilog=examples(
        "sicm train-system wang --data KITTI/object --out runs/systems/wang --max-minutes 120",
        "SICM_MODEL_PATH=runs sicm evaluate --data KITTI/object --split val.txt --systems wang --out out/wang",
    )
)
def train_system(
    name: Annotated[str, typer.Argument(metavar="NAME", help="wang, lei or liu.", show_default=False)],
    out: Out,
    model: Model = DEFAULT_MODEL,
    data: Data = None,
    splits: Splits = None,
    validate_on: ValidateOn = None,
    max_steps: Annotated[
        int, typer.Option("--max-steps", min=1, metavar="N", help="Batches of 4 pairs, at most.")
    ] = 20000,
    max_minutes: MaxMinutes = None,
    resume: Resume = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0)] = 1,
    processes: Processes = 1,
    workers: Workers = 1,
    loaders: Loaders = None,
    samples: Samples = None,
) -> None:
    """Train a learned codec of the comparison beside a trained detector, which stays as it is."""
    from ..training.train_system import run_system

    run_system(
        name,
        model,
        data,
        out,
        max_steps,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        seed=seed,
        processes=processes,
        workers=workers,
        splits=splits,
        samples=samples,
        validate_on=validate_on or (),
        loaders=loaders,
    )
