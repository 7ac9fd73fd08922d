# SPDX-License-Identifier: Apache-2.0
"""The results of the demo: pictures, tables, a summary."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sicm_ros.codec.packet import bits_per_pixel
from sicm_ros.data.source import StereoFrame
from sicm_ros.files import write_whole
from sicm_ros.geometry import Object3D

__all__ = ["DECODER_STAGES", "ENCODER_STAGES", "FrameResult", "draw_pictures", "print_tables", "write_summary"]

ENCODER_STAGES, DECODER_STAGES = ("preprocess", "backbone", "smfc", "entropy"), ("entropy", "smfc", "analysis")


@dataclass
class FrameResult:
    """The result of one stereo pair. Times in milliseconds; ``total_ms`` from the player's sending to the boxes."""

    name: str
    stamp_ns: int
    raw_bytes: int
    image_size: tuple[int, int]  # width and height of each image
    packet_bytes: int | None = None
    boxes: list[Object3D] | None = None
    encoder_ms: dict[str, float] = field(default_factory=dict)
    decoder_ms: dict[str, float] = field(default_factory=dict)
    total_ms: float | None = None

    @property
    def bits_per_pixel(self) -> float | None:
        """Packet bits for each pixel of both images."""
        return None if self.packet_bytes is None else bits_per_pixel(self.packet_bytes, *self.image_size)

    @property
    def transport_ms(self) -> float | None:
        """What the stages leave of the total: image and packet transport, pairing, waiting."""
        if self.total_ms is None or not self.decoder_ms:
            return None
        return self.total_ms - sum(self.encoder_ms.values()) - sum(self.decoder_ms.values())


def draw_pictures(source: Any, results: Sequence[FrameResult], out: Path, classes: Sequence[str]) -> list[Path]:
    """One picture for each frame, and all of them on one sheet, which is the last of the paths."""
    import cv2

    from sicm_ros.pictures import detection_figure, write_picture

    paths, small = [], []
    for i, result in enumerate(results):
        frame: StereoFrame = source[i]
        labels = [label for label in frame.labels or [] if label.label in classes]
        title = f"{result.name}: no packet"
        if result.packet_bytes:
            title = f"{result.name}: {result.packet_bytes} bytes, {result.bits_per_pixel:.3f} bits per pixel, "
            title += "no boxes came" if result.boxes is None else f"{len(result.boxes)} boxes"
        figure = detection_figure(frame.left, result.boxes or [], frame.rig, labels, title)
        paths.append(out / f"frame_{result.name}.png")
        write_picture(paths[-1], figure)
        size = (960, round(figure.shape[0] * 960 / figure.shape[1]))
        small.append(cv2.resize(figure, size, interpolation=cv2.INTER_AREA))
    columns = 1 if len(small) < 4 else 2
    height = max(picture.shape[0] for picture in small)
    rows = []
    for start in range(0, len(small), columns):
        row = [
            np.pad(picture, ((0, height - picture.shape[0]), (0, 0), (0, 0)))
            for picture in small[start : start + columns]
        ]
        row += [np.zeros_like(row[0])] * (columns - len(row))
        rows.append(np.concatenate(row, axis=1))
    paths.append(out / "overview.png")
    write_picture(paths[-1], np.concatenate(rows, axis=0))
    return paths


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def print_tables(results: Sequence[FrameResult], console: Console) -> None:
    """Print a row for each pair, and the spread of each stage."""
    table = Table(title="stereo pairs", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (
        "frame",
        "packet\nbytes",
        "bits /\npixel",
        "raw\nkB",
        "raw /\npacket",
        "encode\nms",
        "ROS 2\nms",
        "decode\nms",
        "total\nms",
        "boxes",
    ):
        table.add_column(name, justify="left" if name == "frame" else "right", no_wrap=True)
    for r in results:
        table.add_row(
            r.name,
            _number(r.packet_bytes),
            _number(r.bits_per_pixel, 4),
            _number(r.raw_bytes / 1000),
            _number(r.raw_bytes / r.packet_bytes if r.packet_bytes else None),
            _number(sum(r.encoder_ms.values()) if r.encoder_ms else None),
            _number(r.transport_ms),
            _number(sum(r.decoder_ms.values()) if r.decoder_ms else None),
            _number(r.total_ms),
            "lost" if r.boxes is None else str(len(r.boxes)),
        )
    console.print(table)

    stages = Table(title="stages, milliseconds", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    stages.add_column("stage")
    for name in ("median", "least", "most"):
        stages.add_column(name, justify="right")
    rows: list[tuple[str, list[float]]] = [
        (f"encoder: {stage}", [r.encoder_ms[stage] for r in results if stage in r.encoder_ms])
        for stage in ENCODER_STAGES
    ]
    rows += [("ROS 2: images, pairing, packet", [r.transport_ms for r in results if r.transport_ms is not None])]
    rows += [
        (f"decoder: {stage}", [r.decoder_ms[stage] for r in results if stage in r.decoder_ms])
        for stage in DECODER_STAGES
    ]
    rows += [("total: images sent to boxes received", [r.total_ms for r in results if r.total_ms is not None])]
    for name, values in rows:
        if values:
            stages.add_row(name, *(f"{v:.1f}" for v in (statistics.median(values), min(values), max(values))))
    console.print(stages)


def write_summary(results: Sequence[FrameResult], out: Path, model: str, arrays: int) -> None:
    """Write ``summary.json``, the same for scripts."""
    frames = [
        {
            "name": r.name,
            "packet_bytes": r.packet_bytes,
            "bits_per_pixel": r.bits_per_pixel,
            "raw_bytes": r.raw_bytes,
            "encoder_ms": r.encoder_ms,
            "decoder_ms": r.decoder_ms,
            "transport_ms": r.transport_ms,
            "total_ms": r.total_ms,
            "boxes": None if r.boxes is None else len(r.boxes),
        }
        for r in results
    ]
    summary = {
        "model": model,
        "pairs_sent": len(results),
        "arrays_received": arrays,
        "lost": sum(r.boxes is None for r in results),
        "frames": frames,
    }
    write_whole(out / "summary.json", lambda beside: beside.write_text(json.dumps(summary, indent=1) + "\n"))
