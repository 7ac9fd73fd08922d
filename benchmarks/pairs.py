# SPDX-License-Identifier: Apache-2.0
"""Stereo pairs for the benchmarks of the codec, real ones and rendered ones, and how long all of them will take."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sicm_ros.data.kitti import open_source
from sicm_ros.data.rendered import rendered_frame
from sicm_ros.data.source import StereoFrame
from sicm_ros.model_store import StoredModel
from sicm_ros.preprocessing import prepare


def real_pairs(count: int, kitti: Path | None) -> list[tuple[Path, int]]:
    """Sources and places of the real pairs among ``count``: all in ``kitti`` (a source of ``sicm``, or a folder of
    such), but no more than half of ``count``, evenly chosen."""
    if kitti is None:
        return []
    folders = [f for f in sorted(kitti.iterdir()) if (f / "training").is_dir() or (f / "image_2").is_dir()]
    found = [(folder, i) for folder in folders or [kitti] for i in range(len(open_source(folder)))]
    used = min(len(found), count // 2)
    return [found[k * len(found) // used] for k in range(used)]


def frames(count: int, kitti: Path | None, seed: int) -> Iterator[StereoFrame]:
    """``count`` pairs: the real ones, then rendered ones of random layouts."""
    real = real_pairs(count, kitti)
    for folder, i in real:
        yield open_source(folder)[i]
    for i in range(count - len(real)):
        yield rendered_frame(i, seed)


T = TypeVar("T")
# Wide enough for the tables where the output goes to a file.
console = Console(width=None if sys.stdout.isatty() else 160)


def watched(items: Iterable[T], total: int, what: str = "pairs") -> Iterable[T]:
    """The items, with a progress bar on standard error."""
    return track(items, what, total, console=Console(stderr=True))


@torch.inference_mode()
def latents(model: StoredModel, frame: StereoFrame) -> tuple[Tensor, Tensor]:
    """Both views' latents (1, C, h, w) before gain and quantisation."""
    left, right, _ = prepare(frame.left, frame.right, model.transform, model.device)
    return model.net.latents(model.net.features(left, right))
