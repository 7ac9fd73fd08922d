# SPDX-License-Identifier: Apache-2.0
"""encode, decode, inspect, detect: a single stereo pair or packet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..files import check_outputs
from .options import (
    DEFAULT_MODEL,
    Calib,
    Device,
    EngineOption,
    Json,
    Labels,
    Left,
    Model,
    Picture,
    Rate,
    Right,
    Threshold,
    chosen_device,
    examples,
)
from .output import (
    check_picture_name,
    check_range,
    console,
    draw_picture,
    objects_json,
    print_fields,
    print_json,
    print_objects,
    print_warnings,
    stages_text,
)

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(
    epilog=examples(
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
    engine: EngineOption = "auto",
    as_json: Json = False,
) -> None:
    """Encode a stereo pair to a packet, as the vehicle does."""
    check_outputs([output], [left, right, calib])
    from ..data.kitti import read_pair

    frame = read_pair(left, right, calib)
    from ..codec.encoder import StereoEncoder
    from ..codec.input_warnings import pair_warnings
    from ..codec.packet import bits_per_pixel
    from ..files import write_whole

    encoder = StereoEncoder(model, chosen_device(device), rate, engine)
    coded = encoder.encode(frame.left, frame.right, frame.rig)
    write_whole(output, lambda beside: beside.write_bytes(coded.packet))
    print_warnings(pair_warnings(encoder.model, frame.left, frame.right, frame.rig))
    height, width = frame.left.shape[:2]
    bpp = bits_per_pixel(len(coded.packet), width, height)
    if as_json:
        print_json(
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
    print_fields(
        [
            ("packet", str(output)),
            ("size", f"{len(coded.packet)} bytes; {80e-6 * len(coded.packet):.2f} Mbit/s at 10 pairs a second"),
            ("bits per pixel", f"{bpp:.4f} (the whole packet over both {width}x{height} images)"),
            ("model, rate", f"{encoder.model.name}, {coded.rate:g}"),
            ("stages", stages_text(coded.stage_ms)),
        ]
    )


@commands.command(
    epilog=examples(
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
    engine: EngineOption = "auto",
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
    """Decode a packet to 3D boxes, as the remote node does."""
    check_outputs([output, picture], [packet, left, labels])
    check_picture_name(picture)
    check_range("--threshold", threshold, 0, 1)
    if picture is None and (left is not None or labels is not None):
        raise ValueError("--left and --labels: expected with --picture FILE, which they are drawn into")
    from ..codec.packet import bits_per_pixel, read_header
    from ..data.kitti import read_image, write_labels

    data = _packet_bytes(packet)
    try:
        header = read_header(data)
        image = read_image(left) if left is not None else None
        size = (header.geometry.transform.source_width, header.geometry.transform.source_height)
        if image is not None and (image.shape[1], image.shape[0]) != size:
            raise ValueError(
                f"{left}: size: expected {size[0]}x{size[1]} as in the packet, got {image.shape[1]}x{image.shape[0]}"
            )
        from ..codec.decoder import StereoDecoder
        from ..codec.input_warnings import geometry_warning

        decoder = StereoDecoder(model, chosen_device(device), threshold, engine)
        found = decoder.decode(data)
    except ValueError as error:
        raise _about(packet, error) from error
    write_labels(output, found.objects)
    print_warnings([geometry_warning(decoder.model, header.geometry.camera_rig, *size)])
    bpp = bits_per_pixel(len(data), *size)
    draw_picture(
        picture,
        image,
        size,
        found.objects,
        header.geometry.camera_rig,
        labels,
        f"{packet.name}   {len(data):,} bytes   {bpp:.4f} bits per pixel",
    )
    if as_json:
        print_json(
            {
                "objects": objects_json(found.objects),
                "refused": found.refused,
                "bytes": len(data),
                "bits_per_pixel": bpp,
                "rate": found.header.rate,
                "stage_ms": found.stage_ms,
            }
        )
        return
    print_objects(found.objects)
    print_fields(
        [
            ("detections", str(output)),
            *([("refused", f"{found.refused} boxes that cannot exist")] if found.refused else []),
            *([("picture", str(picture))] if picture else []),
            ("stages", stages_text(found.stage_ms)),
        ]
    )


def _packet_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: expected a packet to read: {error.strerror}") from None


def _about(path: Path, error: ValueError) -> ValueError:
    """A packet's error with the file's name before it."""
    from ..codec.packet import PacketError

    return ValueError(f"{path}: {error}") if isinstance(error, PacketError) else error


@commands.command(epilog=examples("sicm inspect pair.sicm", "sicm inspect --model sicm-compact"))
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
        from ..codec.packet import inspect as fields_of

        data = _packet_bytes(packet)
        try:
            fields = fields_of(data)
        except ValueError as error:
            raise _about(packet, error) from error
        if as_json:
            print_json(fields)
        else:
            print_fields(
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
    from ..model_store import CONFIG_FILE, WEIGHTS_FILE, load_config, load_model, model_folder
    from ..networks.complexity import count_complexity

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
        print_json({**facts, "parts": {name: {"parameters": p, "macs": m} for name, (p, m) in parts.items()}})
        return
    print_fields([(k, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for k, v in facts.items()])
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("GMAC a pair", justify="right")
    for name, (parameters, macs) in parts.items():
        style = "bold" if name == "total" else None
        table.add_row(name, f"{parameters:,}", f"{macs / 1e9:.3f}", style=style)
    console().print(table)


@commands.command(
    epilog=examples("sicm detect left.png right.png --calib calib.txt -o detections.txt --picture boxes.png")
)
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
    """Detect 3D boxes without compression: the reference that the codec is compared with."""
    check_outputs([output, picture], [left, right, calib, labels])
    check_picture_name(picture)
    check_range("--threshold", threshold, 0, 1)
    if picture is None and labels is not None:
        raise ValueError("--labels: expected with --picture FILE, which they are drawn into")
    from ..data.kitti import read_pair, write_labels

    frame = read_pair(left, right, calib)
    from ..codec.detector import StereoDetector
    from ..codec.input_warnings import pair_warnings

    detector = StereoDetector(model, chosen_device(device), threshold)
    objects = detector.detect(frame.left, frame.right, frame.rig)
    write_labels(output, objects)
    print_warnings(pair_warnings(detector.model, frame.left, frame.right, frame.rig))
    draw_picture(
        picture,
        frame.left,
        (frame.left.shape[1], frame.left.shape[0]),
        objects,
        frame.rig,
        labels,
        f"{left.name}   uncompressed features",
    )
    if as_json:
        print_json({"objects": objects_json(objects)})
        return
    print_objects(objects)
    print_fields([("detections", str(output)), *([("picture", str(picture))] if picture else [])])
