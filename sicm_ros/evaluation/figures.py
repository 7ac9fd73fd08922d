# SPDX-License-Identifier: Apache-2.0
"""The figures of a comparison: AP over bytes (paper, figures 2, 3 and 5), and boxes of several systems (figure 4)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ..data.source import StereoFrame
from ..geometry import Object3D
from ..pictures import birds_eye, draw_boxes
from .summary import Comparison, Precision
from .systems import PACKETS

__all__ = ["Panel", "box_grid", "figure_png", "figure_svg", "metric_name", "rate_curves"]

# Tableau's ten colours with marks, so that curves are told apart without colours too; the next ten are dashed.
_COLOURS = tuple(mpl.colormaps["tab10"].colors)  # type: ignore[attr-defined]
_MARKS = "osD^vPX*<>"
_LINES = ("-", "--", ":")
_IOU = {("Car", True): "0.5", ("Car", False): "0.7", ("Pedestrian", True): "0.25", ("Pedestrian", False): "0.5"}
_STYLE: Any = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "sicm", "axes.grid": True, "grid.alpha": 0.3}
COLUMNS = 2  # of the grid
PANEL_WIDTH, BEV_WIDTH = 620, 230  # pixels of the image and of the view from above in a cell of the grid


def metric_name(metric: Precision) -> str:
    """Class, kind and IoU, as Car BEV@0.5."""
    name, kind = metric
    word = kind.split()[0]
    return f"{name} {word}" if word == "2D" else f"{name} {word}@{_IOU[name, kind.endswith('loose')]}"


def rate_curves(comparison: Comparison, metrics: Sequence[Precision], names: Sequence[str]) -> Figure:
    """AP over kilobytes of a pair for each metric, side by side; bars are the bootstrap's 90 %, dashes the uncompressed
    detector's AP."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2 * len(metrics), 4.4), layout="constrained")
        titles = {kind.name: kind.title for kind in comparison.kinds}
        for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics, strict=True):
            axes.set_xlabel("kilobytes of a stereo pair")
            axes.set_ylabel(f"AP, {metric_name(metric)}, percent (R40, moderate)")
            if all(math.isnan(p.precision[metric]) for points in comparison.points.values() for p in points):
                axes.text(0.5, 0.5, f"no {metric[0]} counts in these frames", ha="center", transform=axes.transAxes)
                continue
            for number, name in enumerate(n for n in names if len(comparison.points[n]) > 1):
                points = comparison.points[name]
                size = np.array([p.size for p in points]) / 1000
                value = np.array([p.precision[metric] for p in points])
                bounds = np.array([p.bounds.get(metric, (np.nan, np.nan)) for p in points])
                error = np.clip([value - bounds[:, 0], bounds[:, 1] - value], 0, None)
                axes.errorbar(
                    size,
                    value,
                    np.nan_to_num(error),
                    label=titles[name],
                    color=_COLOURS[number % len(_COLOURS)],
                    marker=_MARKS[number % len(_MARKS)],
                    linestyle=_LINES[number // len(_COLOURS) % len(_LINES)],
                    linewidth=2.4 if name == PACKETS else 1.2,
                    markersize=6 if name == PACKETS else 4,
                    elinewidth=0.6,
                    capsize=1.5,
                )
            if "uncompressed" in comparison.points:
                best = comparison.points["uncompressed"][0].precision[metric]
                axes.axhline(best, color="black", linestyle=":", linewidth=1, label="uncompressed")
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=7, loc="lower right")
    return figure


def figure_svg(figure: Figure) -> bytes:
    """A figure as SVG, the same bytes at each run."""
    data = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(data, format="svg", metadata={"Date": None})
    return data.getvalue()


def figure_png(figure: Figure) -> bytes:
    """A figure as PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130, metadata={"Software": None})
    return data.getvalue()


class Panel(NamedTuple):
    """What one system found in a frame."""

    title: str
    size: int  # bytes, 0 for none
    objects: Sequence[Object3D]


def box_grid(frame: StereoFrame, panels: Sequence[Panel], labels: Sequence[Object3D]) -> np.ndarray:
    """Boxes of several systems in one frame, in the image and from above, (H, W, 3) uint8 RGB: truth blue, predictions
    red."""
    factor = PANEL_WIDTH / frame.left.shape[1]
    height = round(frame.left.shape[0] * factor)
    # Drawn twice as large, so that thin lines stay smooth.
    image = cv2.resize(frame.left, (2 * PANEL_WIDTH, 2 * height), interpolation=cv2.INTER_CUBIC)
    rig = frame.rig.scaled(2 * PANEL_WIDTH / frame.left.shape[1], 2 * height / frame.left.shape[0])
    cells = []
    for panel in panels:
        drawn = draw_boxes(image, panel.objects, rig, labels, contrast=True)
        drawn = cv2.resize(drawn, (PANEL_WIDTH, height), interpolation=cv2.INTER_AREA)
        above = birds_eye(
            panel.objects,
            labels,
            rig=frame.rig,
            image_width=frame.left.shape[1],
            size=(BEV_WIDTH, height),
            reach=50,
            contrast=True,
        )
        cell = np.full((height + 22, PANEL_WIDTH + BEV_WIDTH + 4, 3), 255, np.uint8)
        cell[22:, :PANEL_WIDTH], cell[22:, PANEL_WIDTH + 4 :] = drawn, above
        text = panel.title + (f", {panel.size} bytes" if panel.size else "")
        cv2.putText(cell, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(cell)
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % COLUMNS)
    gap = np.full((cells[0].shape[0], 6, 3), 255, np.uint8)
    rows = []
    for start in range(0, len(cells), COLUMNS):
        parts = [part for cell in cells[start : start + COLUMNS] for part in (cell, gap)]
        rows.append(np.concatenate(parts[:-1], axis=1))
    return np.concatenate(rows, axis=0)
