# SPDX-License-Identifier: Apache-2.0
"""Rendered stereo pairs in KITTI's geometry, for layouts from real labels or from built-in statistics.

One scene in the label frame is drawn through both projection matrices with a z-buffer, so the disparity is exact by
construction. Surfaces are functions of world and object coordinates, so both views show the same ones. Everything is
seeded: same arguments, same pixels.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sicm_ros.data.source import StereoFrame
from sicm_ros.files import write_whole
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import render_pair

_FOLDERS = ("image_2", "image_3", "label_2", "calib", "disp_occ_0")

__all__ = ["render_dataset", "rendered_frame", "rendered_frames", "rendered_names"]


def frame_seed(seed: int, name: str) -> int:
    """The seed of one frame: a hash of the data set's seed and the frame's name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")


def _write_png(path: Path, image: np.ndarray) -> None:
    import cv2

    # Encoded in memory: OpenCV does not say why it could not write a file.
    data = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1]
    write_whole(path, lambda beside: beside.write_bytes(data.tobytes()))


def _render_frame(task: tuple[str, str, str | None, str | None, int]) -> str:
    from sicm_ros.data import kitti

    root, name, layouts_dir, calib_dir, seed = task
    base = Path(root) / "training"
    one = frame_seed(seed, name)
    rig = kitti.read_object_calib(Path(calib_dir) / f"{name}.txt") if calib_dir else KITTI_RIG
    width, height = KITTI_SIZE
    if layouts_dir:
        layout = kitti.read_labels(Path(layouts_dir) / f"{name}.txt")
    else:
        layout = random_layout(np.random.default_rng(np.random.SeedSequence([one, 1])), rig, width, height)
    pair = render_pair(layout, rig, width, height, one)
    _write_png(base / "image_2" / f"{name}.png", pair.left)
    _write_png(base / "image_3" / f"{name}.png", pair.right)
    _write_png(base / "disp_occ_0" / f"{name}.png", np.clip(pair.disparity * 256 + 0.5, 0, 65535).astype(np.uint16))
    kitti.write_object_calib(base / "calib" / f"{name}.txt", rig)
    # The label is written last: it marks the frame as finished.
    kitti.write_labels(base / "label_2" / f"{name}.txt", pair.labels)
    return name


def render_dataset(
    root: str | Path,
    layouts_dir: str | Path | None = None,
    calib_dir: str | Path | None = None,
    split_file: str | Path | None = None,
    seed: int = 0,
    workers: int = 1,
    count: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write a KITTI object folder: ``training/{image_2,image_3,label_2,calib,disp_occ_0}``.

    Layouts come from ``layouts_dir`` (KITTI labels; the frames of ``split_file``, or all of them) with the calibrations
    of ``calib_dir``; without ``layouts_dir``, ``count`` frames of built-in layouts. Finished frames are skipped, so a
    killed run continues. Disparity maps are uint16 PNG files, 256 times the pixels. ``progress(done, total)`` is called
    after each frame. Returns the frames' names.
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
    tasks = [
        (str(root), n, str(layouts_dir) if layouts_dir else None, str(calib_dir) if calib_dir else None, seed)
        for n in missing
    ]
    if progress:
        progress(done, len(names))
    if workers <= 1:
        for task in tasks:
            _render_frame(task)
            done += 1
            if progress:
                progress(done, len(names))
        return names
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(_render_frame, tasks):
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
