# SPDX-License-Identifier: Apache-2.0
"""Receives, records and times what the nodes of the demo exchange."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.ros.node_process import NodeProcess

__all__ = ["DemoError", "NAMESPACE", "Watcher"]

NAMESPACE = "/sicm_demo"
RECORDED = {
    "stereo_bitstream": "sicm_ros/msg/StereoBitstream",
    "codec_info": "sicm_ros/msg/CodecInfo",
    "detections": "vision_msgs/msg/Detection3DArray",
    "detection_markers": "visualization_msgs/msg/MarkerArray",
    "label_info": "vision_msgs/msg/LabelInfo",
    "left/camera_info": "sensor_msgs/msg/CameraInfo",
    "right/camera_info": "sensor_msgs/msg/CameraInfo",
}


class DemoError(ValueError):
    """The demo cannot go on; the message says which part failed and where its log is."""


class Watcher:
    """A ROS node in this process that receives, records and times what the three others exchange."""

    def __init__(self, bag: Path, environment: Mapping[str, str]) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import CameraInfo
        from vision_msgs.msg import Detection3DArray

        from sicm_ros.jobs.recorder import BagRecorder
        from sicm_ros.msg import DecodeStats, StereoBitstream
        from sicm_ros.ros.qos import boxes_qos

        self._context = rclpy.Context()
        os.environ.update(environment)
        rclpy.init(context=self._context, args=[])
        self.node = rclpy.create_node("sicm_demo", namespace=NAMESPACE, context=self._context)
        self.arrived = threading.Condition()
        self._error: Exception | None = None
        # By stamp; times are of the system's clock, nanoseconds.
        self.sent_ns: dict[int, int] = {}
        self.boxes: dict[int, tuple[int, Any]] = {}
        self.arrays = 0
        self.packets: dict[int, Any] = {}
        self.stats: dict[tuple[int, int], Any] = {}  # by session and sequence
        self.subscribers = 0
        subscriptions: tuple[tuple[Any, str, Any], ...] = (
            (CameraInfo, "left/camera_info", self._on_camera_info),
            (StereoBitstream, "stereo_bitstream", self._on_packet),
            (Detection3DArray, "detections", self._on_boxes),
            (DecodeStats, "decode_stats", self._on_stats),
            (DiagnosticArray, "/diagnostics", self._on_diagnostics),
        )
        for kind, topic, callback in subscriptions:
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

    def _on_camera_info(self, message: Any, info: Any) -> None:
        # The player sends this immediately before the images. Counted is when it was sent, since on a busy machine it
        # may be received after the encoder has begun.
        sent_ns = info["source_timestamp"]
        self._keep(lambda: self.sent_ns.update({nanoseconds(message.header.stamp): sent_ns}))

    def _on_packet(self, message: Any) -> None:
        self._keep(lambda: self.packets.update({nanoseconds(message.header.stamp): message}))

    def _on_boxes(self, message: Any) -> None:
        now_ns = time.time_ns()

        def store() -> None:
            self.arrays += 1
            self.boxes[nanoseconds(message.header.stamp)] = (now_ns, message)

        self._keep(store)

    def _on_stats(self, message: Any) -> None:
        self._keep(lambda: self.stats.update({(message.session, message.sequence): message}))

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
