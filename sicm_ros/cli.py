# SPDX-License-Identifier: Apache-2.0
"""The command line: ``sicm COMMAND ...``.

Everything heavy is imported inside the command that needs it, so that help appears at once and the codec's commands run
without ROS. Bad input is one line ``error: ...`` on standard error and exit status 2; SICM_DEBUG=1 shows the traceback.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from .geometry import Object3D, StereoRig

DEFAULT_MODEL = "sicm-compact"

app = typer.Typer(
    name="sicm",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Split 3D perception from stereo images: a vehicle sends a few kilobytes for each stereo pair, and 3D boxes "
    "are found somewhere else.\n\nStart with [bold]sicm demo[/bold], which shows the whole way and writes "
    "pictures. Every command explains itself: [bold]sicm COMMAND --help[/bold].",
)
bag = typer.Typer(rich_markup_mode="rich", help="rosbag2 files: make one from KITTI, play one.")
app.add_typer(bag, name="bag")

# ------------------------------------------------------------------------------------------------------------- options

Left = Annotated[Path, typer.Argument(metavar="LEFT", help="Left rectified image, PNG or JPEG.", show_default=False)]
Right = Annotated[
    Path, typer.Argument(metavar="RIGHT", help="Right rectified image, of the same size.", show_default=False)
]
Calib = Annotated[
    Path,
    typer.Option(
        "--calib",
        "-c",
        metavar="FILE",
        show_default=False,
        help="Calibration: KITTI object (P2, P3), odometry calib.txt, or calib_cam_to_cam.txt of a raw drive.",
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="Model name, or the folder of one.")]
Device = Annotated[
    str,
    typer.Option("--device", "-d", metavar="DEVICE", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        "-r",
        metavar="R",
        show_default=False,
        help="0 for the fewest bits, up to the model's highest rate; fractions lie in between. Default: the model's.",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        "-t",
        metavar="SCORE",
        show_default=False,
        help="Least score of a detection, 0 to 1. Default: the model's.",
    ),
]
View = Annotated[
    str | None,
    typer.Option(
        "--view",
        metavar="WHERE",
        show_default=False,
        help="Show images, boxes, packet sizes and times in Rerun: window, or a file to write that ends in .rrd.",
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(
        "--picture", "-p", metavar="FILE", show_default=False, help="Also draw the boxes: a PNG or JPEG to write."
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        show_default=False,
        help="KITTI label file whose boxes the picture shows as ground truth.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of tables.")]


def _example(*lines: str) -> str:
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]{line}[/cyan]" for line in lines)


# -------------------------------------------------------------------------------------------------------------- helpers


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
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


def _writable(*paths: Path | None) -> None:
    """Fail before the work where a result could not be written after it."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: expected an existing folder to write into, {path.absolute().parent} is none")
        if path is not None and path.is_dir():
            raise ValueError(f"{path}: expected a file to write, this is a folder")


def _picture_path(path: Path | None) -> None:
    if path is not None and path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--picture: expected a name that ends in .png or .jpg, got {path}")


