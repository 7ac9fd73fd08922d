# SPDX-License-Identifier: Apache-2.0
"""The whole main job over real ROS 2 topics: player, encoder and decoder as three processes, watched from a fourth."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.data.kitti import KittiError, open_source
from sicm_ros.data.rendered import render_dataset
from sicm_ros.data.source import StereoFrame
from sicm_ros.geometry import Object3D
from sicm_ros.model_store import DEFAULT_MODEL, load_model
from sicm_ros.preprocessing import InputError
from sicm_ros.ros.node_process import NodeProcess, image_profile_variables

__all__ = ["DemoError", "FrameResult", "run"]

NAMESPACE = "/sicm_demo"
RENDERED_FRAMES = 6
MOST_FRAMES = 20
START_TIMEOUT_S = 90.0
RECORDED = {
    "stereo_bitstream": "sicm_ros/msg/StereoBitstream",
    "codec_info": "sicm_ros/msg/CodecInfo",
    "detections": "vision_msgs/msg/Detection3DArray",
    "detection_markers": "visualization_msgs/msg/MarkerArray",
    "label_info": "vision_msgs/msg/LabelInfo",
    "left/camera_info": "sensor_msgs/msg/CameraInfo",
    "right/camera_info": "sensor_msgs/msg/CameraInfo",
}
ENCODER_STAGES, DECODER_STAGES = ("preprocess", "backbone", "smfc", "entropy"), ("entropy", "smfc", "analysis")


class DemoError(ValueError):
    """The demo cannot go on; the message says which part failed and where its log is."""


@dataclass
class FrameResult:
    """What became of one stereo pair. Times in milliseconds; ``total_ms`` from the player's sending to the boxes."""

    name: str
    stamp_ns: int
    raw_bytes: int
    pixels: int
    packet_bytes: int | None = None
    boxes: list[Object3D] | None = None
    encoder_ms: dict[str, float] = field(default_factory=dict)
    decoder_ms: dict[str, float] = field(default_factory=dict)
    total_ms: float | None = None

    @property
    def bits_per_pixel(self) -> float | None:
        """Packet bits for each pixel of both images."""
        return None if self.packet_bytes is None else 8 * self.packet_bytes / self.pixels

    @property
    def transport_ms(self) -> float | None:
        """What the stages leave of the total: image and packet transport, pairing, waiting."""
        if self.total_ms is None or not self.decoder_ms:
            return None
        return self.total_ms - sum(self.encoder_ms.values()) - sum(self.decoder_ms.values())


