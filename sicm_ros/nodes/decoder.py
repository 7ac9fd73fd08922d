# SPDX-License-Identifier: Apache-2.0
"""The decoder node, wherever the boxes are needed: packets in, 3D boxes out."""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from typing import Any

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray, LabelInfo
from visualization_msgs.msg import MarkerArray

from sicm_ros.geometry import Object3D
from sicm_ros.msg import CodecInfo, StereoBitstream
from sicm_ros.nodes.detections import detection_array, label_info, marker_array
from sicm_ros.nodes.diagnostics import Status, Window
from sicm_ros.nodes.managed import COMMON_PARAMETERS, ManagedNode
from sicm_ros.nodes.parameters import ParameterSpec
from sicm_ros.nodes.process import run_node
from sicm_ros.nodes.qos import RELIABILITIES, boxes_qos, latched_qos, overridable, packet_qos
from sicm_ros.nodes.worker import Worker

__all__ = ["PARAMETERS", "DecoderNode", "main"]

# No packet of any model comes near this; more is not worth looking at.
MAX_PACKET_BYTES = 4 << 20
# How many encoders' sequence numbers are remembered.
MAX_SESSIONS = 8

PARAMETERS = (
    *COMMON_PARAMETERS,
    ParameterSpec(
        "score_threshold",
        -1.0,
        "boxes with a lower score are not published; -1 for the model's default",
        -1.0,
        1.0,
        runtime=True,
    ),
    ParameterSpec(
        "timeout",
        1.0,
        "seconds without a packet after which an empty array is published and the diagnostics "
        "turn STALE; 0 to never do so",
        0.0,
        3600.0,
        runtime=True,
    ),
    ParameterSpec(
        "queue_depth", 1, "packets that may wait to be decoded; when one more comes, the oldest is dropped", 1, 1000
    ),
    ParameterSpec(
        "bitstream_reliability", "best_effort", "reliability of the packet subscription", choices=tuple(RELIABILITIES)
    ),
    ParameterSpec("bitstream_depth", 5, "received packets kept until they are taken", 1, 1000),
)


