# SPDX-License-Identifier: Apache-2.0
"""What a training writes: checkpoint, model, logs."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from ..files import write_whole
from ..model_store import save_model
from ..networks.mvsfc_net import MvsfcNet
from .stages import STAGES, Progress

__all__ = ["export_model", "log_losses", "log_validation", "open_loggers", "save_checkpoint"]


def save_checkpoint(path: Path, net: nn.Module, optimizer: Any, progress: Progress, sums: dict[str, float]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one.

    ``sums``: of the loss terms since the last row of the log.
    """
    state = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": {
            "step": progress.step,
            "stage_step": progress.stage_step,
            "minutes": progress.minutes,
            "stage": progress.stage,
        },
        "sums": sums,
    }
    write_whole(path, lambda beside: torch.save(state, beside))


def export_model(net: MvsfcNet, folder: Path, out: Path) -> None:
    """Weights and configuration as a model folder that every command takes.

    Kernels are kept in half precision, which halves what a repository has to hold; priors, biases and norms are not.
    The coder's tables are made from the rounded weights.
    """

    def stored(name: str, value: Tensor) -> Tensor:
        halve = value.is_floating_point() and value.ndim >= 2 and ".prior_" not in name
        return (value.half() if halve else value).contiguous()

    save_model(out / "model", net.config, {k: stored(k, v) for k, v in net.state_dict().items()})


def open_loggers(
    out: Path, step: int, first_process: bool, say: Callable[[str], None]
) -> tuple[CSVLogger, TensorBoardLogger]:
    """Loggers to ``metrics.csv`` and to ``tensorboard`` in ``out``, of a run that goes on behind ``step``.

    What was logged up to there stays. What a killed run logged after its last checkpoint, or another one in the same
    folder, goes, since this run makes it anew; ``say`` is told so. Only the first process writes.
    """
    board = TensorBoardLogger(out, name="tensorboard", version="", purge_step=step + 1)
    table = CSVLogger(out, name="", version="", flush_logs_every_n_steps=1)
    if not first_process:
        return table, board
    path = out / "metrics.csv"
    rows = []
    if path.is_file():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    kept = [row for row in rows if int(row["step"]) <= step]
    if len(kept) < len(rows):
        say(f"metrics.csv: {len(rows) - len(kept)} rows after step {step} removed")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Experiment logs directory")  # it holds the samples; rows are written again
        writer = table.experiment
    for row in kept:
        writer.log_metrics({k: v for k, v in row.items() if v and k != "step"}, int(row["step"]))  # type: ignore[misc]
    writer.save()
    return table, board


def log_losses(
    loggers: tuple[CSVLogger, TensorBoardLogger], progress: Progress, learning_rate: float, terms: dict[str, float]
) -> None:
    """The means of the last steps' loss terms: a row of the table, and curves of their stage."""
    table, board = loggers
    stage = STAGES[progress.stage]
    row: dict[str, Any] = {
        "stage": stage,
        "minutes": round(progress.minutes, 2),
        "learning_rate": learning_rate,
        **{k: round(v, 5) for k, v in terms.items()},
    }
    table.log_metrics(row, progress.step)
    curves = {f"{stage}/{name}": value for name, value in {"learning rate": learning_rate, **terms}.items()}
    board.log_metrics(curves, progress.step)


def log_validation(
    loggers: tuple[CSVLogger, TensorBoardLogger], progress: Progress, name: str, figures: dict[str, float]
) -> None:
    """AP and the other figures on held-out samples; ``name`` tells which samples, and with which rate."""
    table, board = loggers
    row: dict[str, Any] = {"stage": STAGES[progress.stage], "validation": name, **figures}
    table.log_metrics(row, progress.step)
    board.log_metrics({f"validation {name}/{key}": value for key, value in figures.items()}, progress.step)
