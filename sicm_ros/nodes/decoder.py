# SPDX-License-Identifier: Apache-2.0
"""The decoder node, wherever the boxes are needed: packets of one or many vehicles in, 3D boxes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.exceptions import InvalidTopicNameException
from rclpy.validate_full_topic_name import validate_full_topic_name
from std_msgs.msg import Header

from sicm_ros.codec.packet import PacketError
from sicm_ros.conversion.boxes import label_info
from sicm_ros.msg import StereoBitstream
from sicm_ros.nodes.vehicle_link import Decoded, VehicleLink
from sicm_ros.ros.diagnostics import Status
from sicm_ros.ros.lifecycle import COMMON_PARAMETERS, ManagedNode, is_out_of_memory, set_network_threads
from sicm_ros.ros.parameters import ParameterSpec
from sicm_ros.ros.qos import RELIABILITIES
from sicm_ros.ros.run_node import run_node
from sicm_ros.ros.stop_signals import end_process
from sicm_ros.ros.worker import Worker

__all__ = ["PARAMETERS", "DecoderNode", "main", "vehicle_names"]

PARAMETERS = (
    *COMMON_PARAMETERS,
    ParameterSpec(
        "vehicles",
        ("",),
        "namespaces of the vehicles to serve, below the node's own; an empty one is the node's own",
        runtime=True,
    ),
    ParameterSpec(
        "score_threshold",
        -1.0,
        "boxes with a lower score are not published; -1 for the model's default",
        -1.0,
        1.0,
        runtime=True,
    ),
    ParameterSpec(
        "classes",
        ("",),
        "classes whose boxes are published, such as [car, cyclist]; an empty name for all of the model",
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
        "queue_depth",
        1,
        "packets of each vehicle that may wait to be decoded; when one more comes, the oldest is dropped",
        1,
        1000,
    ),
    ParameterSpec("max_batch", 8, "packets of different vehicles that are decoded together", 1, 256),
    ParameterSpec(
        "bitstream_reliability", "best_effort", "reliability of the packet subscription", choices=tuple(RELIABILITIES)
    ),
    ParameterSpec("bitstream_depth", 5, "received packets kept until they are taken", 1, 1000),
)


def vehicle_names(value: Sequence[str]) -> list[str]:
    """The namespaces in the parameter ``vehicles``. Raises ValueError for none, for doubles and for what is no name."""
    names = [name.strip().rstrip("/") for name in value]
    if not names:
        raise ValueError('vehicles: expected at least one namespace (an empty one, "", is the node\'s own)')
    if len(set(names)) < len(names):
        raise ValueError(f"vehicles: expected each namespace once, got {', '.join(map(repr, names))}")
    for name in names:
        try:
            validate_full_topic_name(f"/{name.removeprefix('/')}/detections" if name else "/detections")
        except InvalidTopicNameException as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"vehicles: expected namespaces such as car1 or fleet/car1, got {name!r}: {reason}"
            ) from None
    return names


@dataclass(frozen=True)
class _Received:
    link: VehicleLink
    message: StereoBitstream
    arrival_ns: int


class DecoderNode(ManagedNode):
    """Decodes packets in a thread of its own, those of several vehicles together; see ``VehicleLink`` for topics."""

    def __init__(self) -> None:
        self._decoder: Any = None
        self._model: Any = None
        self._worker: Worker[_Received] | None = None
        self._watchdog: Any = None
        self._links: dict[str, VehicleLink] = {}
        self._served: list[str] = []  # the parameter as it was when the links were made
        self._classes: frozenset[str] = frozenset()
        super().__init__("decoder_node", PARAMETERS, self._on_change)

    # ------------------------------------------------------------------------------------------------ lifecycle

    def configure(self) -> None:
        """Load the remote half of the model, create the publishers."""
        names = vehicle_names(self.value("vehicles"))
        set_network_threads(self.value("threads"), alone=len(names) > 1)
        self._load(self.value("device"))
        self._classes = self._chosen_classes(self.value("classes"))
        for name in names:
            self._links[name] = VehicleLink(self, name)
            self._links[name].open()
        self.get_logger().info(
            f"model {self._model.name}, fingerprint {self._model.fingerprint:016x}, engine {self._decoder.engine}"
        )

    def _load(self, device: str) -> None:
        from sicm_ros.codec.decoder import StereoDecoder
        from sicm_ros.model_store import load_model

        self._model = load_model(self.value("model"), half="remote", device=device)
        self._decoder = StereoDecoder(
            self._model, device=device, score_threshold=self._threshold(), engine=self.value("engine")
        )

    def activate(self) -> None:
        """Begin to listen."""
        self._worker = Worker(
            self._decode, self.value("queue_depth"), self._on_error, "decoder", batch=self.value("max_batch")
        )
        self._serve()
        self._watchdog = self.create_timer(0.1, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def deactivate(self) -> None:
        """Stop listening, let the packets in work finish."""
        for link in self._links.values():
            link.stop_listening()
        if self._watchdog is not None:
            self.destroy_timer(self._watchdog)
            self._watchdog = None
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def cleanup(self) -> None:
        """Free the model and the publishers."""
        for link in self._links.values():
            link.close()
        self._links = {}
        self._decoder = self._model = None

    def _serve(self) -> None:
        """Listen to just the vehicles that the parameter names; a removed one's boxes are cleared."""
        self._served = self.value("vehicles")
        names = vehicle_names(self._served)
        for name in [name for name in self._links if name not in names]:
            link = self._links.pop(name)
            link.clear()
            link.close()
        for name in names:
            if name not in self._links:
                self._links[name] = VehicleLink(self, name)
                self._links[name].open(enabled=True)
            self._links[name].listen(
                self._on_packet, self._model, self.value("bitstream_reliability"), self.value("bitstream_depth")
            )
            self._publish_label_info(self._links[name])

    # ---------------------------------------------------------------------------------------------------- input

    def _on_packet(self, link: VehicleLink, message: StereoBitstream) -> None:
        if self.value("lazy") and not link.wanted():
            link.skipped += 1
            return
        if self._worker is not None:
            self._worker.submit(_Received(link, message, time.monotonic_ns()), link.vehicle)

    # ----------------------------------------------------------------------------------- in the worker's thread

    def _decode(self, items: list[_Received]) -> None:
        started_ns = time.monotonic_ns()
        outcomes = self._outcomes([item.message.data.tobytes() for item in items])
        decoded_ns = time.monotonic_ns()
        lazy = self.value("lazy")
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._report(item, outcome)
                continue
            boxes = [box for box in outcome.objects if box.label in self._classes]
            stage_ms = {"wait": (started_ns - item.arrival_ns) / 1e6, **outcome.stage_ms}
            decoded = Decoded(item.message, boxes, stage_ms, len(items), item.arrival_ns, decoded_ns)
            item.link.refused_boxes += outcome.refused
            item.link.deliver(decoded, lazy)

    def _outcomes(self, packets: list[bytes]) -> list[Any]:
        """What each packet decodes to, or its error. A batch that fails is tried packet by packet."""
        try:
            return self._decoder.decode_batch(packets)
        except Exception as error:  # noqa: BLE001 - of one packet or of all: the rest must not suffer
            if len(packets) > 1:
                return [outcome for packet in packets for outcome in self._outcomes([packet])]
            if not is_out_of_memory(error):
                return [error]
            self.fall_back(f"out of memory on {self.value('device')}: decoding on the CPU until configured again")
        try:
            self._load("cpu")
            return self._decoder.decode_batch(packets)
        except Exception as error:  # noqa: BLE001
            return [error]

    def _report(self, item: _Received, error: Exception) -> None:
        if isinstance(error, PacketError):
            item.link.problems.add(type(error), f"packet {item.message.sequence} dropped: {error}")
            return
        item.link.errors += 1
        words = f"decoding failed: {type(error).__name__}: {error}"
        item.link.problems.add("decoding", f"packet {item.message.sequence} dropped: {words}")

    def _on_error(self, error: Exception, items: list[_Received]) -> None:
        for item in items:
            self._report(item, error)

    # ---------------------------------------------------------------------------------------------------- other

    def _watch(self) -> None:
        if self.value("vehicles") != self._served:
            self._serve()
        for link in self._links.values():
            link.watch(self.value("timeout"))

    def _threshold(self, value: float | None = None) -> float:
        value = self.value("score_threshold") if value is None else value
        return self._model.config.analysis.score_threshold if value < 0 else value

    def _chosen_classes(self, names: Sequence[str]) -> frozenset[str]:
        """The model's classes that ``names`` chooses, in any case of letters. Raises ValueError for any other name."""
        known = {label.lower(): label for label in self._model.config.classes}
        wanted = [name.strip().lower() for name in names if name.strip()]
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise ValueError(f"classes: expected some of {', '.join(known)}, got {', '.join(map(repr, unknown))}")
        return frozenset(known[name] for name in wanted) or frozenset(known.values())

    def _on_change(self, changed: dict[str, Any]) -> str | None:
        try:
            if "vehicles" in changed:
                vehicle_names(changed["vehicles"])  # the watchdog goes by it
            if "classes" in changed and self._model is not None:
                self._classes = self._chosen_classes(changed["classes"])
        except ValueError as error:
            return str(error)
        if "score_threshold" in changed and self._decoder is not None:
            threshold = self._threshold(changed["score_threshold"])
            self._decoder.score_threshold = threshold
            if self.state == "active":
                for link in self._links.values():
                    self._publish_label_info(link, threshold)
        return None

    def _publish_label_info(self, link: VehicleLink, threshold: float | None = None) -> None:
        header = Header(stamp=self.get_clock().now().to_msg())
        threshold = self._threshold() if threshold is None else threshold
        link.publish_label_info(label_info(header, self._model.config.classes, threshold))

    def collect(self) -> list[Status]:
        """Diagnostics: the link and the decoding of each vehicle."""
        timeout, lazy = self.value("timeout"), self.value("lazy")
        engine = self._decoder.engine if self._decoder is not None else ""
        return [
            status
            for link in self._links.values()
            for status in link.statuses(
                self._model, engine, timeout, lazy, self._worker.dropped[link.vehicle] if self._worker else 0
            )
        ]


def main(args: list[str] | None = None) -> NoReturn:
    """Entry point of ``decoder_node``. Ends the process."""
    end_process(run_node(DecoderNode, args))


if __name__ == "__main__":
    main()
