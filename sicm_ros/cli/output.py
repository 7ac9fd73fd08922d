# SPDX-License-Identifier: Apache-2.0
"""What commands print and write: tables, JSON, progress, pictures; and the checks before the work."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ..geometry import Object3D, StereoRig


def console() -> Any:
    """Where tables go."""
    from rich.console import Console

    return Console(highlight=False)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error with rate and time left; yields a function of (done, total)."""
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    class Speed(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            speed = task.finished_speed or task.speed
            if not speed:
                return Text("")
            return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        Speed(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    bar = bars.Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(what, total=None)

    def update(done: int, total: int) -> None:
        bar.start()  # not before there is progress: an error at the start stays one line
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def check_picture_name(path: Path | None) -> None:
    """Fail where OpenCV could not write a picture of this name."""
    if path is not None and path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--picture: expected a name that ends in .png or .jpg, got {path}")


def check_range(option: str, value: float | None, low: float, high: float) -> None:
    """Fail where an option is out of its range."""
    if value is not None and not low <= value <= high:
        raise ValueError(f"{option}: expected {low:g} to {high:g}, got {value:g}")


def check_workers(workers: int | None, cluster: str) -> None:
    """Fail where both are given: a cluster has as many processes as it has."""
    if workers is not None and cluster:
        raise ValueError("--workers: expected none with --cluster, which has workers of its own")


def print_warnings(warnings: Iterable[str | None]) -> None:
    """Print what the user should know of the input on standard error, a line each; None is nothing to say."""
    for words in warnings:
        if words:
            print(f"warning: {words}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print as JSON; what is not a number there (NaN) becomes null."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(k): plain(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(v) for v in item]
        if isinstance(item, float):
            return item if math.isfinite(item) else None
        return item

    print(json.dumps(plain(value)))


def objects_json(objects: Sequence[Object3D]) -> list[dict[str, Any]]:
    """Boxes for ``print_json``."""
    return [dataclasses.asdict(o) for o in objects]


def stages_text(stage_ms: dict[str, float]) -> str:
    """Stage times and their sum in a line."""
    parts = [f"{name} {value:.1f}" for name, value in stage_ms.items()]
    return " + ".join(parts) + f" = {sum(stage_ms.values()):.1f} ms (a first pair warms up; see sicm bench)"


def print_fields(rows: Sequence[tuple[str, str]], title: str = "") -> None:
    """Print names and values below each other."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    console().print(table)


def print_objects(objects: Sequence[Object3D]) -> None:
    """Print a table of boxes."""
    from rich.table import Table

    if not objects:
        print("no detection above the threshold")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("class", "score", "x m", "y m", "z m", "length m", "width m", "height m", "heading deg"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for o in objects:
        score = "" if o.score is None else f"{o.score:.2f}"
        numbers = (o.x, o.y, o.z, o.length, o.width, o.height)
        table.add_row(o.label, score, *(f"{v:.2f}" for v in numbers), f"{math.degrees(o.rotation_y):.0f}")
    console().print(table)


def draw_picture(
    path: Path | None,
    image: np.ndarray | None,
    size: tuple[int, int],
    objects: Sequence[Object3D],
    rig: StereoRig,
    labels: Path | None,
    title: str,
) -> None:
    """Write the picture that was asked for; without an image it is the view from above alone."""
    if path is None:
        return
    from ..data.kitti import read_labels
    from ..pictures import birds_eye, detection_figure, write_picture

    truth = read_labels(labels) if labels is not None else None
    if image is None:
        write_picture(path, birds_eye(objects, truth, rig=rig, image_width=size[0]))
    else:
        write_picture(path, detection_figure(image, objects, rig, truth, title))
