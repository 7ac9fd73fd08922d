#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the nodes keep up with a camera: answered pairs, latency and CPU time of real processes over ROS 2 topics.

    python benchmarks/realtime.py --frequency 10
    python benchmarks/realtime.py --halves vehicle --frequency 20
    python benchmarks/realtime.py --halves remote --frequency 20
    python benchmarks/realtime.py --halves remote --vehicles 1 2 4 8 16 --frequency 60 --runs 1

A player sends rendered pairs of 1242x375 (or those of ``--kitti``) with the time of sending as their stamp; where the
remote half alone is measured, this process sends their packets instead, those of several vehicles in turn: the
frequency is of all together. Nothing else is set than what the launch files set, so threads and engine are the nodes'
own choice, unless given. A pair counts as answered if an array of boxes (of the vehicle alone: a packet) with its stamp
has arrived; its latency is from the stamp to that arrival. The wait is from the callback that completes a pair, or that
brings a packet, to the start of its encoding or decoding: of the decoder's packets as ``decode_stats`` tells it, of the
encoder's as its diagnostics do, that is the median of the means of each second, and the 95th percentile of the largest
of each second. Where more is sent than can be answered, the answered ones
per second are what a node carries.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.data.kitti import open_source
from sicm_ros.data.rendered import render_dataset
from sicm_ros.inference import ENGINES
from sicm_ros.ros.node_process import NodeProcess, image_profile_variables

NAMESPACE = "/realtime"
WARM_UP_S = 3.0  # discovery, and the first pairs of a loop
PAIRS = 8  # different ones, at most, where packets are sent
READY_S = 180.0  # a model may have to be converted


