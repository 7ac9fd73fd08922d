#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Memory, threads and open files of the encoder and the decoder node over a long run, as processes over ROS 2 topics.

    python benchmarks/soak.py --minutes 30 --frequency 10 --model test/data/models/tiny

A player sends rendered pairs (or those of ``--kitti``) in a loop at the given frequency. Prints each process's resident
memory, threads and open files over time, then its growth between the first and the last third of the run, and what was
sent, decoded and lost. Exits with 1 if a process ended, if its memory grew by more than ``--limit`` MB, or if fewer
than ``--share`` of the pairs came back as boxes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from sicm_ros.data.rendered import render_dataset
from sicm_ros.ros.node_process import NodeProcess, image_profile_variables

NAMESPACE = "/soak"
WARM_UP_S = 20.0  # allocators and discovery settle


class Sample(NamedTuple):
    """What a process holds at one moment."""

    memory_mb: float
    threads: int
    files: int


def sample(pid: int) -> Sample:
    """Read it from /proc."""
    process = Path(f"/proc/{pid}")
    values = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    memory = int(values["VmRSS"].split()[0]) / 1024
    return Sample(memory, int(values["Threads"]), len(list((process / "fd").iterdir())))


class Counter:
    """A node in this process that counts packets and arrays and keeps the decoder's last accounts."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from sicm_ros.msg import StereoBitstream
        from vision_msgs.msg import Detection3DArray

        from sicm_ros.ros.qos import boxes_qos

        self._context = rclpy.Context()
        rclpy.init(context=self._context, args=[])
        self.node = rclpy.create_node("soak", namespace=NAMESPACE, context=self._context)
        self.packets = self.arrays = 0
        self.values: dict[str, str] = {}
        self.node.create_subscription(StereoBitstream, "stereo_bitstream", self._on_packet, boxes_qos(100))
        self.node.create_subscription(Detection3DArray, "detections", self._on_boxes, boxes_qos(100))
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, boxes_qos(10))
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _on_packet(self, message: Any) -> None:
        self.packets += 1

    def _on_boxes(self, message: Any) -> None:
        self.arrays += 1

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            self.values.update({f"{status.name}/{value.key}": value.value for value in status.values})

    def value(self, status: str, key: str) -> str:
        """The last value that a node reported, 0 before it has."""
        return next((v for k, v in self.values.items() if k.endswith(f"{status}/{key}")), "0")

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown(2.0)
        self._context.try_shutdown()


def growth(samples: list[Sample]) -> float:
    """MB between the medians of the first and the last third."""
    third = max(1, len(samples) // 3)
    first, last = ([s.memory_mb for s in part] for part in (samples[:third], samples[-third:]))
    return statistics.median(last) - statistics.median(first)


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--frequency", type=float, default=10.0, help="pairs per second")
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kitti", type=Path, help="a source of stereo pairs; default: four rendered ones")
    parser.add_argument("--limit", type=float, default=8.0, help="MB that a process may grow")
    parser.add_argument("--share", type=float, default=0.95, help="of the pairs sent that must come back")
    args = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = args.kitti or root / "rendered"
        if args.kitti is None:
            render_dataset(source, count=4, seed=5)
        common = {"model": args.model, "device": args.device, "threads": 1}
        reliable = {"encoder": "image_reliability", "decoder": "bitstream_reliability"}
        nodes = {
            name: NodeProcess(name, {**common, parameter: "reliable"}, NAMESPACE, root / f"{name}.log")
            for name, parameter in reliable.items()
        }
        counter = Counter()
        play = {"path": source, "frequency": args.frequency, "loop": True, "stamps": "now"}
        player = NodeProcess("kitti_player", play, NAMESPACE, root / "player.log", image_profile_variables())
        samples: dict[str, list[Sample]] = {name: [] for name in nodes}
        begin, ended = time.monotonic(), False
        try:
            time.sleep(WARM_UP_S)
            sent = (counter.packets, counter.arrays)
            measured, step = time.monotonic(), min(15.0, args.minutes * 60 / 9)
            ended = any(process.status() is not None for process in (*nodes.values(), player))
            while (elapsed := time.monotonic() - measured) < args.minutes * 60 and not ended:
                line = [f"{elapsed / 60:6.1f} min"]
                for name, process in nodes.items():
                    samples[name].append(found := sample(process.pid))
                    line.append(f"{name} {found.memory_mb:.1f} MB {found.threads} threads {found.files} files")
                line.append(f"packets {counter.packets} arrays {counter.arrays}")
                line.append(f"end to end {counter.value('decoding', 'end_to_end_ms')} ms")
                print("   ".join(line), flush=True)
                time.sleep(step)
                ended = any(process.status() is not None for process in (*nodes.values(), player))
            seconds = time.monotonic() - measured
            packets, arrays = counter.packets - sent[0], counter.arrays - sent[1]
        finally:
            for process in (player, *nodes.values()):
                if process.status() is not None:
                    print(process.failure(), file=sys.stderr)
                process.stop()
            counter.close()
    expected = seconds * args.frequency
    grown = {name: growth(s) for name, s in samples.items()}
    print(f"{time.monotonic() - begin:.0f} s; of about {expected:.0f} pairs sent: {packets} packets, {arrays} arrays")
    for key in ("lost", "refused_late", "refused_duplicate"):
        print(f"decoder: {key} {counter.value('link', key)}")
    for name, megabytes in grown.items():
        print(f"{name}: {megabytes:+.1f} MB between the first and the last third of {len(samples[name])} samples")
    good = not ended and arrays >= args.share * expected and max(grown.values()) <= args.limit
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
