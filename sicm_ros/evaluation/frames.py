# SPDX-License-Identifier: Apache-2.0
"""The labelled frames that a comparison runs on: camera images of KITTI, or images rendered for its layouts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.kitti import KittiError, KittiObject, read_labels, read_object_calib, read_split
from ..data.source import StereoFrame
from ..geometry import Object3D
from ..render.layouts import KITTI_SIZE
from ..render.pair import render_pair

__all__ = ["LabelledFrames"]


@dataclass(frozen=True)
class LabelledFrames:
    """Frames of ``root/training``, which holds ``label_2``, ``calib`` and, where there are images, ``image_2`` and
    ``image_3``.

    Without images they are rendered, 1242x375, with ``seed``: the same pixels everywhere.
    """

    root: Path
    names: tuple[str, ...]
    seed: int
    rendered: bool
    drive: bool = False  # the frames follow each other in time
    selection: str = ""  # what tells the list that ``names`` begin from others

    @classmethod
    def open(
        cls, root: Path, split: Path | None = None, count: int | None = None, seed: int = 2024, drive: bool = False
    ) -> LabelledFrames:
        """The first ``count`` frames of ``split``, a file of ids, one a line; default: all that are labelled.

        ``drive``: they follow each other in time. Raises KittiError.
        """
        labels = root / "training" / "label_2"
        if not labels.is_dir():
            raise KittiError(f"{labels}: expected a folder of label files, there is none")
        names = read_split(split) if split is not None else sorted(path.stem for path in labels.glob("*.txt"))
        if not names:
            raise KittiError(f"{split or labels}: expected frames, there is none")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise KittiError(f"{split}: expected each frame once, {twice} is in it {names.count(twice)} times")
        absent = [name for name in names[:count] if not (labels / f"{name}.txt").is_file()]
        if absent:
            raise KittiError(f"{labels / absent[0]}.txt: no such file ({len(absent)} frames of {split} have none)")
        images = any((root / "training" / folder).is_dir() for folder in ("image_2", "image_0"))
        selection = hashlib.blake2b(" ".join(names).encode(), digest_size=6).hexdigest()
        return cls(root, tuple(names[:count]), seed, not images, drive, selection)

    def __len__(self) -> int:
        return len(self.names)

    def labels(self, name: str) -> list[Object3D]:
        """The labels of a frame as its file has them."""
        return read_labels(self.root / "training" / "label_2" / f"{name}.txt")

    def frame(self, name: str) -> StereoFrame:
        """A frame with its labels. Raises KittiError."""
        if not self.rendered:
            return KittiObject(self.root, ids=[name])[0]
        rig = read_object_calib(self.root / "training" / "calib" / f"{name}.txt")
        rng = np.random.default_rng((self.seed, self.names.index(name)))
        pair = render_pair(self.labels(name), rig, *KITTI_SIZE, int(rng.integers(2**31)))
        return StereoFrame(name, pair.left, pair.right, pair.rig, 0, 0, pair.labels)
