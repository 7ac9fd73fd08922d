#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the nodes keep up with a camera: answered pairs, latency and CPU time of real processes over ROS 2 topics.

    python benchmarks/realtime.py --frequency 10
    python benchmarks/realtime.py --halves vehicle --frequency 20
    python benchmarks/realtime.py --halves remote --frequency 20

A player sends rendered pairs of 1242x375 (or those of ``--kitti``) with the time of sending as their stamp; where the
remote half alone is measured, this process sends their packets instead. Nothing else is set than what the launch files
set, so threads and engine are the nodes' own choice, unless given. A pair counts as answered if an array of boxes (of
the vehicle alone: a packet) with its stamp has arrived; its latency is from the stamp to that arrival. The last line of
each run has also the CPU time of each process for one second of the run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sicm_ros.data.kitti import KittiObject
from sicm_ros.data.rendered import render_dataset
from sicm_ros.inference import ENGINES
from sicm_ros.ros.node_process import NodeProcess, image_profile_variables

NAMESPACE = "/realtime"
WARM_UP_S = 3.0  # discovery, and the first pairs of a loop
READY_S = 180.0  # a model may have to be converted


class Probe:
    """A node in this process: when which stamp was sent, and when its answer came. Times in nanoseconds."""

    def __init__(self, answer: str) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import CameraInfo
        from sicm_ros.msg import StereoBitstream
        from vision_msgs.msg import Detection3DArray

        from sicm_ros.ros.qos import boxes_qos, image_qos, packet_qos

        self._context = rclpy.Context()
        rclpy.init(context=self._context, args=[])
        self.node = rclpy.create_node("realtime", namespace=NAMESPACE, context=self._context)
        self.sent: list[int] = []
        self.answered: dict[int, int] = {}
        kind = StereoBitstream if answer == "stereo_bitstream" else Detection3DArray
        self.node.create_subscription(kind, answer, self._on_answer, boxes_qos(100))
        self.node.create_subscription(CameraInfo, "left/camera_info", self._on_sent, image_qos("reliable"))
        self.publisher = self.node.create_publisher(StereoBitstream, "stereo_bitstream", packet_qos("reliable", 5, 1.0))
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _on_sent(self, message: Any) -> None:
        self.sent.append(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)

    def _on_answer(self, message: Any) -> None:
        self.answered[message.header.stamp.sec * 10**9 + message.header.stamp.nanosec] = time.time_ns()

    def send(self, packet: bytes, sequence: int) -> None:
        """Publish a packet with the present time as its stamp."""
        from builtin_interfaces.msg import Time
        from sicm_ros.msg import StereoBitstream
        from std_msgs.msg import Header

        now = time.time_ns()
        header = Header(stamp=Time(sec=now // 10**9, nanosec=now % 10**9), frame_id="camera_left_optical")
        message = StereoBitstream(header=header, right_stamp=header.stamp, session=1, sequence=sequence)
        message.data = array("B", packet)
        self.sent.append(now)
        self.publisher.publish(message)

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown(2.0)
        self._context.try_shutdown()


class PacketPlayer:
    """The packets of a source, encoded once, sent at a frequency in a loop by a thread of its own."""

    def __init__(self, probe: Probe, source: Path, model: str, engine: Any, frequency: float) -> None:
        from sicm_ros.codec.encoder import StereoEncoder

        encoder = StereoEncoder(model, engine=engine)
        frames = KittiObject(source)
        pairs = (frames[i] for i in range(len(frames)))
        self._packets = [encoder.encode(f.left, f.right, f.rig).packet for f in pairs]
        self._probe, self._period = probe, 1 / frequency
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def _play(self) -> None:
        begin, i = time.monotonic(), 0
        while not self._stopped.wait(max(0.0, begin + i * self._period - time.monotonic())):
            self._probe.send(self._packets[i % len(self._packets)], i)
            i += 1

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()
        self._thread.join()


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """What a process holds in memory, and has held at most."""
    values = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(values["VmHWM"].split()[0]) / 1024


def run(args: argparse.Namespace, source: Path, folder: Path) -> list[str]:
    """One run: the row of the table."""
    common: dict[str, object] = {"model": args.model, "device": args.device, "engine": args.engine}
    common["threads"] = args.threads
    modules = {"both": ("encoder", "decoder"), "vehicle": ("encoder",), "remote": ("decoder",)}[args.halves]
    nodes = {name: NodeProcess(name, common, NAMESPACE, folder / f"{name}.log") for name in modules}
    probe = Probe("stereo_bitstream" if args.halves == "vehicle" else "detections")
    player: NodeProcess | PacketPlayer | None = None
    try:
        _until_ready(probe, nodes)
        if args.halves == "remote":
            player = PacketPlayer(probe, source, args.model, args.engine, args.frequency)
            player.start()
        else:
            play = {"path": source, "frequency": args.frequency, "loop": True, "stamps": "now"}
            player = NodeProcess("kitti_player", play, NAMESPACE, folder / "player.log", image_profile_variables())
        deadline = time.monotonic() + READY_S
        while not probe.answered:
            if time.monotonic() > deadline:
                raise RuntimeError("no pair was answered")
            time.sleep(0.05)
        time.sleep(WARM_UP_S)
        first, begin = len(probe.sent), time.monotonic()
        used = {name: cpu_seconds(process.pid) for name, process in nodes.items()}
        if isinstance(player, NodeProcess):
            used["player"] = cpu_seconds(player.pid)
        while len(probe.sent) < first + args.pairs:
            time.sleep(0.02)
        seconds = time.monotonic() - begin
        pids = {name: process.pid for name, process in nodes.items()}
        if isinstance(player, NodeProcess):
            pids["player"] = player.pid
        cpu = {name: (cpu_seconds(pid) - used[name]) / seconds for name, pid in pids.items()}
        memory = {name: resident_mb(process.pid) for name, process in nodes.items()}
        time.sleep(1.0)  # what is on its way
        stamps = probe.sent[first : first + args.pairs]
    finally:
        for process in (player, *nodes.values()):
            if isinstance(process, NodeProcess) and process.status() is not None:
                print(process.failure(), file=sys.stderr)
            if process is not None:
                process.stop()
        probe.close()
    latency = [(probe.answered[stamp] - stamp) / 1e6 for stamp in stamps if stamp in probe.answered]
    found = [f"{x:.0f}" for x in np.percentile(latency, [50, 95, 99])] if latency else ["", "", ""]
    return [
        f"{(len(stamps) - 1) / max(1e-9, (stamps[-1] - stamps[0]) / 1e9):.1f}",
        f"{len(latency)} of {len(stamps)}",
        *found,
        ", ".join(f"{name} {share:.2f}" for name, share in cpu.items()),
        ", ".join(f"{name} {megabytes:.0f}" for name, megabytes in memory.items()),
    ]


def _until_ready(probe: Probe, nodes: dict[str, NodeProcess]) -> None:
    """Until each node has announced its model. Raises RuntimeError."""
    topics = {"encoder": "codec_info", "decoder": "label_info"}
    deadline = time.monotonic() + READY_S
    for name, process in nodes.items():
        while not probe.node.count_publishers(f"{NAMESPACE}/{topics[name]}"):
            if process.status() is not None:
                raise RuntimeError(process.failure())
            if time.monotonic() > deadline:
                raise RuntimeError(f"the {name} was not ready after {READY_S:.0f} s")
            time.sleep(0.05)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--halves", choices=("both", "vehicle", "remote"), default="both")
    parser.add_argument("--frequency", type=float, default=10.0, help="pairs per second")
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
    table = Table("pairs per s", "answered", "median ms", "p95", "p99", "CPU s per s", "memory at most, MB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = args.kitti or folder / "rendered"
        if args.kitti is None:
            render_dataset(source, count=8, seed=5)
        for _ in range(args.runs):
            table.add_row(*run(args, source, folder))
    console = Console()
    console.print(f"{args.halves}, {args.frequency:g} Hz, model {args.model}, engine {args.engine}", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
