#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Where a stereo matcher sees the surface of cars inside their boxes: on real images, or on rendered ones.

    python benchmarks/visible_surface.py REAL_ROOT [REAL_ROOT ...]
    python benchmarks/visible_surface.py --layouts KITTI --split KITTI/ImageSets/val.txt --count 100 --seed 2024

A detector that learns depth from rendered cars is biased on real ones where the two differ. The matcher is OpenCV's
semi-global matching (3-way) at full resolution; the cars are unoccluded, inside the image, and seen from an end. The
region is the inner part of the 2D box. Printed for each range of depth, in metres: the depth of the box's centre less
the near surface (15th percentile of the depths), and less the median surface.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sicm_ros.data.kitti import KittiObject, read_labels, read_object_calib, read_split
from sicm_ros.geometry import Object3D, StereoRig
from sicm_ros.render.layouts import KITTI_SIZE
from sicm_ros.render.pair import render_pair

RANGES = ((5, 15), (15, 25), (25, 45))
LARGEST_TURN = math.radians(25)  # between the heading and the line of sight
INNER_COLUMNS, INNER_ROWS = (0.2, 0.8), (0.25, 0.75)  # of the 2D box
LEAST_HEIGHT, LEAST_SHARE = 25, 0.25  # pixels; share of the region's pixels that have a disparity

Offsets = list[tuple[float, float, float]]  # depth of the centre, centre less near surface, centre less median surface


def semi_global_disparity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Disparity of the left view (h, w) in pixels, NaN where the matcher or its left-right check finds none."""
    matcher = cv2.StereoSGBM.create(
        0,
        128,
        5,
        P1=8 * 3 * 25,
        P2=32 * 3 * 25,
        disp12MaxDiff=1,
        uniquenessRatio=5,
        speckleWindowSize=50,
        speckleRange=2,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    disparity = matcher.compute(left, right).astype(np.float32) / 16
    return np.where(disparity > 0, disparity, np.nan)


def surface_offsets(left: np.ndarray, right: np.ndarray, rig: StereoRig, labels: list[Object3D]) -> Offsets:
    """What the module's text says, of each car of one frame; depths in metres."""
    disparity = semi_global_disparity(left, right)
    rows = []
    for o in labels:
        facing = abs(abs(o.alpha) - math.pi / 2) < LARGEST_TURN
        if o.label != "Car" or o.occluded or o.truncated > 0.05 or not facing:
            continue
        x0, y0, x1, y1 = o.bbox
        if y1 - y0 < LEAST_HEIGHT:
            continue
        columns = slice(*(round(x0 + share * (x1 - x0)) for share in INNER_COLUMNS))
        lines = slice(*(round(y0 + share * (y1 - y0)) for share in INNER_ROWS))
        region = disparity[lines, columns]
        seen = region[np.isfinite(region)]
        if len(seen) < LEAST_SHARE * region.size:
            continue
        depth = rig.focal_baseline / seen
        rows.append((o.z, o.z - float(np.percentile(depth, 15)), o.z - float(np.median(depth))))
    return rows


def _rendered(root: Path, seed: int, job: tuple[int, str]) -> Offsets:
    i, name = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng((seed, i))
    rig = read_object_calib(root / "training" / "calib" / f"{name}.txt")
    layout = read_labels(root / "training" / "label_2" / f"{name}.txt")
    pair = render_pair(layout, rig, *KITTI_SIZE, int(rng.integers(2**31)))
    return surface_offsets(pair.left, pair.right, rig, pair.labels)


def _real(root: Path) -> Iterator[Offsets]:
    frames = KittiObject(root)
    for frame in (frames[i] for i in range(len(frames))):
        yield surface_offsets(frame.left, frame.right, frame.rig, frame.labels or [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, nargs="*", help="KITTI object roots with images")
    parser.add_argument("--layouts", type=Path, help="KITTI root whose layouts are rendered")
    parser.add_argument("--split", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    rows: Offsets = [row for root in options.real for offsets in _real(root) for row in offsets]
    if options.layouts:
        ids = read_split(options.split)[: options.count]
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            made = pool.map(partial(_rendered, options.layouts, options.seed), enumerate(ids))
            for offsets in track(made, "rendering", len(ids), console=Console(stderr=True)):
                rows += offsets
    table = Table("depth of the centre", "cars", "centre - near surface", "centre - median surface")
    for low, high in RANGES:
        chosen = np.array([row for row in rows if low <= row[0] < high]).reshape(-1, 3)
        near, median = np.median(chosen[:, 1:], 0) if len(chosen) else (math.nan, math.nan)
        table.add_row(f"{low}-{high} m", str(len(chosen)), f"{near:.2f} m", f"{median:.2f} m")
    Console().print(table)


if __name__ == "__main__":
    main()
