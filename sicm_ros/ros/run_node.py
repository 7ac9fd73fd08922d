# SPDX-License-Identifier: Apache-2.0
"""How a node's process starts, spins and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from sicm_ros.ros.stop_signals import Stopped, StopSignals, unless_stopped
from sicm_ros.ros.surroundings import check_surroundings

__all__ = ["NodeError", "run_node"]


class NodeError(Exception):
    """The node cannot do its work with this configuration; the message is one line for the user."""


def run_node(make: Callable[[], Node], args: list[str] | None = None, signals: StopSignals | None = None) -> int:
    """Create the node, spin it until SIGINT, SIGTERM or shutdown, clean up. The exit status: 0, or 2 for bad
    configuration, of which one line goes to stderr.

    A node with a method ``start(stop: threading.Event) -> None`` is started after its creation. If it has an attribute
    ``exit_status`` that becomes a number, the process ends with it. ``signals`` tells the caller what came.
    """
    signals = signals or StopSignals()
    try:
        check_surroundings()
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # noqa: BLE001 - arguments and variables of ROS 2; its exceptions have no common base
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    node: Node | None = None
    executor = SingleThreadedExecutor()

    def start() -> None:
        nonlocal node
        node = make()
        executor.add_node(node)
        if hasattr(node, "start"):
            node.start(signals.stop)

    try:
        try:
            unless_stopped(start, signals.stop)
        except Stopped:
            return 0
        except (NodeError, ValueError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        # Python's handlers run between two calls of spin_once; hence its time limit.
        while rclpy.ok() and not signals.stop.is_set() and getattr(node, "exit_status", None) is None:
            executor.spin_once(timeout_sec=0.2)
        return getattr(node, "exit_status", None) or 0
    except ExternalShutdownException:
        return 0
    finally:
        if node is not None:
            if hasattr(node, "close"):
                node.close()
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown(timeout_sec=1.0)
        rclpy.try_shutdown()
        signals.ignore()
