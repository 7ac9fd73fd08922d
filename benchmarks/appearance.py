#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How images of samples look in numbers: brightness, contrast, saturation, sharpness, noise, and how alike both views
are.

    python benchmarks/appearance.py RUN/samples/train RUN/samples/train-2 ...

``sicm train`` keeps its samples in these folders, rendered and real ones apart. Each figure is the median over the
samples, with the 10th and the 90th percentile; where rendered and real differ, augmentation has to cover the difference
or the renderer has to be mended. Cars are those of at least 16 rows that nothing hides; road is the strip below each.
Values are those of 8-bit images:

- saturation: of HSV, 0 to 255;
- sharpness: mean size of the gradient over the standard deviation of the brightness, in 1/1000;
- noise: standard deviation of the finest detail where the image is smooth, from the median of its size;
- gain: mean brightness of the right view over that of the left, percent;
- mismatch: mean difference of the left view and the right view moved by the disparity, once without and once with a
  blur of two pixels, in which noise and errors of the disparity count less.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from sicm_ros.geometry import Object3D
from sicm_ros.training.samples import Sample, SampleStore

LEAST_ROWS = 16  # of a car's 2D box
SMOOTH_SHARE = 0.3  # of the pixels: those with the least gradient
MAD_TO_SIGMA = 1.4826
Figures = dict[str, list[float]]


def _gray(view: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _gradient(gray: np.ndarray) -> np.ndarray:
    return cv2.magnitude(cv2.Sobel(gray, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(gray, cv2.CV_32F, 0, 1, scale=1 / 8))


def _noise(gray: np.ndarray) -> float:
    detail = gray - cv2.GaussianBlur(gray, (3, 3), 0)
    gradient = _gradient(cv2.GaussianBlur(gray, (5, 5), 0))
    smooth = gradient <= np.quantile(gradient, SMOOTH_SHARE)
    return float(MAD_TO_SIGMA * np.median(np.abs(detail[smooth])))


def _mismatch(left: np.ndarray, right: np.ndarray, disparity: np.ndarray) -> float:
    rows, columns = np.indices(disparity.shape, np.float32)
    x = columns - disparity
    moved = cv2.remap(right, x, rows, cv2.INTER_LINEAR)
    known = (disparity > 0.5) & (x > 0)
    return float(np.abs(left - moved)[known].mean()) if known.any() else float("nan")


def _cars(labels: list[Object3D]) -> list[tuple[int, int, int, int]]:
    boxes = []
    for o in labels:
        left, top, right, bottom = (round(v) for v in o.bbox)
        if o.label == "Car" and o.occluded == 0 and o.truncated < 0.1 and bottom - top >= LEAST_ROWS:
            boxes.append((left, top, right, bottom))
    return boxes


def look(sample: Sample, into: Figures) -> None:
    """Add the figures of one sample."""

    def note(name: str, value: float) -> None:
        into.setdefault(name, []).append(value)

    left, right = _gray(sample.left), _gray(sample.right)
    seen = left[:, left.any(0)]  # without padding
    saturation = cv2.cvtColor(sample.left, cv2.COLOR_RGB2HSV)[..., 1]
    note("brightness", float(seen.mean()))
    note("contrast", float(seen.std()))
    note("saturation", float(saturation.mean()))
    note("sharpness", float(1000 * _gradient(seen).mean() / max(seen.std(), 1.0)))
    note("noise", _noise(seen))
    note("gain", float(100 * right.mean() / max(left.mean(), 1.0)))
    note("mismatch", _mismatch(left, right, sample.disparity))
    soft = [cv2.GaussianBlur(v, (0, 0), 2) for v in (left, right)]
    note("mismatch, blurred", _mismatch(soft[0], soft[1], sample.disparity))
    for x0, y0, x1, y1 in _cars(sample.labels):
        car, road = left[y0:y1, x0:x1], left[y1 + 1 : y1 + 1 + (y1 - y0) // 4, x0:x1]
        note("car: brightness", float(car.mean()))
        note("car: contrast", float(car.std()))
        note("car: saturation", float(saturation[y0:y1, x0:x1].mean()))
        note("car: sharpness", float(1000 * _gradient(car).mean() / max(car.std(), 1.0)))
        if road.size:
            note("car less road", float(car.mean() - road.mean()))
            note("road: contrast", float(road.std()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="+", help="folders with samples as sicm train keeps them")
    parser.add_argument("--count", type=int, default=200, help="samples of each, evenly spread")
    options = parser.parse_args()
    columns = []
    for folder in options.samples:
        store, figures = SampleStore(folder), Figures()
        for i in np.unique(np.linspace(0, len(store) - 1, options.count).astype(int)):
            look(store[int(i)], figures)
        columns.append(figures)
    table = Table("", *(str(folder) for folder in options.samples))
    for name in columns[0]:
        cells = []
        for figures in columns:
            values = np.array(figures.get(name, [float("nan")]))
            low, middle, high = np.nanquantile(values, (0.1, 0.5, 0.9))
            cells.append(f"{middle:.1f} ({low:.1f} to {high:.1f})")
        table.add_row(name, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
