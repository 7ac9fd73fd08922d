# SPDX-License-Identifier: Apache-2.0
"""The demo: player, encoder and decoder as three processes over real ROS 2 topics, recorded by this process."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from sicm_ros.codec.encoder import checked_rate
from sicm_ros.codec.input_warnings import pair_warnings
from sicm_ros.data.kitti import KittiError, open_source
from sicm_ros.data.rendered import render_dataset, rendered_names
from sicm_ros.jobs.demo_files import claim
from sicm_ros.jobs.demo_report import (
    DECODER_STAGES,
    ENCODER_STAGES,
    FrameResult,
    draw_pictures,
    print_tables,
    write_summary,
)
from sicm_ros.jobs.demo_watcher import NAMESPACE, DemoError, Watcher
from sicm_ros.model_store import DEFAULT_MODEL, load_model, torch_device
from sicm_ros.ros.domain import own_domain
from sicm_ros.ros.node_process import NodeProcess, image_profile_variables
from sicm_ros.ros.surroundings import check_surroundings

__all__ = ["run"]

RENDERED_FRAMES = 6
MOST_FRAMES = 20
START_TIMEOUT_S = 90.0


def _environment() -> dict[str, str]:
    """For the nodes: a ROS domain of our own on this machine only, unless the user chose one."""
    ours = {} if "ROS_DOMAIN_ID" in os.environ else own_domain()
    if "ROS_LOCALHOST_ONLY" in os.environ:
        ours.pop("ROS_AUTOMATIC_DISCOVERY_RANGE", None)
    else:
        ours["ROS_AUTOMATIC_DISCOVERY_RANGE"] = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return ours


def run(
    kitti: str | Path | None = None,
    out: str | Path = "out/demo",
    model: str = DEFAULT_MODEL,
    frames: int | None = None,
    rate: float | None = None,
    device: str = "cpu",
    score_threshold: float | None = None,
    console: Console | None = None,
    view: str | None = None,
) -> int:
    """Play stereo pairs through the encoder and decoder nodes; pictures, a bag and ``summary.json`` go to ``out``.

    ``kitti`` is any KITTI folder; without it a few pairs are rendered. ``rate`` is the codec's. ``view`` adds the
    viewer node: its parameter of that name. The result is an exit status: 0 if boxes came back for every pair. Raises
    KittiError, ModelError, InputError, ViewError, BagError,
    FolderError or DemoError, and OSError where ``out`` cannot be written.
    """
    console = console or Console()
    out = Path(out)
    # What can be wrong is found out before anything is started.
    if view is not None:
        from sicm_ros.ros.rerun_view import check_view

        check_view(view)
    check_surroundings()
    torch_device(device)
    stored = load_model(model, "vehicle", "cpu")
    checked_rate(stored, rate)
    if frames is not None and frames < 1:
        raise DemoError(f"frames: expected at least 1, got {frames}")
    if kitti is not None:
        source = open_source(kitti)
        names = [*source.ids[: frames or MOST_FRAMES]]
        if not names:
            raise KittiError(f"{kitti}: expected at least one stereo pair, there is none")
    else:
        names = rendered_names(frames or RENDERED_FRAMES)
    written = [*(f"frame_{name}.png" for name in names), "overview.png", "summary.json", "bag", "log"]
    claim(out, written if kitti is not None else [*written, "rendered"])
    source_path = Path(kitti) if kitti is not None else _render(out, len(names), console)
    source = open_source(source_path)
    count = len(names)
    (out / "log").mkdir(exist_ok=True)

    results, warnings = [], dict[str, str]()
    for i in range(count):
        frame = source[i]
        height, width = frame.left.shape[:2]
        results.append(FrameResult(frame.name, frame.stamp_ns, frame.left.nbytes + frame.right.nbytes, (width, height)))
        for words in pair_warnings(stored, frame.left, frame.right, frame.rig):
            warnings.setdefault(words, frame.name)
    played = f"{count}" if count == len(source) else f"the first {count} of {len(source)}"
    console.print(
        f"{played} stereo pairs of {source_path}, model {stored.name}, three node processes over ROS 2 topics"
        + ("" if count == len(source) or frames else "; --frames plays more"),
        soft_wrap=True,
    )
    for words, name in warnings.items():
        console.print(f"[yellow]warning: pair {name}: {words}[/yellow]", soft_wrap=True)
    arrays = _exchange(
        source_path, count, results, out, model, rate, device, score_threshold, stored.classes, console, view
    )

    with console.status("drawing"):
        pictures = draw_pictures(source, results, out, stored.classes)
    print_tables(results, console)
    answered = sum(result.boxes is not None for result in results)
    lost = count - answered
    sizes = [result.packet_bytes for result in results if result.packet_bytes is not None]
    write_summary(results, out, stored.name, arrays)
    mean = f"{statistics.fmean(sizes):.0f} bytes on average" if sizes else "no packet"
    colour = "green" if not lost and arrays == count else "red"
    console.print(f"[{colour}]{count} pairs sent, {arrays} box arrays received, {lost} lost; {mean}[/{colour}]")
    console.print(
        f"pictures: {pictures[-1]} and {len(pictures) - 1} more; bag: {out / 'bag'}; logs: {out / 'log'}",
        soft_wrap=True,
    )
    if view is not None and view.endswith(".rrd"):
        console.print(f"recording: {view}; to look at it: rerun {view}", soft_wrap=True)
    return 0 if not lost and arrays == count else 1


def _render(out: Path, count: int, console: Console) -> Path:
    folder = out / "rendered"
    with console.status("rendering stereo pairs") as status:
        render_dataset(
            folder,
            count=count,
            seed=5,
            progress=lambda done, total: status.update(f"rendering stereo pairs: {done} of {total}"),
        )
    return folder


def _exchange(
    source: Path,
    count: int,
    results: list[FrameResult],
    out: Path,
    model: str,
    rate: float | None,
    device: str,
    score_threshold: float | None,
    classes: Sequence[str],
    console: Console,
    view: str | None,
) -> int:
    """Run the nodes on the source and fill in the results; the number of box arrays that came."""
    environment = _environment()
    started = _node_parameters(model, rate, device, score_threshold, view)
    # Of the packets and of the camera infos: the decoder or the encoder, the watcher and its recorder, the viewer.
    listeners = len(started) + 1
    player_parameters = {
        "path": source.resolve(),
        "count": count,
        "lockstep": True,
        "lockstep_timeout": 30.0,
        "subscribers": listeners,
    }
    nodes: list[NodeProcess] = []
    watcher: Watcher | None = None
    try:
        with console.status("starting the encoder and the decoder") as status:
            for module, parameters in started:
                log = out / "log" / f"{module}.log"
                nodes.append(NodeProcess(module, parameters, NAMESPACE, log, environment))
            watcher = Watcher(out / "bag", environment)
            # All of them must be known to the encoder, or they could miss a packet; and to the player.
            if not watcher.wait(lambda: watcher.subscribers >= listeners, START_TIMEOUT_S, nodes):
                raise DemoError(f"the nodes did not find each other within {START_TIMEOUT_S:g} s, see {out / 'log'}")
            images = {**environment, **image_profile_variables()}
            player_log = out / "log" / "kitti_player.log"
            player = NodeProcess("kitti_player", player_parameters, NAMESPACE, player_log, images)
            others = list(nodes)
            nodes.append(player)

            def finished() -> bool:
                status.update(f"playing in lock-step: {len(watcher.boxes)} of {count} pairs answered")
                return player.status() is not None

            watcher.wait(finished, START_TIMEOUT_S + 35.0 * count, others)
            if player.status() not in (0, 1):
                raise DemoError(player.failure())
            # The last frame's times come after its boxes.
            watcher.wait(lambda: len(watcher.stats) >= len(watcher.boxes), 30.0, others)
        _collect(watcher, results, classes)
        frame = results[0]
        info = open_source(source)[0]
        watcher.recorder.writer.write_static_transforms(info.rig, time.time_ns())
        if frame.boxes is None and player.status() == 1:
            console.print(player_log.read_text(errors="replace").strip(), markup=False, highlight=False)
        return watcher.arrays
    finally:
        for process in reversed(nodes):
            process.stop()
        if watcher is not None:
            watcher.close()


def _node_parameters(
    model: str, rate: float | None, device: str, score_threshold: float | None, view: str | None
) -> list[tuple[str, Mapping[str, object]]]:
    """Modules of the nodes beside the player, in the order of their start, with their parameters."""
    common = {
        "model": Path(model).resolve() if Path(model).is_dir() else model,
        "device": device,
        "threads": max(1, (os.cpu_count() or 2) // 2),
        "queue_depth": 10,
    }
    encoder = {
        **common,
        "image_reliability": "reliable",
        "lifespan": 0.0,
        "rate": float(-1 if rate is None else rate),
    }
    decoder = {
        **common,
        "bitstream_reliability": "reliable",
        "timeout": 0.0,
        "score_threshold": float(-1 if score_threshold is None else score_threshold),
    }
    nodes: list[tuple[str, Mapping[str, object]]] = [("encoder", encoder), ("decoder", decoder)]
    if view is not None:
        from sicm_ros.ros.rerun_view import viewer_parameters

        nodes.append(("viewer", viewer_parameters(view)))
    return nodes


def _collect(watcher: Watcher, results: list[FrameResult], classes: Sequence[str]) -> None:
    from sicm_ros.conversion.boxes import boxes_of

    for result in results:
        packet = watcher.packets.get(result.stamp_ns)
        if packet is not None:
            result.packet_bytes = len(packet.data)
            result.encoder_ms = {stage: float(getattr(packet, f"{stage}_ms")) for stage in ENCODER_STAGES}
            stats = watcher.stats.get((packet.session, packet.sequence))
            if stats is not None:
                result.decoder_ms = {stage: float(getattr(stats, f"{stage}_ms")) for stage in DECODER_STAGES}
        if result.stamp_ns in watcher.boxes:
            arrived_ns, message = watcher.boxes[result.stamp_ns]
            result.boxes = boxes_of(message, classes)
            if result.stamp_ns in watcher.sent_ns:
                result.total_ms = (arrived_ns - watcher.sent_ns[result.stamp_ns]) / 1e6