def _in_range(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{option}: expected {low:g} to {high:g}, got {value:g}")


def _json(value: Any) -> None:
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


def _objects_json(objects: Sequence[Object3D]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(o) for o in objects]


def _stages_text(stage_ms: dict[str, float]) -> str:
    parts = [f"{name} {value:.1f}" for name, value in stage_ms.items()]
    return " + ".join(parts) + f" = {sum(stage_ms.values()):.1f} ms (a first pair warms up; see sicm bench)"


def _print_fields(rows: Sequence[tuple[str, str]], title: str = "") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    _console().print(table)


def _print_objects(objects: Sequence[Object3D]) -> None:
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
    _console().print(table)


def _draw(
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
    from .data.kitti import read_labels
    from .evaluation.pictures import birds_eye, detection_figure, write_picture

    truth = read_labels(labels) if labels is not None else None
    if image is None:
        write_picture(path, birds_eye(objects, truth, rig=rig, image_width=size[0]))
    else:
        write_picture(path, detection_figure(image, objects, rig, truth, title))


# ---------------------------------------------------------------------------------------------------------------- codec


@app.command(
    epilog=_example(
        "sicm encode left.png right.png --calib calib.txt -o pair.sicm",
        "sicm encode left.png right.png -c calib.txt -o pair.sicm --rate 2 --device cuda",
    )
)
def encode(
    left: Left,
    right: Right,
    calib: Calib,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="X.sicm", help="The packet to write.", show_default=False)
    ],
    model: Model = DEFAULT_MODEL,
    rate: Rate = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Encode one stereo pair to one packet: what a vehicle sends."""
    _writable(output)
    from .data.kitti import read_pair

    frame = read_pair(left, right, calib)
    from .codec.encoder import StereoEncoder

    encoder = StereoEncoder(model, _device(device), rate)
    coded = encoder.encode(frame.left, frame.right, frame.rig)
    output.write_bytes(coded.packet)
    height, width = frame.left.shape[:2]
    bpp = 8 * len(coded.packet) / (2 * width * height)
    if as_json:
        _json(
            {
                "packet": str(output),
                "bytes": len(coded.packet),
                "bits_per_pixel": bpp,
                "rate": coded.rate,
                "model": encoder.model.name,
                "symbol_hash": f"{coded.symbol_hash:08x}",
                "estimated_bits": coded.estimated_bits,
                "image_size": [width, height],
                "stage_ms": coded.stage_ms,
            }
        )
        return
    _print_fields(
        [
            ("packet", str(output)),
            ("size", f"{len(coded.packet)} bytes; {80e-6 * len(coded.packet):.2f} Mbit/s at 10 pairs a second"),
            ("bits per pixel", f"{bpp:.4f} (the whole packet over both {width}x{height} images)"),
            ("model, rate", f"{encoder.model.name}, {coded.rate:g}"),
            ("stages", _stages_text(coded.stage_ms)),
        ]
    )


@app.command(
    epilog=_example(
        "sicm decode pair.sicm -o detections.txt",
        "sicm decode pair.sicm -o detections.txt --picture boxes.png --left left.png",
    )
)
def decode(
    packet: Annotated[Path, typer.Argument(metavar="X.sicm", help="A packet.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="KITTI result lines to write.", show_default=False)
    ],
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    threshold: Threshold = None,
    picture: Picture = None,
    left: Annotated[
        Path | None,
        typer.Option(
            "--left",
            metavar="IMAGE",
            show_default=False,
            help="Left image to draw on; without it the picture is the view from above.",
        ),
    ] = None,
    labels: Labels = None,
    as_json: Json = False,
) -> None:
    """Decode a packet to 3D boxes: what the other end of the link does."""
    _writable(output, picture)
    _picture_path(picture)
    _in_range("--threshold", threshold, 0, 1)
    if picture is None and (left is not None or labels is not None):
        raise ValueError("--left and --labels: expected with --picture FILE, which they are drawn into")
    from .codec.packet import read_header
    from .data.kitti import read_image, write_labels

    data = _packet_bytes(packet)
    try:
        header = read_header(data)
        image = read_image(left) if left is not None else None
        size = (header.source_width, header.source_height)
        if image is not None and (image.shape[1], image.shape[0]) != size:
            raise ValueError(
                f"{left}: size: expected {size[0]}x{size[1]} as in the packet, got {image.shape[1]}x{image.shape[0]}"
            )
        from .codec.decoder import StereoDecoder

        found = StereoDecoder(model, _device(device), threshold).decode(data)
    except ValueError as error:
        raise _about(packet, error) from error
    write_labels(output, found.objects)
    bpp = 8 * len(data) / (2 * size[0] * size[1])
    _draw(
        picture,
        image,
        size,
        found.objects,
        header.rig,
        labels,
        f"{packet.name}   {len(data):,} bytes   {bpp:.4f} bits per pixel",
    )
    if as_json:
        _json(
            {
                "objects": _objects_json(found.objects),
                "bytes": len(data),
                "bits_per_pixel": bpp,
                "rate": found.header.rate,
                "stage_ms": found.stage_ms,
            }
        )
        return
    _print_objects(found.objects)
    _print_fields(
        [
            ("detections", str(output)),
            *([("picture", str(picture))] if picture else []),
            ("stages", _stages_text(found.stage_ms)),
        ]
    )


def _packet_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: expected a packet to read: {error.strerror}") from None


def _about(path: Path, error: ValueError) -> ValueError:
    """A packet's error with the file's name before it."""
    from .codec.packet import PacketError

    return ValueError(f"{path}: {error}") if isinstance(error, PacketError) else error


@app.command(epilog=_example("sicm inspect pair.sicm", "sicm inspect --model sicm-compact"))
def inspect(
    packet: Annotated[Path | None, typer.Argument(metavar="X.sicm", help="A packet.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            show_default=False,
            help="A model, by name or folder, in place of a packet.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the fields of a packet, or the sizes of a model and of its parts."""
    if (packet is None) == (model is None):
        raise ValueError("expected one thing to inspect: a packet X.sicm, or --model NAME")
    if packet is not None:
        from .codec.packet import inspect as fields_of

        data = _packet_bytes(packet)
        try:
            fields = fields_of(data)
        except ValueError as error:
            raise _about(packet, error) from error
        if as_json:
            _json(fields)
        else:
            _print_fields(
                [
                    (
                        k,
                        ", ".join(f"{x:.6g}" for x in v)
                        if isinstance(v, list)
                        else f"{v:.6g}"
                        if isinstance(v, float)
                        else str(v),
                    )
                    for k, v in fields.items()
                ]
            )
        return
    assert model is not None
    _inspect_model(model, as_json)


def _inspect_model(model: str, as_json: bool) -> None:
    from .model_store import CONFIG_FILE, WEIGHTS_FILE, load_config, load_model, model_folder
    from .networks.mvsfc_net import count_complexity

    folder = model_folder(model, trained=False)
    facts: dict[str, Any] = {"model": folder.name}
    if not (folder / WEIGHTS_FILE).exists():  # not trained yet: only its sizes are known
        config = load_config(folder / CONFIG_FILE)
    else:
        stored = load_model(model)
        config = stored.config
        facts |= {"model": stored.name, "folder": str(stored.path), "fingerprint": f"{stored.fingerprint:016x}"}
    rows, columns = config.latent_size
    facts |= {
        "classes": list(config.classes),
        "input": [config.width, config.height],
        "crop_top": config.crop_top,
        "latent": [config.latent_channels, rows, columns],
        "context": config.context,
        "lambdas": list(config.lambdas),
        "variable_rate": config.variable_rate,
    }
    parts = count_complexity(config)
    if as_json:
        _json({**facts, "parts": {name: {"parameters": p, "macs": m} for name, (p, m) in parts.items()}})
        return
    _print_fields([(k, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for k, v in facts.items()])
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("GMAC a pair", justify="right")
    for name, (parameters, macs) in parts.items():
        style = "bold" if name == "total" else None
        table.add_row(name, f"{parameters:,}", f"{macs / 1e9:.3f}", style=style)
    _console().print(table)


@app.command(epilog=_example("sicm detect left.png right.png --calib calib.txt -o detections.txt --picture boxes.png"))
def detect(
    left: Left,
    right: Right,
    calib: Calib,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="KITTI result lines to write.", show_default=False)
    ],
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    threshold: Threshold = None,
    picture: Picture = None,
    labels: Labels = None,
    as_json: Json = False,
) -> None:
    """Detect 3D boxes without any compression: what the codec is compared with."""
    _writable(output, picture)
    _picture_path(picture)
    _in_range("--threshold", threshold, 0, 1)
    if picture is None and labels is not None:
        raise ValueError("--labels: expected with --picture FILE, which they are drawn into")
    from .data.kitti import read_pair, write_labels

    frame = read_pair(left, right, calib)
    from .codec.detector import StereoDetector

    objects = StereoDetector(model, _device(device), threshold).detect(frame.left, frame.right, frame.rig)
    write_labels(output, objects)
    _draw(
        picture,
        frame.left,
        (frame.left.shape[1], frame.left.shape[0]),
        objects,
        frame.rig,
        labels,
        f"{left.name}   uncompressed features",
    )
    if as_json:
        _json({"objects": _objects_json(objects)})
        return
    _print_objects(objects)
    _print_fields([("detections", str(output)), *([("picture", str(picture))] if picture else [])])