class DecoderNode(ManagedNode):
    """Decodes each packet in a thread of its own; publishes ``detections``, ``detection_markers``, ``label_info``
    and, for
    whoever wants the times of every frame, ``decode_stats``.
    """

    def __init__(self) -> None:
        self._decoder: Any = None
        self._model: Any = None
        self._worker: Worker[tuple[StereoBitstream, int]] | None = None
        self._inputs: list[Any] = []
        self._watchdog: Any = None
        self._window = Window()
        self._sequences: OrderedDict[int, int] = OrderedDict()
        self._codec_info: CodecInfo | None = None
        self._state_lock = threading.Lock()
        self._last_packet: float | None = None
        self._last_header: Header | None = None
        self._boxes_shown = False
        self.received = self.decoded = self.lost = self.skipped = self.errors = self.timeouts = 0
        super().__init__("decoder_node", PARAMETERS, self._on_change)

    # ------------------------------------------------------------------------------------------------ lifecycle

    def configure(self) -> None:
        """Load the remote half of the model, create the publishers."""
        import torch

        from sicm_ros.codec.decoder import StereoDecoder
        from sicm_ros.model_store import load_model

        if self.value("threads"):
            torch.set_num_threads(self.value("threads"))
        self._model = load_model(self.value("model"), half="remote", device=self.value("device"))
        self._decoder = StereoDecoder(self._model, device=self.value("device"), score_threshold=self._threshold())
        options = overridable()
        self._boxes = self.create_lifecycle_publisher(
            Detection3DArray, "detections", boxes_qos(), qos_overriding_options=options
        )
        self._markers = self.create_lifecycle_publisher(
            MarkerArray, "detection_markers", boxes_qos(), qos_overriding_options=options
        )
        self._stats = self.create_lifecycle_publisher(
            DiagnosticStatus, "decode_stats", boxes_qos(), qos_overriding_options=options
        )
        self._labels = self.create_lifecycle_publisher(LabelInfo, "label_info", latched_qos())
        self.get_logger().info(f"model {self._model.name}, fingerprint {self._model.fingerprint:016x}")

    def activate(self) -> None:
        """Begin to listen."""
        self._worker = Worker(self._decode, self.value("queue_depth"), self._on_error, "decoder")
        self._sequences.clear()
        self._last_packet, self._last_header = None, None
        self._publish_label_info(self._threshold())
        self._inputs = [
            self.create_subscription(
                StereoBitstream,
                "stereo_bitstream",
                self._on_packet,
                packet_qos(self.value("bitstream_reliability"), self.value("bitstream_depth")),
                qos_overriding_options=overridable(),
            ),
            self.create_subscription(CodecInfo, "codec_info", self._on_codec_info, latched_qos()),
        ]
        self._watchdog = self.create_timer(0.1, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def deactivate(self) -> None:
        """Stop listening, let the packet in work finish."""
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []
        if self._watchdog is not None:
            self.destroy_timer(self._watchdog)
            self._watchdog = None
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def cleanup(self) -> None:
        """Free the model and the publishers."""
        for name in ("_boxes", "_markers", "_stats", "_labels"):
            publisher = getattr(self, name, None)
            if publisher is not None:
                self.destroy_lifecycle_publisher(publisher)
                setattr(self, name, None)
        self._decoder = self._model = None

    # ---------------------------------------------------------------------------------------------------- input

    def _on_codec_info(self, message: CodecInfo) -> None:
        self._codec_info = message
        problem = self._codec_mismatch()
        if problem:
            self.problems.add("model", problem)

    def _codec_mismatch(self) -> str | None:
        info = self._codec_info
        if info is None or self._model is None or info.fingerprint == self._model.fingerprint:
            return None
        return (
            f"the encoder uses model {info.model_name} (fingerprint {info.fingerprint:016x}), this node "
            f"{self._model.name} ({self._model.fingerprint:016x}): start both with the same model"
        )

    def _on_packet(self, message: StereoBitstream) -> None:
        now = time.monotonic()
        with self._state_lock:
            self._last_packet, self._last_header = now, message.header
        self.received += 1
        if not self._account(message):
            return
        if not 0 < len(message.data) <= MAX_PACKET_BYTES:
            self.problems.add(
                "size",
                f"packet {message.sequence} dropped: expected 1 to {MAX_PACKET_BYTES} bytes, got {len(message.data)}",
            )
            return
        if self.value("lazy") and not self._wanted():
            self.skipped += 1
            return
        if self._worker is not None:
            self._worker.submit((message, time.monotonic_ns()))

    def _account(self, message: StereoBitstream) -> bool:
        """Count gaps in the sequence; False for a packet that came before."""
        sequence, previous = message.sequence, self._sequences.get(message.session)
        if previous is None:
            if self._sequences:
                self.get_logger().info(f"the encoder started anew: session {message.session:016x}")
        elif sequence == previous:
            self.problems.add(
                "duplicate",
                f"packet {sequence} of session {message.session:016x} came twice: does more "
                "than one bag or bridge publish it?",
            )
            return False
        elif sequence > previous + 1:
            gap = sequence - previous - 1
            self.lost += gap
            self.problems.add("lost", f"{gap} packets lost before packet {sequence}")
        if previous is not None and next(reversed(self._sequences)) != message.session:
            topic = self.resolve_topic_name("stereo_bitstream")
            self.problems.add(
                "encoders", f"more than one encoder publishes on {topic}: give each vehicle its own namespace"
            )
        # A smaller number is a recording that starts over: nothing is lost then.
        self._sequences[message.session] = sequence
        self._sequences.move_to_end(message.session)
        if len(self._sequences) > MAX_SESSIONS:
            self._sequences.popitem(last=False)
        return True

    def _wanted(self) -> bool:
        return any(p.get_subscription_count() > 0 for p in (self._boxes, self._markers, self._stats))

    # ----------------------------------------------------------------------------------- in the worker's thread

    def _decode(self, item: tuple[StereoBitstream, int]) -> None:
        from sicm_ros.codec.packet import PacketError

        message, arrival_ns = item
        started_ns = time.monotonic_ns()
        try:
            decoded = self._decoder.decode(message.data.tobytes())
        except PacketError as error:
            self.problems.add(type(error).__name__, f"packet {message.sequence} dropped: {error}")
            return
        self._publish(message.header, decoded.objects, f"{message.session:016x}-{message.sequence}")
        self.decoded += 1
        finished_ns = time.monotonic_ns()
        stages = dict(decoded.stage_ms)
        stamp = message.header.stamp
        age = self.get_clock().now().nanoseconds / 1e6 - (stamp.sec * 1e3 + stamp.nanosec / 1e6)
        sample = {
            **stages,
            "wait": (started_ns - arrival_ns) / 1e6,
            "total": (finished_ns - arrival_ns) / 1e6,
            "boxes": float(len(decoded.objects)),
            "bytes": float(len(message.data)),
        }
        # Stamps of recorded data are of another time; an age is shown only where it can be one.
        if 0 <= age < 60_000:
            sample["end_to_end"] = age
        self._window.sample(sample)
        if self._stats.get_subscription_count() > 0:
            self._stats.publish(_frame_stats(message, sample))

    def _publish(self, header: Header, boxes: list[Object3D], prefix: str) -> None:
        if self._boxes.get_subscription_count() > 0 or not self.value("lazy"):
            self._boxes.publish(detection_array(header, boxes, prefix))
        if self._markers.get_subscription_count() > 0 or not self.value("lazy"):
            self._markers.publish(marker_array(header, boxes))
        self._boxes_shown = True

    def _on_error(self, error: Exception) -> None:
        self.errors += 1
        self.problems.add("decoding", f"packet dropped: decoding failed: {type(error).__name__}: {error}")

    # ---------------------------------------------------------------------------------------------------- other

    def _silence(self) -> float | None:
        """Seconds since the last packet, or None before the first."""
        with self._state_lock:
            return None if self._last_packet is None else time.monotonic() - self._last_packet

    def _watch(self) -> None:
        """Clear the boxes, once, when packets stop: otherwise RViz shows the last ones for ever."""
        timeout, silence = self.value("timeout"), self._silence()
        if not timeout or silence is None or silence < timeout or not self._boxes_shown or self._last_header is None:
            return
        self._boxes_shown = False
        self.timeouts += 1
        header = Header(stamp=_later(self._last_header.stamp, silence), frame_id=self._last_header.frame_id)
        self._boxes.publish(detection_array(header, [], ""))
        self._markers.publish(marker_array(header, []))
        self.problems.add("timeout", f"no packet for {silence:.1f} s: boxes cleared")

    def _threshold(self, value: float | None = None) -> float:
        value = self.value("score_threshold") if value is None else value
        return self._model.config.analysis.score_threshold if value < 0 else value

    def _on_change(self, changed: dict[str, Any]) -> str | None:
        if "score_threshold" in changed and self._decoder is not None:
            threshold = self._threshold(changed["score_threshold"])
            self._decoder.score_threshold = threshold
            if self.state == "active":
                self._publish_label_info(threshold)
        return None

    def _publish_label_info(self, threshold: float) -> None:
        header = Header(stamp=self.get_clock().now().to_msg())
        self._labels.publish(label_info(header, self._model.config.classes, threshold))

    def collect(self) -> list[Status]:
        """Diagnostics: the link, and the decoding."""
        totals = {
            "received": self.received,
            "decoded": self.decoded,
            "lost": self.lost,
            "late": self._worker.dropped if self._worker else 0,
            **{f"problem {kind}": count for kind, count in self.problems.counts.items()},
        }
        new, samples, seconds = self._window.tick(totals)
        return [self._link_status(new, samples, seconds), self._decoding_status(new, samples, seconds)]

    def _link_status(self, new: dict[str, int], samples: dict[str, list[float]], seconds: float) -> Status:
        status = Status("link")
        silence, timeout = self._silence(), self.value("timeout")
        status.set(
            packets=self.received,
            packets_hz=new["received"] / seconds,
            lost=self.lost,
            kbit_per_s=sum(samples.get("bytes", [])) * 8e-3 / seconds,
        )
        topic = self.resolve_topic_name("stereo_bitstream")
        if silence is None:
            status.report("STALE", f"no packet on {topic} yet: is the encoder active, in this namespace and domain?")
        elif timeout and silence > timeout:
            status.report(
                "STALE", f"no packet on {topic} for {silence:.1f} s: is the link up, and does the encoder get images?"
            )
        mismatch = self._codec_mismatch()
        if mismatch:
            status.report("ERROR", mismatch)
        refused = {kind: count for kind, count in self.problems.counts.items() if kind in _REFUSALS}
        status.set(**{f"refused_{kind}": count for kind, count in refused.items()})
        for kind in refused:
            if new.get(f"problem {kind}"):
                status.report("ERROR" if kind == "WrongModelError" else "WARN", self.problems.latest[kind])
        if new["lost"]:
            status.report(
                "WARN",
                f"{new['lost']} packets lost in the last second: lower the rate of the encoder, or "
                "use the Fast DDS profile for lossy links",
            )
        if new.get("problem encoders"):
            status.report("WARN", self.problems.latest["encoders"])
        return status

    def _decoding_status(self, new: dict[str, int], samples: dict[str, list[float]], seconds: float) -> Status:
        status = Status("decoding")
        status.set(
            decoded=self.decoded,
            decoded_hz=new["decoded"] / seconds,
            errors=self.errors,
            skipped_without_subscriber=self.skipped,
            dropped_queue=self._worker.dropped if self._worker else 0,
            timeouts=self.timeouts,
        )
        for name, values in samples.items():
            status.set(**{_with_unit(name): sum(values) / len(values)})
        if new.get("problem decoding"):
            status.report("ERROR", self.problems.latest["decoding"])
        if new["late"]:
            status.report(
                "WARN",
                f"{new['late']} packets dropped in the last second, decoding is slower than they "
                "come: use another device or a smaller model",
            )
        if not self._wanted() and self.value("lazy"):
            status.report("OK", "idle: nobody subscribes to the boxes")
        return status


_REFUSALS = (
    "NotAPacketError",
    "TruncatedPacketError",
    "DamagedPacketError",
    "WrongVersionError",
    "WrongModelError",
    "SymbolMismatchError",
    "ImplausiblePacketError",
    "PacketError",
    "size",
    "duplicate",
)


def _later(stamp: Time, seconds: float) -> Time:
    """The time of the source, carried on. Any stamp will do: it came over the link (rclpy's refuses negative ones)."""
    whole, part = divmod(stamp.sec * 10**9 + stamp.nanosec + int(seconds * 1e9), 10**9)
    return Time(sec=min(whole, 2**31 - 1), nanosec=part)


def _with_unit(name: str) -> str:
    return name if name in ("boxes", "bytes") else f"{name}_ms"


def _frame_stats(message: StereoBitstream, sample: dict[str, float]) -> DiagnosticStatus:
    """The times of one frame, for tools that want more than the means on /diagnostics."""
    stamp = message.header.stamp
    values = {
        "stamp": f"{stamp.sec}.{stamp.nanosec:09d}",
        **{
            f"encoder_{name}": f"{getattr(message, name):.3f}"
            for name in ("sync_ms", "preprocess_ms", "backbone_ms", "smfc_ms", "entropy_ms")
        },
        **{_with_unit(name): f"{value:.3f}" for name, value in sample.items()},
    }
    return DiagnosticStatus(
        level=DiagnosticStatus.OK,
        name="decode",
        message="decoded",
        hardware_id=f"{message.session:016x}/{message.sequence}",
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )


def main(args: list[str] | None = None) -> int:
    """Entry point of ``decoder_node``."""
    return run_node(DecoderNode, args)


if __name__ == "__main__":
    sys.exit(main())
