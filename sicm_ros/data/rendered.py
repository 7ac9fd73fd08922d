# SPDX-License-Identifier: Apache-2.0
"""Rendered stereo pairs in KITTI's geometry, for layouts from real labels or from built-in statistics.

One scene in the label frame is drawn through both projection matrices with a z-buffer, so the disparity is exact by
construction. Surfaces are functions of world and object coordinates, so both views show the same ones. Everything is
seeded: same arguments, same pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sicm_ros.cluster import spread
from sicm_ros.data.source import StereoFrame
from sicm_ros.files import write_whole
from sicm_ros.geometry import Object3D, StereoRig
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import render_pair

_FOLDERS = ("image_2", "image_3", "label_2", "calib", "disp_occ_0")

__all__ = ["render_dataset", "rendered_frame", "rendered_frames", "rendered_names"]


def frame_seed(seed: int, name: str) -> int:
    """The seed of one frame: a hash of the data set's seed and the frame's name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class _Scene:
    """One frame to render: its layout (None: drawn from built-in statistics), its rig, its seed."""

    name: str
    layout: Sequence[Object3D] | None
    rig: StereoRig
    seed: int


@dataclass(frozen=True)
class _Rendered:
    """The files of a frame: PNG files by their folder, and what the labels are written from."""

    pictures: dict[str, bytes]
    labels: list[Object3D]


def _scenes(names: Sequence[str], layouts_dir: Path | None, calib_dir: Path | None, seed: int) -> Iterator[_Scene]:
    from sicm_ros.data import kitti

    for name in names:
        rig = kitti.read_object_calib(calib_dir / f"{name}.txt") if calib_dir else KITTI_RIG
        layout = kitti.read_labels(layouts_dir / f"{name}.txt") if layouts_dir else None
        yield _Scene(name, layout, rig, frame_seed(seed, name))


def _render(scene: _Scene) -> _Rendered:
    """The work of one process, which reads and writes no file."""
    width, height = KITTI_SIZE
    layout = scene.layout
    if layout is None:
        rng = np.random.default_rng(np.random.SeedSequence([scene.seed, 1]))
        layout = random_layout(rng, scene.rig, width, height)
    pair = render_pair(layout, scene.rig, width, height, scene.seed)
    disparity = np.clip(pair.disparity * 256 + 0.5, 0, 65535).astype(np.uint16)
    images = {"image_2": pair.left, "image_3": pair.right, "disp_occ_0": disparity}
    return _Rendered({folder: _png(image) for folder, image in images.items()}, pair.labels)


def _png(image: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


def _write(base: Path, scene: _Scene, rendered: _Rendered) -> None:
    from sicm_ros.data import kitti

    for folder, data in rendered.pictures.items():
        write_whole(base / folder / f"{scene.name}.png", partial(Path.write_bytes, data=data))
    kitti.write_object_calib(base / "calib" / f"{scene.name}.txt", scene.rig)
    # The label is written last: it marks the frame as finished.
    kitti.write_labels(base / "label_2" / f"{scene.name}.txt", rendered.labels)


def render_dataset(
    root: str | Path,
    layouts_dir: str | Path | None = None,
    calib_dir: str | Path | None = None,
    split_file: str | Path | None = None,
    seed: int = 0,
    workers: int = 1,
    count: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cluster: str = "",
) -> list[str]:
    """Write a KITTI object folder: ``training/{image_2,image_3,label_2,calib,disp_occ_0}``.

    Layouts come from ``layouts_dir`` (KITTI labels; the frames of ``split_file``, or all of them) with the calibrations
    of ``calib_dir``; without ``layouts_dir``, ``count`` frames of built-in layouts. Finished frames are skipped, so a
    killed run continues. Disparity maps are uint16 PNG files, 256 times the pixels. The work is that of ``workers``
    processes, or of the cluster whose scheduler has the address ``cluster``; the pixels are the same.
    ``progress(done, total)`` is called after each frame. Returns the frames' names.
    """
    from sicm_ros.data import kitti

    root = Path(root)
    if layouts_dir is not None:
        names = kitti.read_split(split_file) if split_file else sorted(p.stem for p in Path(layouts_dir).glob("*.txt"))
        if not names:
            raise ValueError(f"{layouts_dir}: no label files NNNNNN.txt found")
        names = names[:count] if count else names
    else:
        names = kitti.read_split(split_file) if split_file else rendered_names(count or 100)
    missing = [n for n in names if not (root / "training" / "label_2" / f"{n}.txt").exists()]
    layouts, calib = (str(Path(folder).resolve()) if folder else "" for folder in (layouts_dir, calib_dir))
    recipe: dict[str, object] = {"seed": seed, "layouts": layouts, "calib": calib}
    _claim(root / "training", recipe, missing)
    for folder in _FOLDERS:
        (root / "training" / folder).mkdir(exist_ok=True)
    done = len(names) - len(missing)
    if progress:
        progress(done, len(names))
    scenes = _scenes(missing, Path(layouts_dir) if layouts_dir else None, Path(calib_dir) if calib_dir else None, seed)
    with closing(spread(_render, scenes, workers=workers, cluster=cluster)) as results:
        for scene, rendered in results:
            _write(root / "training", scene, rendered)
            done += 1
            if progress:
                progress(done, len(names))
    return names


def _claim(base: Path, recipe: dict[str, object], missing: list[str]) -> None:
    """Make ``base`` and note that it is rendered by ``recipe``; a rendering that goes on finds its recipe there.

    Raises ValueError if it is another one's, or if a file of the ``missing`` frames is there that nobody rendered.
    """
    note = base / "rendered.json"
    try:
        before = json.loads(note.read_text())
    except FileNotFoundError:
        before = None
    except ValueError:
        raise ValueError(f"{note}: expected the recipe of a rendering: name another folder") from None
    if before is not None and before != recipe:
        raise ValueError(f"{note}: rendered with other settings ({before}, not {recipe}): name another folder")
    for name in missing if before is None else ():
        for folder in _FOLDERS:
            for path in (base / folder / f"{name}.png", base / folder / f"{name}.txt"):
                if path.exists():
                    raise ValueError(f"{path}: no rendering wrote this, so it stays: name another folder")
    base.mkdir(parents=True, exist_ok=True)
    if before is None and missing:
        write_whole(note, lambda beside: beside.write_text(json.dumps(recipe) + "\n"))


def rendered_names(count: int) -> list[str]:
    """The names of so many frames of built-in layouts."""
    return [f"{k:06d}" for k in range(count)]


def rendered_frame(i: int, seed: int = 0) -> StereoFrame:
    """A rendered pair of a random layout in KITTI's geometry."""
    layout = random_layout(np.random.default_rng([seed, i]), KITTI_RIG, *KITTI_SIZE)
    pair = render_pair(layout, KITTI_RIG, *KITTI_SIZE, seed=seed + i)
    return StereoFrame(f"{i:06d}", pair.left, pair.right, pair.rig, i * 10**8, i * 10**8, pair.labels)


def rendered_frames(count: int, seed: int = 0) -> list[StereoFrame]:
    """Rendered pairs of random layouts in KITTI's geometry, for machines without KITTI."""
    return [rendered_frame(i, seed) for i in range(count)]
