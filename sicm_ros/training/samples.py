# SPDX-License-Identifier: Apache-2.0
"""Training samples at the network's input size: from a KITTI folder's images, or rendered for its layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.kitti import KittiObject, read_labels, read_object_calib
from ..files import write_whole
from ..geometry import InputTransform, Object3D, StereoRig
from ..networks.config import MvsfcConfig
from ..preprocessing import resize_view
from ..render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from ..render.pair import render_pair

__all__ = ["Sample", "SampleStore", "build_store", "recorded_count"]


JOURNAL = "made.jsonl"  # the recipe, then a line for each sample that is finished; gone when all are


@dataclass(frozen=True)
class Sample:
    """One stereo pair as the network sees it: ``labels``' 2D boxes and ``rig`` are those of the network's input."""

    left: np.ndarray  # (h, w, 3) uint8 RGB
    right: np.ndarray
    disparity: np.ndarray  # (h, w) float32, left view, pixels; 0 where unknown
    rig: StereoRig
    labels: list[Object3D]


class SampleStore:
    """Samples in flat files that are read through the page cache: no decoding while training, any number of readers."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.index = json.loads((self.root / "index.json").read_text())
        shape = (self.index["count"], self.index["height"], self.index["width"])
        self.images = np.memmap(self.root / "images.u8", np.uint8, "r", shape=(shape[0], 2, *shape[1:], 3))
        self.disparity = np.memmap(self.root / "disparity.f16", np.float16, "r", shape=shape)

    def __reduce__(self) -> tuple[type[SampleStore], tuple[Path]]:
        """Another process opens the files itself; a pickled map would carry all that is in them."""
        return SampleStore, (self.root,)

    def __len__(self) -> int:
        return self.index["count"]

    def labels(self, i: int) -> list[Object3D]:
        """The labels of sample ``i``."""
        return [Object3D(**{**o, "bbox": tuple(o["bbox"])}) for o in self.index["samples"][i]["labels"]]

    def rig(self, i: int) -> StereoRig:
        """The network rig of sample ``i``."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.index["samples"][i]["rig"].items()
        }
        return StereoRig(**fields)

    def __getitem__(self, i: int) -> Sample:
        return Sample(
            np.asarray(self.images[i, 0]),
            np.asarray(self.images[i, 1]),
            np.asarray(self.disparity[i], np.float32),
            self.rig(i),
            self.labels(i),
        )


def _to_network(labels: Sequence[Object3D], transform: InputTransform) -> list[Object3D]:
    """Labels with their 2D boxes in network pixels, clipped to the network's input."""
    moved = []
    for o in labels:
        values = {**asdict(o)}
        box = transform.to_network(np.array(o.bbox).reshape(2, 2))
        values["bbox"] = tuple(map(float, np.clip(box, 0, [transform.width - 1, transform.height - 1]).reshape(-1)))
        moved.append(Object3D(**values))
    return moved