def _environment() -> dict[str, str]:
    """For the nodes: a ROS domain of our own on this machine only, unless the user chose one."""
    variables = {"ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))}
    if "ROS_LOCALHOST_ONLY" not in os.environ:
        variables["ROS_AUTOMATIC_DISCOVERY_RANGE"] = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return variables


class _Watcher:
    """A ROS node in this process that receives, records and times what the three others exchange."""

    def __init__(self, bag: Path, environment: Mapping[str, str]) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import CameraInfo
        from vision_msgs.msg import Detection3DArray

        from sicm_ros.msg import StereoBitstream
        from sicm_ros.nodes.bag import BagRecorder
        from sicm_ros.ros.qos import boxes_qos

        self._context = rclpy.Context()
        os.environ.update(environment)
        rclpy.init(context=self._context, args=[])
        self.node = rclpy.create_node("sicm_demo", namespace=NAMESPACE, context=self._context)
        self.arrived = threading.Condition()
        self._error: Exception | None = None
        self.sent_at: dict[int, float] = {}
        self.boxes: dict[int, tuple[float, Any]] = {}
        self.arrays = 0
        self.packets: dict[int, Any] = {}
        self.stats: dict[str, dict[str, str]] = {}
        self.subscribers = 0
        for kind, topic, callback in (
            (CameraInfo, "left/camera_info", self._on_camera_info),
            (StereoBitstream, "stereo_bitstream", self._on_packet),
            (Detection3DArray, "detections", self._on_boxes),
            (DiagnosticStatus, "decode_stats", self._on_stats),
            (DiagnosticArray, "/diagnostics", self._on_diagnostics),
        ):
            self.node.create_subscription(kind, topic, callback, boxes_qos(100))
        self.recorder = BagRecorder(self.node, bag, RECORDED)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name="watcher", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error

    def _keep(self, store: Callable[[], None]) -> None:
        with self.arrived:
            store()
            self.arrived.notify_all()

    def _on_camera_info(self, message: Any) -> None:
        # The player sends this immediately before the images.
        now = time.monotonic()
        self._keep(lambda: self.sent_at.update({nanoseconds(message.header.stamp): now}))

    def _on_packet(self, message: Any) -> None:
        self._keep(lambda: self.packets.update({nanoseconds(message.header.stamp): message}))

    def _on_boxes(self, message: Any) -> None:
        now = time.monotonic()

        def store() -> None:
            self.arrays += 1
            self.boxes[nanoseconds(message.header.stamp)] = (now, message)

        self._keep(store)

    def _on_stats(self, message: Any) -> None:
        values = {value.key: value.value for value in message.values}
        self._keep(lambda: self.stats.update({message.hardware_id: values}))

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name.endswith("encoder_node: encoding"):
                values = {value.key: value.value for value in status.values}
                with self.arrived:
                    self.subscribers = int(values["subscribers"])
                    self.arrived.notify_all()

    def wait(self, condition: Callable[[], bool], timeout_s: float, alive: Sequence[NodeProcess]) -> bool:
        """Wait for ``condition``; False after ``timeout_s``. Raises DemoError if one of ``alive`` ends."""
        end = time.monotonic() + timeout_s
        while True:
            if self._error is not None:
                raise self._error
            for process in alive:
                if process.status() is not None:
                    raise DemoError(process.failure())
            with self.arrived:
                if condition():
                    return True
                if time.monotonic() >= end:
                    return False
                self.arrived.wait(0.1)

    def close(self) -> None:
        """Finish the bag, leave the graph."""
        self._executor.shutdown(2.0)
        self._thread.join(5.0)
        self.recorder.close()
        self.node.destroy_node()
        self._context.try_shutdown()


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
    KittiError, ModelError, InputError, ViewError or DemoError.
    """
    console = console or Console()
    out = Path(out)
    # What can be wrong is found out before anything is started.
    if view is not None:
        from sicm_ros.ros.rerun_view import check_view

        check_view(view)
    stored = load_model(model, "vehicle", "cpu")
    if rate is not None and not 0 <= rate <= len(stored.rates) - 1:
        raise InputError(f"rate: expected 0 to {len(stored.rates) - 1} for model {stored.name}, got {rate:g}")
    if frames is not None and frames < 1:
        raise DemoError(f"frames: expected at least 1, got {frames}")
    source_path = Path(kitti) if kitti is not None else _render(out, frames or RENDERED_FRAMES, console)
    source = open_source(source_path)
    count = min(len(source), frames or MOST_FRAMES)
    if not count:
        raise KittiError(f"{source_path}: expected at least one stereo pair, there is none")
    _clear(out)
    (out / "log").mkdir(parents=True, exist_ok=True)

    results = [
        FrameResult(
            frame.name,
            frame.stamp_ns,
            frame.left.nbytes + frame.right.nbytes,
            2 * frame.left.shape[0] * frame.left.shape[1],
        )
        for frame in (source[i] for i in range(count))
    ]
    console.print(f"{count} stereo pairs of {source_path}, model {stored.name}, three node processes over ROS 2 topics")
    arrays = _exchange(
        source_path, count, results, out, model, rate, device, score_threshold, stored.classes, console, view
    )

    with console.status("drawing"):
        pictures = _draw(source, results, out, stored.classes)
    _print_tables(results, console)
    answered = sum(result.boxes is not None for result in results)
    lost = count - answered
    sizes = [result.packet_bytes for result in results if result.packet_bytes is not None]
    _write_summary(results, out, stored.name, arrays)
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


def _clear(out: Path) -> None:
    """Remove what an earlier demo wrote there, and nothing else."""
    if (out / "bag" / "metadata.yaml").is_file() or not any((out / "bag").glob("*")):
        shutil.rmtree(out / "bag", ignore_errors=True)
    for path in [*out.glob("frame_*.png"), out / "overview.png", out / "summary.json"]:
        path.unlink(missing_ok=True)


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
    common = {
        "model": Path(model).resolve() if Path(model).is_dir() else model,
        "device": device,
        "threads": max(1, (os.cpu_count() or 2) // 2),
    }
    encoder_parameters = {
        **common,
        "image_reliability": "reliable",
        "queue_depth": 10,
        "lifespan": 0.0,
        "rate": float(-1 if rate is None else rate),
    }
    decoder_parameters = {
        **common,
        "bitstream_reliability": "reliable",
        "queue_depth": 10,
        "timeout": 0.0,
        "score_threshold": float(-1 if score_threshold is None else score_threshold),
    }
    started: list[tuple[str, Mapping[str, object]]] = [("encoder", encoder_parameters), ("decoder", decoder_parameters)]
    if view is not None:
        from sicm_ros.ros.rerun_view import viewer_parameters

        started.append(("viewer", viewer_parameters(view)))
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
    watcher: _Watcher | None = None
    try:
        with console.status("starting the encoder and the decoder") as status:
            for module, parameters in started:
                log = out / "log" / f"{module}.log"
                nodes.append(NodeProcess(module, parameters, NAMESPACE, log, environment))
            watcher = _Watcher(out / "bag", environment)
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
            watcher.wait(lambda: len(watcher.stats) >= len(watcher.boxes), 2.0, others)
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


def _collect(watcher: _Watcher, results: list[FrameResult], classes: Sequence[str]) -> None:
    from sicm_ros.conversion.boxes import boxes_of

    for result in results:
        packet = watcher.packets.get(result.stamp_ns)
        if packet is not None:
            result.packet_bytes = len(packet.data)
            result.encoder_ms = {stage: float(getattr(packet, f"{stage}_ms")) for stage in ENCODER_STAGES}
            stats = watcher.stats.get(f"{packet.session:016x}/{packet.sequence}", {})
            result.decoder_ms = {
                stage: float(stats[f"{stage}_ms"]) for stage in DECODER_STAGES if f"{stage}_ms" in stats
            }
        if result.stamp_ns in watcher.boxes:
            arrived, message = watcher.boxes[result.stamp_ns]
            result.boxes = boxes_of(message, classes)
            if result.stamp_ns in watcher.sent_at:
                result.total_ms = 1e3 * (arrived - watcher.sent_at[result.stamp_ns])


def _draw(source: Any, results: Sequence[FrameResult], out: Path, classes: Sequence[str]) -> list[Path]:
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


def _print_tables(results: Sequence[FrameResult], console: Console) -> None:
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


def _write_summary(results: Sequence[FrameResult], out: Path, model: str, arrays: int) -> None:
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
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
