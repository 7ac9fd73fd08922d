# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: KITTI roots with their shares, or rendered scenes; for training and for validation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.kitti import read_split
from ..files import write_whole
from ..geometry import InputTransform
from ..networks.config import MvsfcConfig
from ..render.layouts import KITTI_SIZE
from .config import TrainConfig, TrainError
from .samples import SampleStore, build_store

__all__ = ["Mixture", "complete_shares", "make_stores", "open_stores", "parse_root"]


@dataclass(frozen=True)
class Mixture:
    """Stores that are sampled together; ``shares`` of the samples come from each (they add up to 1)."""

    stores: tuple[SampleStore, ...]
    shares: tuple[float, ...]

    def __len__(self) -> int:
        return sum(map(len, self.stores))

    def order(self, seed: int, epoch: int) -> list[tuple[int, int]]:
        """Store and sample of each place of an epoch, which depend on the arguments alone.

        An epoch is as long as all stores together. Each store is gone through in passes of its own, however many its
        share makes, in a new order each time.
        """
        counts = [round(share * len(self)) for share in self.shares]
        counts[int(np.argmax(counts))] += len(self) - sum(counts)
        which = np.random.default_rng((seed, epoch)).permutation(np.repeat(np.arange(len(counts)), counts))
        places = []
        for number, (store, count) in enumerate(zip(self.stores, counts, strict=True)):
            turns = np.arange(epoch * count, (epoch + 1) * count)
            orders = {
                turn: np.random.default_rng((seed, number, int(turn), 3)).permutation(len(store))
                for turn in np.unique(turns // len(store))
            }
            places.append(iter([int(orders[t // len(store)][t % len(store)]) for t in turns]))
        return [(int(number), next(places[number])) for number in which]


def parse_root(text: str) -> tuple[Path, float | None]:
    """``ROOT`` or ``ROOT:SHARE`` as the command line takes it. Raises TrainError where the share is none."""
    root, colon, share = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), None
    try:
        value = float(share)
    except ValueError:
        raise TrainError(f"--data: expected ROOT or ROOT:SHARE with a number as share, got {text}") from None
    if not 0 < value <= 1:
        raise TrainError(f"--data: expected a share above 0 and at most 1, got {text}")
    return Path(root), value


def complete_shares(given: Sequence[float | None], sizes: Sequence[int]) -> tuple[float, ...]:
    """Shares that add up to 1: those that were given, and by size what is left for the others."""
    fixed = sum(share or 0.0 for share in given)
    free = sum(size for share, size in zip(given, sizes, strict=True) if share is None)
    if fixed > 1 + 1e-6 or (free and fixed >= 1) or (not free and abs(fixed - 1) > 0.01):
        raise TrainError(f"--data: expected shares that add up to 1, or less where a root has none, got {fixed:g}")
    return tuple(
        (1 - fixed) * size / free if share is None else share for share, size in zip(given, sizes, strict=True)
    )


def _frame_ids(root: Path, splits: Path | None, held_out: bool) -> dict[str, list[str]]:
    """Names of the frames of a KITTI root to train on and to validate on.

    Chosen by ``splits``, else by the root's own ImageSets; else, where none are held out elsewhere, every tenth one is.
    """
    labels = root / "training" / "label_2"
    if not labels.is_dir():
        raise TrainError(
            f"{labels}: expected a folder of KITTI labels (with calib, and image_2 and image_3 if there are images)"
        )
    folder = splits or root / "ImageSets"
    if splits or (folder / "train.txt").is_file():
        return {part: read_split(folder / f"{part}.txt") for part in ("train", "val")}
    every = sorted(p.stem for p in labels.glob("*.txt"))
    if held_out:
        return {"train": every, "val": []}
    return {"train": [e for i, e in enumerate(every) if i % 10 != 9], "val": every[9::10]}


def make_stores(
    config: MvsfcConfig,
    train: TrainConfig,
    data: Sequence[str],
    validate_on: Sequence[Path],
    splits: Path | None,
    out: Path,
    workers: int,
    say: Callable[[str], None],
) -> None:
    """Make the training and validation samples, once, in ``out``; ``open_stores`` opens them."""
    columns = InputTransform(*KITTI_SIZE, config.crop_top, config.width, config.height).scaled_width
    if columns < 0.9 * config.width:
        say(
            f"config: width {config.width} is {100 - 100 * columns / config.width:.0f} % padding: KITTI's images, "
            f"scaled to height {config.height}, have {columns} columns"
        )

    def build(name: str, root: Path | None, ids: list[str], count: int, seed: int) -> None:
        began = time.monotonic()

        def report(done: int, total: int) -> None:
            if done % 100 == 0 or done == total:
                rate = done / (time.monotonic() - began)
                say(f"{name} samples: {done}/{total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left")

        build_store(out / "samples" / name, config, root, ids, count, seed, workers, report)

    roots: list[Path | None] = [parse_root(text)[0] for text in data] or [None]
    made = []
    for number, root in enumerate(roots):
        suffix = f"-{number + 1}" if number else ""
        ids = _frame_ids(root, splits, bool(validate_on)) if root else {"train": [], "val": []}
        made.append(f"train{suffix}")
        build(made[-1], root, ids["train"], train.samples, train.seed + number)
        chosen = ids["val"][: train.validation_samples]
        if chosen or root is None:
            made.append(f"val{suffix}")
            build(made[-1], root, chosen, train.validation_samples, train.seed + 1000)
    for number, root in enumerate(validate_on):
        every = _frame_ids(root, None, True)["train"]
        made.append(f"val-real-{number + 1}" if (root / "training" / "image_2").is_dir() else f"val-extra-{number + 1}")
        build(made[-1], root, every, len(every), train.seed + 1000)
    write_whole(out / "samples" / "stores.json", lambda beside: beside.write_text(json.dumps({"stores": made})))


def open_stores(out: Path, data: Sequence[str]) -> tuple[Mixture, dict[str, SampleStore]]:
    """What to train on, and the validation sets by name."""
    names = json.loads((out / "samples" / "stores.json").read_text())["stores"]
    stores = {name: SampleStore(out / "samples" / name) for name in names}
    training = tuple(store for name, store in stores.items() if name.startswith("train"))
    given = [parse_root(text)[1] for text in data] or [None]
    shares = complete_shares(given, [len(store) for store in training])
    return Mixture(training, shares), {name: store for name, store in stores.items() if name.startswith("val")}
