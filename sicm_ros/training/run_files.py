# SPDX-License-Identifier: Apache-2.0
"""What a training writes: checkpoint, model, log."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from ..model_store import save_model
from ..networks.mvsfc_net import MvsfcNet
from .stages import Progress

__all__ = ["Log", "export_model", "save_checkpoint"]


def save_checkpoint(path: Path, net: MvsfcNet, optimizer: Any, progress: Progress) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
    state = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": {
            "step": progress.step,
            "stage_step": progress.stage_step,
            "minutes": progress.minutes,
            "stage": progress.stage,
        },
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def export_model(net: MvsfcNet, folder: Path, out: Path) -> None:
    """Weights and configuration as a model folder that every command takes.

    Kernels are kept in half precision, which halves what a repository has to hold; priors, biases and norms are not.
    The coder's tables are made from the rounded weights.
    """

    def stored(name: str, value: Tensor) -> Tensor:
        halve = value.is_floating_point() and value.ndim >= 2 and ".prior_" not in name
        return (value.half() if halve else value).contiguous()

    save_model(out / "model", net.config, {k: stored(k, v) for k, v in net.state_dict().items()})


class Log:
    """Loss terms to ``metrics.csv``, a row every REPORT_STEPS steps; these and validation figures to TensorBoard."""

    FIELDS = ("step", "stage", "minutes", "learning_rate", "loss", "class", "box", "disparity", "bpp", "feature")

    def __init__(self, out: Path, active: bool, step: int) -> None:
        self.path = out / "metrics.csv"
        # What a killed run logged after its last checkpoint is hidden.
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step or None) if active else None

    def write(self, progress: Progress, stage: str, learning_rate: float, terms: dict[str, float]) -> None:
        """The means of the last steps' loss terms."""
        if self.board is None:
            return
        new = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(
                {
                    "step": progress.step,
                    "stage": stage,
                    "minutes": round(progress.minutes, 2),
                    "learning_rate": learning_rate,
                    **{k: round(v, 5) for k, v in terms.items()},
                }
            )
        for name, value in {"learning rate": learning_rate, **terms}.items():
            self.board.add_scalar(f"{stage}/{name}", value, progress.step)

    def validation(self, step: int, name: str, figures: dict[str, float]) -> None:
        """AP and the other figures on held-out samples; ``name`` tells with which rate."""
        if self.board is not None:
            for key, value in figures.items():
                self.board.add_scalar(f"validation {name}/{key}", value, step)

    def close(self) -> None:
        """Write what is still buffered."""
        if self.board is not None:
            self.board.close()