class Probe:
    """A node in this process: what was sent, as vehicle and stamp, and when its answer came. Times in nanoseconds."""

    def __init__(self, answer: str, vehicles: list[str]) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import CameraInfo
        from sicm_ros.msg import DecodeStats, StereoBitstream
        from vision_msgs.msg import Detection3DArray

        from sicm_ros.ros.qos import boxes_qos, image_qos, packet_qos

        self._context = rclpy.Context()
        rclpy.init(context=self._context, args=[])
        self.node = rclpy.create_node("realtime", namespace=NAMESPACE, context=self._context)
        self.sent: list[tuple[str, int]] = []
        self.answered: dict[tuple[str, int], int] = {}
        self.waits: dict[str, tuple[list[float], list[float]]] = {"encoder": ([], []), "decoder": ([], [])}
        self._publishers = {}
        for name in vehicles:
            prefix = f"{name}/" if name else ""
            kind = StereoBitstream if answer == "stereo_bitstream" else Detection3DArray
            self.node.create_subscription(kind, f"{prefix}{answer}", partial(self._on_answer, name), boxes_qos(100))
            if answer == "detections":
                self.node.create_subscription(DecodeStats, f"{prefix}decode_stats", self._on_stats, boxes_qos(100))
                self._publishers[name] = self.node.create_publisher(
                    StereoBitstream, f"{prefix}stereo_bitstream", packet_qos("reliable", 5, 1.0)
                )
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.node.create_subscription(CameraInfo, "left/camera_info", self._on_sent, image_qos("reliable"))
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _on_sent(self, message: Any) -> None:
        self.sent.append(("", nanoseconds(message.header.stamp)))

    def _on_answer(self, vehicle: str, message: Any) -> None:
        self.answered[vehicle, nanoseconds(message.header.stamp)] = time.time_ns()

    def _on_stats(self, message: Any) -> None:
        for values in self.waits["decoder"]:
            values.append(message.wait_ms)

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            if "wait_max_ms" in values:
                for waits, key in zip(self.waits["encoder"], ("wait_ms", "wait_max_ms"), strict=True):
                    waits.append(float(values[key]))

    def send(self, vehicle: str, packet: bytes, sequence: int) -> None:
        """Publish a vehicle's packet with the present time as its stamp."""
        from builtin_interfaces.msg import Time
        from sicm_ros.msg import StereoBitstream
        from std_msgs.msg import Header

        now = time.time_ns()
        header = Header(stamp=Time(sec=now // 10**9, nanosec=now % 10**9), frame_id="camera_left_optical")
        message = StereoBitstream(header=header, right_stamp=header.stamp, session=1, sequence=sequence)
        message.data = array("B", packet)
        self.sent.append((vehicle, now))
        self._publishers[vehicle].publish(message)

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown(2.0)
        self._context.try_shutdown()


class PacketPlayer:
    """Packets in a loop, of each vehicle in turn, at a frequency, by a thread of its own."""

    def __init__(self, probe: Probe, packets: list[bytes], vehicles: list[str], frequency: float) -> None:
        self._probe, self._packets, self._vehicles, self._period = probe, packets, vehicles, 1 / frequency
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def _play(self) -> None:
        begin, i = time.monotonic(), 0
        while not self._stopped.wait(max(0.0, begin + i * self._period - time.monotonic())):
            round_, place = divmod(i, len(self._vehicles))
            self._probe.send(self._vehicles[place], self._packets[round_ % len(self._packets)], round_)
            i += 1

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()
        self._thread.join()


def encoded(source: Path, model: str) -> list[bytes]:
    """The packets of a source's first pairs."""
    from sicm_ros.codec.encoder import StereoEncoder

    encoder, frames = StereoEncoder(model), open_source(source)
    pairs = (frames[i] for i in range(min(PAIRS, len(frames))))
    return [encoder.encode(pair.left, pair.right, pair.rig).packet for pair in pairs]


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """What a process has held in memory at most."""
    values = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(values["VmHWM"].split()[0]) / 1024


def run(args: argparse.Namespace, vehicles: list[str], source: Path, packets: list[bytes], folder: Path) -> list[str]:
    """One run: the row of the table."""
    parameters = {"model": args.model, "device": args.device, "engine": args.engine, "threads": args.threads}
    modules = {"both": ("encoder", "decoder"), "vehicle": ("encoder",), "remote": ("decoder",)}[args.halves]
    own: dict[str, dict[str, object]] = {"encoder": {}, "decoder": {}}
    if vehicles != [""]:
        own["decoder"] = {"vehicles": f"[{','.join(vehicles)}]"}
    processes = {
        name: NodeProcess(name, {**parameters, **own[name]}, NAMESPACE, folder / f"{name}.log") for name in modules
    }
    probe = Probe("stereo_bitstream" if args.halves == "vehicle" else "detections", vehicles)
    player = PacketPlayer(probe, packets, vehicles, args.frequency) if args.halves == "remote" else None
    try:
        _until_ready(probe, processes, vehicles)
        if player is not None:
            player.start()
        else:
            play = {"path": source, "frequency": args.frequency, "loop": True, "stamps": "now"}
            log = folder / "player.log"
            processes["player"] = NodeProcess("kitti_player", play, NAMESPACE, log, image_profile_variables())
        wait_for(lambda: bool(probe.answered), processes)
        time.sleep(WARM_UP_S)
        first, begin = len(probe.sent), time.monotonic()
        for waits in (values for both in probe.waits.values() for values in both):
            waits.clear()
        used = {name: cpu_seconds(process.pid) for name, process in processes.items()}
        wait_for(lambda: len(probe.sent) >= first + args.pairs, processes, READY_S + args.pairs / args.frequency)
        seconds = time.monotonic() - begin
        cpu = {name: (cpu_seconds(process.pid) - used[name]) / seconds for name, process in processes.items()}
        memory = {name: resident_mb(process.pid) for name, process in processes.items() if name != "player"}
        time.sleep(1.0)  # what is on its way
        sent = probe.sent[first : first + args.pairs]
    finally:
        if player is not None:
            player.stop()
        for process in reversed(processes.values()):
            process.stop()
        probe.close()
    latency = [(probe.answered[pair] - pair[1]) / 1e6 for pair in sent if pair in probe.answered]
    found = [f"{x:.0f}" for x in np.percentile(latency, [50, 95, 99])] if latency else ["", "", ""]
    duration = max(1e-9, (sent[-1][1] - sent[0][1]) / 1e9)
    return [
        f"{len(vehicles)}",
        f"{(len(sent) - 1) / duration:.1f}",
        f"{len(latency)} of {len(sent)}",
        f"{len(latency) / duration:.1f}",
        *found,
        "\n".join(
            f"{name} {np.median(typical):.1f} ({np.percentile(most, 95):.1f})"
            for name, (typical, most) in probe.waits.items()
            if typical
        ),
        "\n".join(f"{name} {share:.2f}" for name, share in cpu.items()),
        "\n".join(f"{name} {megabytes:.0f}" for name, megabytes in memory.items()),
    ]


def wait_for(condition: Callable[[], bool], processes: dict[str, NodeProcess], seconds: float = READY_S) -> None:
    """Until it holds. Raises RuntimeError if a process ends, or after a time in which it should have held."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes.values():
            if process.status() is not None:
                raise RuntimeError(process.failure())
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing came in {seconds:.0f} s")
        time.sleep(0.02)


def _until_ready(probe: Probe, processes: dict[str, NodeProcess], vehicles: list[str]) -> None:
    """Until each node has announced its model."""
    topics = {"encoder": "codec_info", "decoder": f"{vehicles[-1]}/label_info".lstrip("/")}
    for name in processes:
        topic = f"{NAMESPACE}/{topics[name]}"
        wait_for(lambda topic=topic: probe.node.count_publishers(topic) > 0, processes)  # type: ignore[misc]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--halves", choices=("both", "vehicle", "remote"), default="both")
    parser.add_argument("--frequency", type=float, default=10.0, help="pairs per second")
    parser.add_argument("--vehicles", type=int, nargs="+", default=[0], help="of one decoder; for --halves remote")
    parser.add_argument("--pairs", type=int, default=200, help="counted in each run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of each node; 0: its own choice")
    parser.add_argument("--kitti", type=Path, help="a source of stereo pairs; default: eight rendered ones")
    args = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if args.halves != "remote" and args.vehicles != [0]:
        parser.error("--vehicles: expected with --halves remote alone")
    head = (
        "vehicles",
        "sent per s",
        "answered",
        "per s",
        "median ms",
        "p95",
        "p99",
        "wait ms (p95)",
        "CPU s per s",
        "MB at most",
    )
    table = Table(*head)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = args.kitti or folder / "rendered"
        if args.kitti is None:
            render_dataset(source, count=PAIRS, seed=5)
        packets = encoded(source, args.model) if args.halves == "remote" else []
        for count in args.vehicles:
            for _ in range(args.runs):
                names = [f"car{i}" for i in range(count)] or [""]
                table.add_row(*run(args, names, source, packets, folder))
    console = Console(width=120)
    console.print(f"{args.halves}, {args.frequency:g} Hz, model {args.model}, engine {args.engine}", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
