# SPDX-License-Identifier: Apache-2.0
"""Plays a bag on ROS topics, where there is no ros2 command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sicm_ros.bags.reader import is_bag
from sicm_ros.bags.types import BagError
from sicm_ros.ros.node_process import NodeProcess, image_profile_variables

__all__ = ["play"]


def play(
    path: str | Path,
    frequency: float | None = None,
    loop: bool = False,
    start: float = 0.0,
    paused: bool = False,
    clock: bool = False,
    parameters: Mapping[str, object] | None = None,
    view: str | None = None,
) -> int:
    """Play a bag with the player node, in this process, until it ends; the exit status, 128 and its number after a
    signal.

    ``frequency`` in Hz (default: the bag's own); ``start`` in seconds; ``clock`` publishes the bag's time on /clock;
    ``parameters`` are further ones of the player node. In a terminal the space key pauses and goes on. ``view`` adds
    the viewer node, with its parameter of that name; recorded boxes are played then, too. Raises BagError or ViewError.
    """
    if not is_bag(path):
        raise BagError(f"{path}: expected a rosbag2 folder (with metadata.yaml) or a .db3 or .mcap file")
    from rclpy.parameter import Parameter

    from sicm_ros.jobs.keyboard import on_key
    from sicm_ros.nodes.kitti_player import KittiPlayerNode
    from sicm_ros.ros.run_node import run_node
    from sicm_ros.ros.stop_signals import StopSignals

    values = {
        "path": str(path),
        "frequency": float(frequency or 0.0),
        "loop": loop,
        "start": float(start),
        "paused": paused,
        "publish_clock": clock,
        **(parameters or {}),
    }
    if view is not None:
        from sicm_ros.ros.rerun_view import check_view

        check_view(view)
        values = {"replay_outputs": True, "wait_for": "viewer", **values}
    arguments = ["--ros-args"]
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else str(value)
        arguments += ["-p", f"{name}:={text}"]
    nodes: list[KittiPlayerNode] = []

    def make() -> KittiPlayerNode:
        nodes.append(KittiPlayerNode())
        return nodes[0]

    def toggle() -> None:
        if nodes:
            now = not nodes[0].value("paused")
            nodes[0].set_parameters([Parameter("paused", value=now)])
            nodes[0].get_logger().info("paused: the space key goes on" if now else "playing")

    def run() -> int:
        signals = StopSignals()
        with on_key(" ", toggle):
            status = run_node(make, arguments, signals)
        return 128 + signals.number if signals.number else status

    os.environ.update(image_profile_variables())
    if view is None:
        return run()
    from sicm_ros.ros.rerun_view import viewer_parameters

    viewer = NodeProcess("viewer", viewer_parameters(view))
    try:
        return run() or viewer.status() or 0
    finally:
        viewer.stop()