def _semi_global_disparity(left: np.ndarray, right: np.ndarray, transform: InputTransform) -> np.ndarray:
    """Disparity of the left view at the network's input size (h, w) float32, in pixels of that; 0 where unknown.

    Semi-global matching of the camera's images (H, W, 3), with its check from left to right: at full resolution, since
    an object at 40 m has a fraction of a pixel of the network's input to tell its depth by.
    """
    top = transform.crop_top
    disparities = max(16, left.shape[1] // 8 // 16 * 16)
    matcher = cv2.StereoSGBM.create(
        0, disparities, 5, P1=600, P2=2400, disp12MaxDiff=1, uniquenessRatio=5, speckleWindowSize=50, speckleRange=2
    )
    # Without the margin the matcher gives nothing in the first columns.
    views = [cv2.copyMakeBorder(view[top:], 0, 0, disparities, 0, cv2.BORDER_REPLICATE) for view in (left, right)]
    disparity = np.maximum(matcher.compute(*views)[:, disparities:].astype(np.float32) / 16, 0)
    columns = min(transform.scaled_width, transform.width)
    scaled = cv2.resize(disparity, (transform.scaled_width, transform.height), interpolation=cv2.INTER_NEAREST)
    out = np.zeros((transform.height, transform.width), np.float32)
    out[:, :columns] = scaled[:, :columns] * (transform.scaled_width / left.shape[1])
    return out


def _real_sample(frames: KittiObject, i: int, config: MvsfcConfig) -> Sample:
    frame = frames[i]
    h, w = frame.left.shape[:2]
    transform = InputTransform(w, h, config.crop_top, config.width, config.height)
    return Sample(
        resize_view(frame.left, transform),
        resize_view(frame.right, transform),
        _semi_global_disparity(frame.left, frame.right, transform),
        transform.rig(frame.rig),
        _to_network(frame.labels or [], transform),
    )


def _rendered_sample(layout: Sequence[Object3D], rig: StereoRig, config: MvsfcConfig, seed: int) -> Sample:
    transform = InputTransform(*KITTI_SIZE, config.crop_top, config.width, config.height)
    pair = render_pair(layout, transform.rig(rig), config.width, config.height, seed)
    return Sample(pair.left, pair.right, pair.disparity, pair.rig, pair.labels)


@dataclass(frozen=True)
class _Job:
    """How to make sample number ``i``; picklable, so that worker processes can."""

    config: MvsfcConfig
    root: str | None
    ids: tuple[str, ...]
    real: bool
    seed: int

    def __call__(self, i: int) -> Sample:
        cv2.setNumThreads(1)
        if self.root is None:
            rng = np.random.default_rng((self.seed, i))
            layout = random_layout(rng, KITTI_RIG, *KITTI_SIZE)
            return _rendered_sample(layout, KITTI_RIG, self.config, int(rng.integers(2**31)))
        if self.real:
            return _real_sample(KittiObject(self.root, ids=list(self.ids)), i, self.config)
        folder = Path(self.root) / "training"
        name = self.ids[i % len(self.ids)]
        rng = np.random.default_rng((self.seed, int(name), i // len(self.ids)))
        return _rendered_sample(
            read_labels(folder / "label_2" / f"{name}.txt"),
            read_object_calib(folder / "calib" / f"{name}.txt"),
            self.config,
            int(rng.integers(2**31)),
        )


def recorded_count(root: Path) -> int | None:
    """How many samples the store in ``root`` has, or was to have when its making was stopped; None without a store."""
    if (root / "index.json").is_file():
        return json.loads((root / "index.json").read_text())["recipe"]["count"]
    if (root / JOURNAL).is_file():
        with (root / JOURNAL).open() as file:
            return json.loads(file.readline() or "{}").get("count")
    return None


def _finished(journal: Path, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Rig and labels of each sample that a run which was stopped has made by the same recipe."""
    lines = journal.read_text().split("\n")[:-1] if journal.is_file() else []  # a kill may leave a part of a line
    if not lines or json.loads(lines[0]) != recipe:
        return []
    return [json.loads(line) for line in lines[1:]]


def build_store(
    out: str | Path,
    config: MvsfcConfig,
    root: str | Path | None,
    ids: Sequence[str],
    count: int,
    seed: int,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> SampleStore:
    """Make ``count`` samples in ``out``, or take those that are there if they were made the same way.

    With ``root`` None the layouts are drawn at random. A KITTI folder with images gives the images; one with only
    ``label_2`` and ``calib`` gets images rendered for its layouts. More samples than ``ids`` render each layout anew.
    What a call that was killed has finished is in a journal in ``out``; the next one goes on behind it.
    """
    out = Path(out)
    real = root is not None and (Path(root) / "training" / "image_2").is_dir()
    if real:
        count = min(count, len(ids))
    recipe = {
        "config": [config.height, config.width, config.crop_top],
        "real": real,
        "seed": seed,
        "count": count,
        "ids": [ids[0], ids[-1], len(ids)] if ids else [],
        "layouts": "random" if root is None else "given",
    }
    if (out / "index.json").is_file() and json.loads((out / "index.json").read_text())["recipe"] == recipe:
        return SampleStore(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.json").unlink(missing_ok=True)
    done = _finished(out / JOURNAL, recipe)
    job = _Job(config, None if root is None else str(root), tuple(ids), real, seed)
    _make_samples(out, job, recipe, done, workers, progress)
    index = {"recipe": recipe, "count": count, "height": config.height, "width": config.width, "samples": done}
    write_whole(out / "index.json", lambda beside: beside.write_text(json.dumps(index)))
    (out / JOURNAL).unlink()
    return SampleStore(out)


def _make_samples(
    out: Path,
    job: _Job,
    recipe: dict[str, Any],
    done: list[dict[str, Any]],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make the samples behind those that are ``done``, and add them there and to the journal, one by one."""
    count, h, w = recipe["count"], job.config.height, job.config.width
    mode: Any = "r+" if done else "w+"
    images = np.memmap(out / "images.u8", np.uint8, mode, shape=(count, 2, h, w, 3))
    disparity = np.memmap(out / "disparity.f16", np.float16, mode, shape=(count, h, w))
    missing = range(len(done), count)
    # Written anew: the old one may end with a part of a line.
    lines = "".join(json.dumps(row) + "\n" for row in (recipe, *done))
    write_whole(out / JOURNAL, lambda beside: beside.write_text(lines))
    with ExitStack() as stack:
        journal = stack.enter_context((out / JOURNAL).open("a"))
        made: Iterator[Sample] = map(job, missing)
        if workers > 1:  # the standard library's, since training also runs where there is no Dask
            made = stack.enter_context(ProcessPoolExecutor(workers)).map(job, missing, chunksize=8)
        for i, sample in zip(missing, made, strict=True):
            images[i, 0], images[i, 1], disparity[i] = sample.left, sample.right, sample.disparity
            done.append({"rig": asdict(sample.rig), "labels": [asdict(o) for o in sample.labels]})
            # After its pixels: a sample that the journal names is there.
            journal.write(json.dumps(done[-1]) + "\n")
            journal.flush()
            if progress:
                progress(i + 1, count)
    images.flush()
    disparity.flush()
