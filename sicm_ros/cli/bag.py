# SPDX-License-Identifier: Apache-2.0
"""bag: write rosbag2 files from KITTI, play them, transcode their images to packets."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_MODEL, Cluster, EngineOption, Json, Model, Rate, Threshold, View, examples, help_alone
from .output import check_range, check_workers, print_json, progress_bar

LeftTopic = Annotated[
    str,
    typer.Option(
        "--left-topic",
        metavar="TOPIC",
        show_default=False,
        help="Topic of the left images. Default: found by the names.",
    ),
]
RightTopic = Annotated[
    str, typer.Option("--right-topic", metavar="TOPIC", show_default=False, help="Topic of the right images.")
]
BagCalib = Annotated[
    Path | None,
    typer.Option(
        "--calib", metavar="FILE", show_default=False, help="KITTI calibration, where the bag has no camera infos."
    ),
]

commands = typer.Typer(
    rich_markup_mode="rich", help="rosbag2 files: make one from KITTI, play one, replace images by packets."
)
commands.callback(invoke_without_command=True)(help_alone)


@commands.command(
    "from-kitti",
    epilog=examples(
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
            "--frames", "-n", min=1, metavar="N", show_default=False, help="Maximum number of pairs. Default: all."
        ),
    ] = None,
    storage: Annotated[str, typer.Option("--storage", metavar="KIND", help="sqlite3 or mcap.")] = "sqlite3",
    topics: Annotated[
        str,
        typer.Option(
            "--topics",
            metavar="SCHEME",
            help="Topic names of the usual converters: sicm, kitti2bag, kitti_to_ros2bag, kitti2rosbag2 or "
            "ros2_dataset_bridge.",
        ),
    ] = "sicm",
) -> None:
    """Write KITTI frames as a rosbag2: left and right images, camera infos and static transforms."""
    from ..bags.from_kitti import from_kitti

    with progress_bar("writing") as progress:
        pairs = from_kitti(source, out, storage, frames, progress, topics)  # type: ignore[arg-type]
    print(f"{pairs} pairs in {out}")


@commands.command(
    "play",
    epilog=examples(
        "sicm bag play out/kitti_bag",
        "sicm bag play out/kitti_bag --frequency 5 --loop",
        "sicm bag play out/kitti_bag --start 3 --paused --clock",
        "sicm bag play out/demo/bag --view window",
    ),
)
def bag_play(
    path: Annotated[Path, typer.Argument(metavar="BAG", show_default=False, help="A rosbag2 with a stereo pair.")],
    frequency: Annotated[
        float | None,
        typer.Option(
            "--frequency",
            "-f",
            metavar="HZ",
            min=0.01,
            show_default=False,
            help="Pairs per second. Default: the bag's own times.",
        ),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end.")] = False,
    start: Annotated[
        float, typer.Option("--start", metavar="SECONDS", min=0.0, help="Seconds to skip at the beginning.")
    ] = 0.0,
    paused: Annotated[bool, typer.Option("--paused", help="Wait for the space key before the first pair.")] = False,
    clock: Annotated[
        bool, typer.Option("--clock", help="Publish the bag's time on /clock, for nodes with use_sim_time.")
    ] = False,
    left_topic: LeftTopic = "",
    right_topic: RightTopic = "",
    calib: BagCalib = None,
    view: View = None,
) -> None:
    """Publish the stereo pairs of a bag on ROS topics, also where there is no ros2 command. Needs rclpy.

    A bag of packets, such as the demo's, is played as packets. With --view, its recorded boxes are played as well.
    In a terminal the space key pauses and resumes. Elsewhere, set the node's parameter paused.
    """
    from ..jobs.play import play

    images = {"left_topic": left_topic, "right_topic": right_topic, "calib": str(calib or "")}
    raise typer.Exit(play(path, frequency, loop, start, paused, clock, images, view))


@commands.command(
    "transcode",
    epilog=examples(
        "sicm bag transcode drive_bag out/packets_bag",
        "sicm bag transcode out/packets_bag out/boxes_bag --to detections",
        "sicm bag transcode /shared/drive_bag out/packets_bag --cluster tcp://10.0.0.5:8786",
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
    engine: EngineOption = "torch",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", "-w", min=1, metavar="N", show_default=False, help="Processes. Default: one for each core."
        ),
    ] = None,
    cluster: Cluster = "",
    storage: Annotated[str, typer.Option("--storage", metavar="KIND", help="sqlite3 or mcap.")] = "sqlite3",
    namespace: Annotated[str, typer.Option("--namespace", metavar="NAME", help="Prefix of the new topics.")] = "",
    left_topic: LeftTopic = "",
    right_topic: RightTopic = "",
    calib: BagCalib = None,
    as_json: Json = False,
) -> None:
    """Replace the stereo images of a bag by packets, which are a few hundred times smaller, or packets by boxes.

    Uses all cores, or a cluster. After a crash, run the same command again: it continues where it stopped.
    """
    if to not in ("packets", "detections"):
        raise ValueError(f"--to: expected packets or detections, got {to!r}")
    check_range("--threshold", threshold, 0, 1)
    check_workers(workers, cluster)
    from ..jobs.transcode import transcode

    with progress_bar("transcoding") as progress:
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
            cluster,
            engine,
        )
    if as_json:
        print_json({"bag": str(out), **done.__dict__})
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