# ----------------------------------------------------------------------------------------------------------------- data


@app.command(
    epilog=_example(
        "sicm render out/rendered --count 100",
        "sicm render out/kitti --layouts label_2 --calib calib --split val.txt --seed 1",
    )
)
def render(
    root: Annotated[
        Path,
        typer.Argument(
            metavar="ROOT",
            show_default=False,
            help="Folder to write: ROOT/training/image_2, image_3, label_2, calib, disp_occ_0.",
        ),
    ],
    layouts: Annotated[
        Path | None,
        typer.Option(
            "--layouts",
            metavar="DIR",
            show_default=False,
            help="KITTI label_2 folder whose scenes are rendered. Default: built-in statistics.",
        ),
    ] = None,
    calib: Annotated[
        Path | None,
        typer.Option("--calib", metavar="DIR", show_default=False, help="KITTI calib folder of those labels."),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split", metavar="FILE", show_default=False, help="Frame ids to render, one a line. Default: all."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Same seed, same pixels.")] = 0,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            min=1,
            metavar="N",
            show_default=False,
            help="At most so many frames. Default: all; 100 without --layouts.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-j", min=1, metavar="N", help="Processes.")] = 1,
) -> None:
    """Render a KITTI folder: stereo pairs with exact labels, calibration and disparity. A killed run continues."""
    for option, folder in (("--layouts", layouts), ("--calib", calib)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{option}: expected a folder, got {folder}")
    from .data.rendered import render_dataset

    with _progress("rendering") as progress:
        names = render_dataset(root, layouts, calib, split, seed, workers, count, progress)
    print(f"{len(names)} frames in {root / 'training'}")


@app.command(
    epilog=_example("sicm score kitti/training/label_2 results", "sicm score label_2 results --split val.txt --json")
)
def score(
    label_dir: Annotated[
        Path, typer.Argument(metavar="LABEL_DIR", help="Folder of label files NNNNNN.txt.", show_default=False)
    ],
    result_dir: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT_DIR",
            show_default=False,
            help="Folder of result files of the same names; a frame without a detection has an empty file.",
        ),
    ],
    split: Annotated[
        Path | None,
        typer.Option(
            "--split",
            metavar="FILE",
            show_default=False,
            help="Frame ids to score, one a line. Default: all in RESULT_DIR.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score detections by KITTI's rules: AP in 2D, bird's-eye view and 3D, and orientation similarity (AOS).

    R40 and R11, easy, moderate and hard; strict IoU is 0.7 for Car, 0.5 for Pedestrian and Cyclist, loose (BEV and 3D)
    0.5 and 0.25.
    """
    from .data.kitti import KittiError, read_labels, read_split

    for folder in (label_dir, result_dir):
        if not folder.is_dir():
            raise KittiError(f"{folder}: expected a folder of files NNNNNN.txt, there is none")
    ids = read_split(split) if split is not None else sorted(p.stem for p in result_dir.glob("*.txt"))
    if not ids:
        raise KittiError(f"{result_dir}: expected result files NNNNNN.txt, found none")
    missing = [i for i in ids if not (result_dir / f"{i}.txt").is_file()]
    if missing:
        raise KittiError(
            f"{result_dir / missing[0]}.txt: no such file ({len(missing)} of {len(ids)} are missing; a "
            "frame without a detection has an empty file)"
        )
    labels, results = [], []
    with _progress("reading") as progress:
        for done, name in enumerate(ids, 1):
            labels.append(read_labels(label_dir / f"{name}.txt"))
            results.append(read_labels(result_dir / f"{name}.txt"))
            if any(o.score is None for o in results[-1]):
                raise KittiError(f"{result_dir / name}.txt: score: expected a 16th column on every line, one has none")
            if done % 50 == 0 or done == len(ids):
                progress(done, len(ids))
    from .evaluation.kitti_ap import CLASSES, METRICS, evaluate

    table = evaluate(labels, results)
    if as_json:
        _json({"frames": len(ids), **table})
        return
    from rich.table import Table

    shown = Table(
        title=f"{len(ids)} frames, average precision in percent", box=None, padding=(0, 2, 0, 0), title_justify="left"
    )
    for name in ("class", "metric", "R40 easy", "moderate", "hard", "R11 easy", "moderate", "hard"):
        shown.add_column(name, justify="left" if name in ("class", "metric") else "right")
    for name in CLASSES:
        for metric in METRICS:
            values = (*table["R40"][metric][name], *table["R11"][metric][name])
            shown.add_row(
                name if metric == METRICS[0] else "",
                metric,
                *("-" if math.isnan(v) else f"{v:.2f}" for v in values),
                end_section=metric == METRICS[-1],
            )
    _console().print(shown)


# ------------------------------------------------------------------------------------------------------------- training


@app.command(
    epilog=_example(
        "sicm train --config models/sicm-compact --out runs/first --samples 800 --max-minutes 10 -j 2 --processes 2",
        "sicm train --config models/mvsfc-r34 --data KITTI/object --out runs/kitti --resume",
    )
)
def train(
    config: Annotated[
        Path,
        typer.Option(
            "--config", metavar="DIR", show_default=False, help="Model folder with config.yaml and train.yaml."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", show_default=False, help="Where samples, checkpoint, log and the trained model go."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="ROOT[:SHARE]",
            show_default=False,
            help="KITTI root with training/label_2, calib and, if there are any, images; several with the share of the "
            "samples that each gives, e.g. 0.3. Default: rendered scenes.",
        ),
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            "--splits",
            metavar="DIR",
            show_default=False,
            help="Folder with train.txt and val.txt. Default: ImageSets of each root.",
        ),
    ] = None,
    validate_on: Annotated[
        list[Path] | None,
        typer.Option(
            "--validate",
            metavar="ROOT",
            show_default=False,
            help="KITTI root to validate on, beside what --data holds out; several in turn.",
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            metavar="M",
            min=0,
            show_default=False,
            help="Shortens every stage so that the run ends in time.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    device: Device = "auto",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", show_default=False, help="Default: that of train.yaml.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, metavar="N", help="Data-parallel processes; torchrun works too.")
    ] = 1,
    workers: Annotated[
        int, typer.Option("--workers", "-j", min=1, metavar="N", help="Processes that render samples.")
    ] = 1,
    stages: Annotated[
        str | None,
        typer.Option("--stages", metavar="A,B", show_default=False, help="Some of detector,codec,joint,entropy."),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option("--start-from", metavar="FILE", show_default=False, help="Weights (safetensors) to begin with."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            metavar="N",
            show_default=False,
            help="Pairs to render, or at most to take of --data. Default: that of train.yaml.",
        ),
    ] = None,
) -> None:
    """Train a model: the detector, then the codec, then both together, then the entropy model alone."""
    config = config.parent if config.name == "config.yaml" else config
    if not config.is_dir():
        raise ValueError(f"--config: expected a model folder with config.yaml and train.yaml, got {config}")
    if start_from is not None and not start_from.is_file():
        raise ValueError(f"--start-from: expected a safetensors file, got {start_from}")
    from .training.train import run

    run(
        config,
        data,
        out,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        seed=seed,
        processes=processes,
        workers=workers,
        splits=splits,
        start_from=start_from,
        stages=stages,
        samples=samples,
        validate_on=validate_on or (),
    )


# ---------------------------------------------------------------------------------------------------------- measurement


@app.command(epilog=_example("sicm bench", "sicm bench --kitti KITTI/object --pairs 100 --device cuda --json"))
def bench(
    model: Model = DEFAULT_MODEL,
    pairs: Annotated[int, typer.Option("--pairs", "-n", min=1, metavar="N", help="Pairs to measure.")] = 30,
    device: Device = "auto",
    rate: Rate = None,
    kitti: Annotated[
        Path | None,
        typer.Option(
            "--kitti",
            metavar="PATH",
            show_default=False,
            help="KITTI folder to take pairs from. Default: rendered pairs.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, metavar="N", show_default=False, help="CPU threads of PyTorch.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure stage by stage: latency, throughput, memory and bytes, as medians with 5th and 95th percentile."""
    import torch

    from .bench import bench as measure
    from .bench import rendered_frames
    from .data.kitti import open_source
    from .model_store import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    stored = load_model(model, "both", _device(device))
    if kitti is None:
        frames = rendered_frames(min(pairs, 8))
    else:
        source = open_source(kitti)
        frames = [source[i] for i in range(min(pairs, len(source), 20))]
    with _progress("measuring") as progress:
        report = measure(stored, frames, pairs, str(stored.device), rate, progress)
    if as_json:
        _json(dataclasses.asdict(report))
        return
    from rich.table import Table

    machine = report.machine
    _print_fields(
        [
            (
                "machine",
                f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
                + (f", {machine['gpu']}" if "gpu" in machine else ""),
            ),
            (
                "load before",
                f"{machine['load_before']:g}"
                + (", others were at work too" if float(machine["load_before"]) > 0.5 else ""),
            ),
            ("software", f"torch {machine['torch']}, Python {machine['python']}"),
            ("model", f"{report.model} on {report.device}, rate {report.rate:g}"),
            (
                "pairs",
                f"{report.pairs} of {report.image_size[0]}x{report.image_size[1]}, "
                f"{'rendered' if kitti is None else kitti}, {len(frames)} different",
            ),
        ]
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("side", "stage", "median ms", "p5", "p95"):
        table.add_column(name, justify="left" if name in ("side", "stage") else "right")
    for side, stages in report.stages_ms.items():
        for stage, spread in stages.items():
            first, total = stage == next(iter(stages)), stage == "total"
            table.add_row(
                side if first else "",
                stage,
                f"{spread.median:.1f}",
                f"{spread.p5:.1f}",
                f"{spread.p95:.1f}",
                style="bold" if total else None,
                end_section=total,
            )
    _console().print(table)
    rates, share = report.pairs_per_second, report.entropy_share
    _print_fields(
        [
            (
                "entropy stage",
                f"{100 * share.median:.1f} % of a pair's CPU time, both sides together "
                f"(p5 {100 * share.p5:.1f} %, p95 {100 * share.p95:.1f} %)",
            ),
            ("throughput", f"encode {rates['encode']:.1f}, decode {rates['decode']:.1f} pairs a second"),
            (
                "packet",
                f"{report.packet_bytes.median:.0f} bytes (p5 {report.packet_bytes.p5:.0f}, "
                f"p95 {report.packet_bytes.p95:.0f}), {report.bits_per_pixel.median:.4f} bits per pixel",
            ),
            ("peak memory", ", ".join(f"{k} {v:.0f} MiB" for k, v in report.peak_memory_mib.items())),
        ]
    )


# ------------------------------------------------------------------------------------------------------------------ ROS


@app.command(
    epilog=_example("sicm demo", "sicm demo --view window", "sicm demo --kitti KITTI/object --out out/kitti --rate 3")
)
def demo(
    kitti: Annotated[
        Path | None,
        typer.Option(
            "--kitti",
            metavar="ROOT",
            show_default=False,
            help="Object folder, raw drive or odometry sequence. Default: a few rendered pairs.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where pictures, a bag, logs and summary.json go.")
    ] = Path("out/demo"),
    model: Model = DEFAULT_MODEL,
    frames: Annotated[
        int | None,
        typer.Option("--frames", "-n", min=1, metavar="N", show_default=False, help="At most so many pairs."),
    ] = None,
    rate: Rate = None,
    device: Device = "auto",
    threshold: Threshold = None,
    view: View = None,
) -> None:
    """Show the whole way over real ROS 2 topics: player, encoder node and decoder node as three processes.

    Writes a picture of each pair with its boxes, an overview, a bag and a summary of bytes and times.
    """
    _in_range("--threshold", threshold, 0, 1)
    from .nodes.demo import DemoError, run

    try:
        status = run(
            kitti, out, model, frames=frames, rate=rate, device=_device(device), score_threshold=threshold, view=view
        )
    except DemoError as error:
        # Not the input's fault: a node's last words are worth more than one line.
        print(f"error: {error}", file=sys.stderr)
        status = 1
    raise typer.Exit(status)


@bag.command(
    "from-kitti",
    epilog=_example(
        "sicm bag from-kitti KITTI/object out/kitti_bag",
        "sicm bag from-kitti 2011_09_26_drive_0001_sync out/drive --storage mcap",
        "sicm bag from-kitti KITTI/object out/kitti_bag --topics kitti2bag",
    ),
)
def bag_from_kitti(
    source: Annotated[
        Path, typer.Argument(metavar="KITTI", show_default=False, help="Object folder, raw drive or odometry sequence.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="BAG", help="Bag folder to write; must not exist.", show_default=False)
    ],
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames", "-n", min=1, metavar="N", show_default=False, help="At most so many pairs. Default: all."
        ),
    ] = None,
    storage: Annotated[str, typer.Option("--storage", metavar="KIND", help="sqlite3 or mcap.")] = "sqlite3",
    topics: Annotated[
        str,
        typer.Option(
            "--topics",
            metavar="SCHEME",
            help="Topic names as a converter writes them: sicm, kitti2bag, kitti_to_ros2bag, kitti2rosbag2 or "
            "ros2_dataset_bridge.",
        ),
    ] = "sicm",
) -> None:
    """Write KITTI frames as a rosbag2: left and right images, camera infos and static transforms."""
    from .nodes.bag import from_kitti

    with _progress("writing") as progress:
        pairs = from_kitti(source, out, storage, frames, progress, topics)  # type: ignore[arg-type]
    print(f"{pairs} pairs in {out}")


@bag.command(
    "play",
    epilog=_example(
        "sicm bag play out/kitti_bag",
        "sicm bag play out/kitti_bag --rate 5 --loop",
        "sicm bag play out/kitti_bag --start 3 --paused --clock",
        "sicm bag play out/demo/bag --view window",
    ),
)
def bag_play(
    path: Annotated[Path, typer.Argument(metavar="BAG", show_default=False, help="A rosbag2 with a stereo pair.")],
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            "-r",
            metavar="HZ",
            min=0.01,
            show_default=False,
            help="Pairs a second. Default: the bag's own times.",
        ),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end.")] = False,
    start: Annotated[
        float, typer.Option("--start", metavar="SECONDS", min=0.0, help="Seconds to leave out at the beginning.")
    ] = 0.0,
    paused: Annotated[bool, typer.Option("--paused", help="Wait for the space key before the first pair.")] = False,
    clock: Annotated[
        bool, typer.Option("--clock", help="Publish the bag's time on /clock, for nodes with use_sim_time.")
    ] = False,
    view: View = None,
) -> None:
    """Play a bag's stereo pairs on ROS topics, where there is no ros2 command. Needs rclpy.

    A bag of packets, such as that of the demo, is played as packets. With --view, recorded boxes are played, too.
    In a terminal the space key pauses and goes on; elsewhere the node's parameter paused does.
    """
    from .nodes.bag import play

    raise typer.Exit(play(path, rate, loop, start, paused, clock, view=view))


@bag.command(
    "transcode",
    epilog=_example(
        "sicm bag transcode drive_bag out/packets_bag",
        "sicm bag transcode out/packets_bag out/boxes_bag --to detections",
    ),
)
def bag_transcode(
    path: Annotated[
        Path, typer.Argument(metavar="BAG", show_default=False, help="A rosbag2 with a stereo pair, or with packets.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", show_default=False, help="Bag folder to write; must not exist.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help="packets, or detections as well.")] = "packets",
    model: Model = DEFAULT_MODEL,
    rate: Rate = None,
    threshold: Threshold = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", "-w", min=1, metavar="N", show_default=False, help="Processes. Default: one for each core."
        ),
    ] = None,
    storage: Annotated[str, typer.Option("--storage", metavar="KIND", help="sqlite3 or mcap.")] = "sqlite3",
    namespace: Annotated[str, typer.Option("--namespace", metavar="NAME", help="Prefix of the new topics.")] = "",
    left_topic: Annotated[
        str, typer.Option("--left-topic", metavar="TOPIC", show_default=False, help="Default: found by the names.")
    ] = "",
    right_topic: Annotated[str, typer.Option("--right-topic", metavar="TOPIC", show_default=False)] = "",
    calib: Annotated[
        Path | None,
        typer.Option(
            "--calib", metavar="FILE", show_default=False, help="KITTI calibration, where the bag has no camera infos."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Replace a bag's stereo images by packets, a few hundred times smaller, and packets by boxes.

    Uses all cores. If it is killed, the same command goes on where it was.
    """
    if to not in ("packets", "detections"):
        raise ValueError(f"--to: expected packets or detections, got {to!r}")
    _in_range("--threshold", threshold, 0, 1)
    from .nodes.transcode import transcode

    with _progress("transcoding") as progress:
        done = transcode(
            path,
            out,
            to,  # type: ignore[arg-type]
            model,
            rate,
            threshold,
            workers or os.cpu_count() or 1,
            storage,  # type: ignore[arg-type]
            namespace,
            left_topic,
            right_topic,
            calib,
            progress,
        )
    if as_json:
        _json({"bag": str(out), **done.__dict__})
        return
    parts = [f"{done.pairs} pairs"]
    if done.raw_bytes:
        parts.append(
            f"{done.packet_bytes} bytes of packets for {done.raw_bytes} bytes of images "
            f"({done.raw_bytes / max(done.packet_bytes, 1):.0f} times fewer)"
        )
    parts += [f"{done.boxes} boxes"] if to == "detections" else []
    print(", ".join([*parts, f"{done.copied} other messages copied"]) + f": {out}")
    for reason, number in done.dropped.items():
        print(f"dropped {number}: {reason}", file=sys.stderr)


# ----------------------------------------------------------------------------------------------------------------- main

# Typer hands on click's exceptions, whichever click it uses.
_UsageError: type[Exception] = next(k for k in typer.BadParameter.__mro__ if k.__name__ == "ClickException")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from . import __version__

        print(f"sicm {__version__}")
        raise typer.Exit()
    _help_alone(context)


@bag.callback(invoke_without_command=True)
def _help_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit()


def _one_line(error: BaseException) -> str:
    if isinstance(error, _UsageError):
        text = error.format_message()  # type: ignore[attr-defined]
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, ModuleNotFoundError):
        text = f"this command needs the Python module {error.name}, which is not installed here"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, or 2 after one line on standard error about what was wrong with the input."""
    try:
        status = app(args=None if arguments is None else list(arguments), prog_name="sicm", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except (_UsageError, ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("SICM_DEBUG") == "1":
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
