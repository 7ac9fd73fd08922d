#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long a node takes from its start to its first result, what it imports, and what it holds in memory.

    python benchmarks/start.py --runs 5

Pairs, or packets of them, come at 10 Hz before the node starts. The time is from the start of the process to the first
packet of an encoder, or the first boxes of a decoder. The import of a node's module is timed in processes of its own,
in turn with that of PyTorch and rclpy, which a node needs in any case. Memory is what it holds two seconds later.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from realtime import NAMESPACE, PacketPlayer, Probe, encoded, wait_for
from rich.console import Console
from rich.table import Table

from sicm_ros.data.rendered import render_dataset
from sicm_ros.inference import ENGINES
from sicm_ros.ros.node_process import NodeProcess, image_profile_variables

IMPORTS = ("torch, rclpy", "sicm_ros.nodes.encoder", "sicm_ros.nodes.decoder")


def import_seconds(module: str) -> float:
    """Of a new process, from its start to its end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - begin


def start(
    module: str, args: argparse.Namespace, source: Path, packets: list[bytes], folder: Path
) -> tuple[float, float]:
    """Seconds to the first result, and MB two seconds later."""
    probe = Probe("stereo_bitstream" if module == "encoder" else "detections", [""])
    player: NodeProcess | PacketPlayer
    if module == "encoder":
        play = {"path": source, "frequency": 10.0, "loop": True, "stamps": "now", "wait_timeout": 0.0}
        player = NodeProcess("kitti_player", play, NAMESPACE, folder / "player.log", image_profile_variables())
    else:
        player = PacketPlayer(probe, packets, [""], 10.0)
        player.start()
    processes: dict[str, NodeProcess] = {}
    try:
        wait_for(lambda: len(probe.sent) > 5, processes)
        begin = time.monotonic()
        parameters = {"model": args.model, "device": args.device, "engine": args.engine}
        processes[module] = NodeProcess(module, parameters, NAMESPACE, folder / f"{module}.log")
        wait_for(lambda: bool(probe.answered), processes)
        seconds = time.monotonic() - begin
        time.sleep(2.0)
        status = Path(f"/proc/{processes[module].pid}/status").read_text()
        megabytes = int(status.split("VmRSS:")[1].split()[0]) / 1024
    finally:
        for process in (player, *processes.values()):
            process.stop()
        probe.close()
    return seconds, megabytes


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    args = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(args.runs):
        for name, times in imports.items():
            times.append(import_seconds(name))
    starts: dict[str, list[tuple[float, float]]] = {"encoder": [], "decoder": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render_dataset(folder / "rendered", count=4, seed=5)
        packets = encoded(folder / "rendered", args.model)
        for _ in range(args.runs + 1):
            for module, results in starts.items():
                results.append(start(module, args, folder / "rendered", packets, folder))
    console = Console(width=120)
    table = Table("a process that imports", "s, median", "least", "most")
    for name, times in imports.items():
        table.add_row(name, f"{np.median(times):.2f}", f"{min(times):.2f}", f"{max(times):.2f}")
    console.print(table)
    table = Table("start to first result", "s, median", "least", "most", "first of all", "MB")
    for module, results in starts.items():
        seconds, memory = np.array(results[1:]).T  # the first one may have had to convert the model
        table.add_row(
            module,
            f"{np.median(seconds):.2f}",
            f"{seconds.min():.2f}",
            f"{seconds.max():.2f}",
            f"{results[0][0]:.2f}",
            f"{np.median(memory):.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
