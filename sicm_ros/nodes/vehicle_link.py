# SPDX-License-Identifier: Apache-2.0
"""One vehicle of a decoder: topics in its namespace, counters of its packets, and its diagnostics."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from builtin_interfaces.msg import Time
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray, LabelInfo
from visualization_msgs.msg import MarkerArray

from sicm_ros.conversion.boxes import detection_array, marker_array
from sicm_ros.conversion.stamps import nanoseconds, time_fields
from sicm_ros.geometry import Object3D
from sicm_ros.msg import CodecInfo, DecodeStats, StereoBitstream
from sicm_ros.nodes.link_status import decode_stats, decoding_status, link_status
from sicm_ros.nodes.packet_sequence import Arrival, PacketSequence
from sicm_ros.ros.diagnostics import Problems, Status, Window
from sicm_ros.ros.qos import boxes_qos, latched_qos, overridable, packet_qos

__all__ = ["MAX_PACKET_BYTES", "Decoded", "VehicleLink"]

# No packet of any model comes near this; more is not worth looking at.
MAX_PACKET_BYTES = 4 << 20
# How many encoders' sequences are remembered.
MAX_SESSIONS = 8
# Stamps of recorded data are of another time; an age is shown only where it can be one.
MOST_AGE_MS = 60_000


@dataclass(frozen=True)
class Decoded:
    """A packet with its boxes, to be published. Times in nanoseconds are of the monotonic clock.

    ``stage_ms`` has "wait", "entropy", "smfc" and "analysis"; ``batch`` packets were decoded together.
    """

    message: StereoBitstream
    boxes: list[Object3D]
    stage_ms: Mapping[str, float]
    batch: int
    arrival_ns: int
    decoded_ns: int


class VehicleLink:
    """Packets of one vehicle in, its boxes out. ``vehicle`` is a namespace below the node's; "" is the node's own.

    Publishes ``detections``, ``detection_markers``, ``label_info`` and, for whoever wants the times of every frame,
    ``decode_stats``.
    """

    def __init__(self, node: LifecycleNode, vehicle: str) -> None:
        self.vehicle = vehicle
        self._node = node
        # One log line for each vehicle, and counters that another vehicle's trouble does not touch.
        prefix = f"{vehicle}: " if vehicle else ""
        self.problems = Problems(lambda text: node.get_logger().warning(prefix + text))
        self.received = self.decoded = self.lost = self.skipped = self.errors = self.timeouts = 0
        self.refused_boxes = 0  # not published, because they cannot exist
        self._window = Window()
        self._publishers: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._codec_info: CodecInfo | None = None
        self._sequences: OrderedDict[int, PacketSequence] = OrderedDict()
        self._lock = threading.Lock()
        self._last_packet: float | None = None
        self._last_header: Header | None = None
        self._boxes_shown = False

    def _topic(self, name: str) -> str:
        return f"{self.vehicle}/{name}" if self.vehicle else name

    # ------------------------------------------------------------------------------------------------ lifecycle

    def open(self, enabled: bool = False) -> None:
        """Create the publishers; ``enabled`` where the node is active already."""
        if self._publishers:
            return

        def create(kind: type, name: str, qos: Any, **options: Any) -> None:
            publisher = self._node.create_lifecycle_publisher(kind, self._topic(name), qos, **options)
            if enabled:
                publisher.on_activate(None)
            self._publishers[name] = publisher

        create(Detection3DArray, "detections", boxes_qos(), qos_overriding_options=overridable(publisher=True))
        create(MarkerArray, "detection_markers", boxes_qos(), qos_overriding_options=overridable(publisher=True))
        create(DecodeStats, "decode_stats", boxes_qos(), qos_overriding_options=overridable(publisher=True))
        create(LabelInfo, "label_info", latched_qos())

    def listen(
        self, on_packet: Callable[[VehicleLink, StereoBitstream], None], model: Any, reliability: str, depth: int
    ) -> None:
        """Begin to receive. Packets that are new and of a possible size go to ``on_packet``."""
        if self._inputs:
            return
        self._sequences.clear()
        self._last_packet, self._last_header = None, None
        node, qos = self._node, packet_qos(reliability, depth)

        def packet(message: StereoBitstream) -> None:
            if self.accept(message):
                on_packet(self, message)

        def information(message: CodecInfo) -> None:
            self._codec_info = message
            problem = self._mismatch(model)
            if problem:
                self.problems.add("model", problem)

        self._inputs = [
            node.create_subscription(
                StereoBitstream, self._topic("stereo_bitstream"), packet, qos, qos_overriding_options=overridable()
            ),
            node.create_subscription(CodecInfo, self._topic("codec_info"), information, latched_qos()),
        ]

    def stop_listening(self) -> None:
        """Receive no more."""
        for subscription in self._inputs:
            self._node.destroy_subscription(subscription)
        self._inputs = []

    def close(self) -> None:
        """Destroy everything that ``open`` and ``listen`` made."""
        self.stop_listening()
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    # ---------------------------------------------------------------------------------------------------- input

    def _mismatch(self, model: Any) -> str | None:
        info = self._codec_info
        if info is None or model is None or info.fingerprint == model.fingerprint:
            return None
        return (
            f"the encoder uses model {info.model_name} (fingerprint {info.fingerprint:016x}), this node "
            f"{model.name} ({model.fingerprint:016x}): start both with the same model"
        )

    def accept(self, message: StereoBitstream) -> bool:
        """Count a packet; whether it is new and of a size that a packet can have."""
        with self._lock:
            self._last_packet, self._last_header = time.monotonic(), message.header
        self.received += 1
        if not self._account(message):
            return False
        if not 0 < len(message.data) <= MAX_PACKET_BYTES:
            self.problems.add(
                "size",
                f"packet {message.sequence} dropped: expected 1 to {MAX_PACKET_BYTES} bytes, got {len(message.data)}",
            )
            return False
        return True

    def _account(self, message: StereoBitstream) -> bool:
        """Count gaps in the sequence; False for a packet that came before, or after a later one."""
        sequence = self._sequences.get(message.session)
        known = sequence is not None
        if sequence is None:
            if self._sequences:
                self._node.get_logger().info(f"the encoder started anew: session {message.session:016x}")
            sequence = self._sequences[message.session] = PacketSequence()
        before = sequence.lost
        arrival, gap = sequence.add(message.sequence)
        self.lost += sequence.lost - before
        if arrival in (Arrival.DUPLICATE, Arrival.LATE):
            what = f"packet {message.sequence} of session {message.session:016x}"
            if arrival is Arrival.DUPLICATE:
                self.problems.add("duplicate", f"{what} came twice: does more than one bag or bridge publish it?")
            else:
                self.problems.add("late", f"{what} dropped: later ones came before it")
            return False
        if gap:
            self.problems.add("lost", f"{gap} packets lost before packet {message.sequence}")
        if known and next(reversed(self._sequences)) != message.session:
            topic = self._node.resolve_topic_name(self._topic("stereo_bitstream"))
            self.problems.add(
                "encoders", f"more than one encoder publishes on {topic}: give each vehicle its own namespace"
            )
        self._sequences.move_to_end(message.session)
        if len(self._sequences) > MAX_SESSIONS:
            self._sequences.popitem(last=False)
        return True

    # --------------------------------------------------------------------------------------------------- output

    def wanted(self) -> bool:
        """Whether anybody subscribes to what decoding a packet gives."""
        return any(self._has_subscriber(name) for name in ("detections", "detection_markers", "decode_stats"))

    def _has_subscriber(self, name: str) -> bool:
        publisher = self._publishers.get(name)
        return publisher is not None and publisher.get_subscription_count() > 0

    def publish_label_info(self, message: LabelInfo) -> None:
        """Latched: the classes and the threshold."""
        self._publishers["label_info"].publish(message)

    def deliver(self, decoded: Decoded, lazy: bool) -> None:
        """Publish the boxes of a packet, and then the times that it took up to that."""
        message = decoded.message
        self._publish(message.header, decoded.boxes, f"{message.session:016x}-{message.sequence}", lazy)
        published_ns = time.monotonic_ns()
        age_ms = (self._node.get_clock().now().nanoseconds - nanoseconds(message.header.stamp)) / 1e6
        times_ms = {
            **decoded.stage_ms,
            "publish": (published_ns - decoded.decoded_ns) / 1e6,
            "total": (published_ns - decoded.arrival_ns) / 1e6,
        }
        if 0 <= age_ms < MOST_AGE_MS:
            times_ms["end_to_end"] = age_ms
        self._boxes_shown = True
        self.decoded += 1
        boxes = len(decoded.boxes)
        self._window.sample(
            {**times_ms, "batch": float(decoded.batch), "boxes": float(boxes), "bytes": float(len(message.data))}
        )
        if self._has_subscriber("decode_stats"):
            self._publishers["decode_stats"].publish(decode_stats(message, times_ms, boxes, decoded.batch))

    def _publish(self, header: Header, boxes: list[Object3D], prefix: str, lazy: bool) -> None:
        if not self._publishers:
            return  # the vehicle was removed while its packet was in work
        if not lazy or self._has_subscriber("detections"):
            self._publishers["detections"].publish(detection_array(header, boxes, prefix))
        if not lazy or self._has_subscriber("detection_markers"):
            self._publishers["detection_markers"].publish(marker_array(header, boxes))

    def watch(self, timeout: float) -> None:
        """Clear the boxes, once, when packets stop: otherwise RViz shows the last ones for ever."""
        silence = self._silence()
        if not timeout or silence is None or silence < timeout or not self._boxes_shown or self._last_header is None:
            return
        self.timeouts += 1
        self.clear(silence)
        self.problems.add("timeout", f"no packet for {silence:.1f} s: boxes cleared")

    def clear(self, seconds: float = 0.0) -> None:
        """Publish an empty array, stamped ``seconds`` after the last packet, where boxes were published before."""
        if self._boxes_shown and self._last_header is not None:
            header = Header(stamp=_later(self._last_header.stamp, seconds), frame_id=self._last_header.frame_id)
            self._publish(header, [], "", lazy=False)
        self._boxes_shown = False

    def _silence(self) -> float | None:
        """Seconds since the last packet, or None before the first."""
        with self._lock:
            return None if self._last_packet is None else time.monotonic() - self._last_packet

    # ---------------------------------------------------------------------------------------------- diagnostics

    def statuses(self, model: Any, engine: str, timeout: float, lazy: bool, dropped: int) -> list[Status]:
        """The link, and the decoding; ``dropped`` packets were pushed out of the queue by newer ones."""
        totals = {
            "received": self.received,
            "decoded": self.decoded,
            "lost": self.lost,
            "late": dropped,
        }
        new, samples, seconds = self._window.tick(totals)
        recent = self.problems.recent()
        topic = self._node.resolve_topic_name(self._topic("stereo_bitstream"))
        idle = lazy and not self.wanted()
        figures: dict[str, int | str] = {
            "engine": engine,
            "errors": self.errors,
            "refused_boxes": self.refused_boxes,
            "skipped_without_subscriber": self.skipped,
            "dropped_queue": dropped,
            "timeouts": self.timeouts,
        }
        statuses = [
            link_status(
                new,
                samples,
                seconds,
                totals,
                topic,
                self._silence(),
                timeout,
                self._mismatch(model),
                self.problems,
                recent,
            ),
            decoding_status(new, samples, seconds, self.decoded, figures, self.problems, recent, idle),
        ]
        for status in statuses:
            status.name = f"{self.vehicle} {status.name}".strip()
        return statuses


def _later(stamp: Time, seconds: float) -> Time:
    """The time of the source, carried on. Any stamp will do: it came over the link (rclpy's refuses negative ones)."""
    later = time_fields(nanoseconds(stamp) + round(seconds * 1e9))
    return Time(sec=min(later["sec"], 2**31 - 1), nanosec=later["nanosec"])
