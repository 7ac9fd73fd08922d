# SPDX-License-Identifier: Apache-2.0
"""The overlay node: the left image with the 3D boxes drawn into it, for those who look at images rather than scenes."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any, NoReturn

import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray

from sicm_ros.conversion.boxes import boxes_of
from sicm_ros.conversion.camera_info import CameraInfoError, left_rig
from sicm_ros.conversion.images import ImageError, rgb_from_compressed, rgb_to_message_fields, to_rgb
from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.geometry import StereoRig
from sicm_ros.pictures import CLASS_COLOURS, draw_boxes
from sicm_ros.ros.diagnostics import DiagnosticsWriter, Problems, Status, Window
from sicm_ros.ros.parameters import ParameterSpec, declare
from sicm_ros.ros.qos import RELIABILITIES, boxes_qos, image_qos, overridable
from sicm_ros.ros.run_node import run_node
from sicm_ros.ros.stop_signals import end_process

__all__ = ["PARAMETERS", "OverlayNode", "main"]

PARAMETERS = (
    ParameterSpec(
        "history", 30, "images that are kept until their boxes come: seconds of latency times the frame rate", 1, 1000
    ),
    ParameterSpec(
        "image_transport",
        "raw",
        "raw subscribes to Image on left/image_rect, compressed to CompressedImage on left/image_rect/compressed",
        choices=("raw", "compressed"),
    ),
    ParameterSpec(
        "image_reliability", "best_effort", "reliability of the image subscriptions", choices=tuple(RELIABILITIES)
    ),
    ParameterSpec("lazy", True, "subscribe to nothing while nobody subscribes to the output"),
)


class OverlayNode(Node):
    """Draws the boxes of ``detections`` into the left image of the same stamp; publishes ``detections_image``."""

    def __init__(self) -> None:
        super().__init__("overlay_node")
        declare(self, PARAMETERS)
        self.drawn = 0
        self.problems = Problems(self.get_logger().warning)
        self._images: OrderedDict[int, Any] = OrderedDict()
        self._rigs: OrderedDict[int, StereoRig] = OrderedDict()  # of the left camera
        self._waiting: OrderedDict[int, Detection3DArray] = OrderedDict()
        self._inputs: list[Any] = []
        self._window = Window()
        self._publisher = self.create_publisher(
            Image,
            "detections_image",
            boxes_qos(2),
            event_callbacks=PublisherEventCallbacks(matched=lambda _: self._follow_demand()),
            qos_overriding_options=overridable(publisher=True),
        )
        self._diagnostics = DiagnosticsWriter(self, self._collect)
        self._follow_demand()

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _follow_demand(self) -> None:
        wanted = not self._value("lazy") or self._publisher.get_subscription_count() > 0
        if wanted and not self._inputs:
            qos, options = image_qos(self._value("image_reliability")), overridable()
            topic, kind = self.resolve_topic_name("left/image_rect"), Image
            if self._value("image_transport") == "compressed":
                topic, kind = f"{topic}/compressed", CompressedImage
            self._inputs = [
                self.create_subscription(
                    CameraInfo, "left/camera_info", self._on_camera_info, qos, qos_overriding_options=options
                ),
                self.create_subscription(kind, topic, self._on_image, qos, qos_overriding_options=options),
                self.create_subscription(
                    Detection3DArray, "detections", self._on_boxes, boxes_qos(), qos_overriding_options=options
                ),
            ]
        elif not wanted and self._inputs:
            for subscription in self._inputs:
                self.destroy_subscription(subscription)
            self._inputs = []
            for kept in (self._images, self._rigs, self._waiting):
                kept.clear()

    # ---------------------------------------------------------------------------------------------------- input

    def _keep(self, kept: OrderedDict[int, Any], header: Header, what: Any) -> int:
        stamp = nanoseconds(header.stamp)
        kept[stamp] = what
        kept.move_to_end(stamp)
        if len(kept) > self._value("history"):
            kept.popitem(last=False)
        return stamp

    def _on_camera_info(self, message: CameraInfo) -> None:
        try:
            rig = left_rig(message)
        except CameraInfoError as error:
            self.problems.add("camera_info", str(error))
            return
        self._keep(self._rigs, message.header, rig)

    def _on_image(self, message: Image | CompressedImage) -> None:
        stamp = self._keep(self._images, message.header, message)
        if stamp in self._waiting:
            self._draw(stamp, self._waiting.pop(stamp))

    def _on_boxes(self, message: Detection3DArray) -> None:
        stamp = self._keep(self._waiting, message.header, message)
        if stamp in self._images:
            self._draw(stamp, self._waiting.pop(stamp))
        elif message.detections:
            # The decoder's empty array after a silence has no image; these boxes should have one.
            self.problems.add(
                "unmatched",
                f"no image on left/image_rect has the boxes' stamp {stamp / 1e9:.3f} yet: is it that of the "
                "encoder, and does the parameter history hold the whole latency?",
            )

    # --------------------------------------------------------------------------------------------------- output

    def _draw(self, stamp: int, boxes: Detection3DArray) -> None:
        started = time.perf_counter()
        image = self._images.pop(stamp)
        try:
            picture = self._picture(image, stamp, boxes)
        except (ImageError, CameraInfoError) as error:
            self.problems.add(type(error), f"image not drawn: {error}")
            return
        self._publisher.publish(Image(header=boxes.header, **rgb_to_message_fields(picture)))
        self.drawn += 1
        self._window.sample({"draw": 1e3 * (time.perf_counter() - started)})

    def _picture(self, message: Any, stamp: int, boxes: Detection3DArray) -> np.ndarray:
        image = rgb_from_compressed(message) if isinstance(message, CompressedImage) else to_rgb(message)
        rig = self._rigs.get(stamp) or next(reversed(self._rigs.values()), None)
        if rig is None:
            raise CameraInfoError("left/camera_info: no message yet")
        return draw_boxes(image, boxes_of(boxes, tuple(CLASS_COLOURS)), rig)

    def _collect(self) -> list[Status]:
        self._follow_demand()
        new, samples, seconds = self._window.tick({"drawn": self.drawn})
        status = Status("overlay")
        status.set(drawn=self.drawn, drawn_hz=new["drawn"] / seconds)
        if samples.get("draw"):
            status.set(draw_ms=sum(samples["draw"]) / len(samples["draw"]))
        if not self._inputs:
            status.report("OK", f"idle: nobody subscribes to {self._publisher.topic_name}")
        for kind in self.problems.recent():
            status.report("WARN", self.problems.latest[kind])
        return [status]


def main(args: list[str] | None = None) -> NoReturn:
    """Entry point of ``overlay_node``. Ends the process."""
    end_process(run_node(OverlayNode, args))


if __name__ == "__main__":
    main()
