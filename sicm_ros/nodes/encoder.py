# SPDX-License-Identifier: Apache-2.0
"""The encoder node, on the vehicle: rectified stereo images in, packets of a few kilobytes out."""

from __future__ import annotations

import array
import secrets
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from message_filters import Subscriber
from rclpy.event_handler import PublisherEventCallbacks
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from sicm_ros.codec.input_warnings import geometry_warning
from sicm_ros.codec.rate_control import BitWindow, RateController, RateDecision, wire_bytes
from sicm_ros.codec.swapped_views import SWAPPED_WARNING, views_swapped
from sicm_ros.conversion.camera_info import CameraInfoError, RigCache
from sicm_ros.conversion.codec_info import codec_info
from sicm_ros.conversion.images import ImageError, rgb_from_compressed, to_rgb
from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.data.source import SIDES, Side
from sicm_ros.geometry import StereoRig
from sicm_ros.msg import CodecInfo, StereoBitstream
from sicm_ros.nodes.encoder_status import encoding_status, input_status
from sicm_ros.nodes.stereo_sync import StereoSync
from sicm_ros.ros.diagnostics import ProblemKind, Status, Window
from sicm_ros.ros.lifecycle import COMMON_PARAMETERS, ManagedNode, is_out_of_memory, set_network_threads
from sicm_ros.ros.parameters import ParameterSpec
from sicm_ros.ros.qos import RELIABILITIES, image_qos, latched_qos, overridable, packet_qos
from sicm_ros.ros.run_node import run_node
from sicm_ros.ros.stop_signals import end_process
from sicm_ros.ros.worker import Worker

if TYPE_CHECKING:
    from sicm_ros.model_store import StoredModel

__all__ = ["PARAMETERS", "EncoderNode", "main"]

# How long a complete pair waits for CameraInfos that may still be under way.
CAMERA_INFO_WAIT_S = 0.2
# How often a pair is looked at for swapped images, which takes some milliseconds.
SWAP_CHECK_PERIOD_S = 5.0

PARAMETERS = (
    *COMMON_PARAMETERS,
    ParameterSpec(
        "rate",
        -1.0,
        "rate of the codec, 0 for the fewest bits, fractions in between; -1 for the model's default",
        -1.0,
        15.0,
        runtime=True,
    ),
    ParameterSpec(
        "max_bitrate",
        0,
        "bits per second that the packets may take on the wire in any second, headers included: the rate is "
        "lowered to keep within it, and a pair that cannot be is dropped; 0 for no limit",
        0,
        1_000_000_000,
        runtime=True,
    ),
    ParameterSpec(
        "sync", "approximate", "how left and right images are paired by their stamps", choices=("exact", "approximate")
    ),
    ParameterSpec(
        "sync_tolerance",
        0.01,
        "seconds between the stamps of a pair, for sync approximate; keep it below half of the frame period",
        0.0,
        1.0,
    ),
    ParameterSpec("sync_depth", 10, "images of each view that may wait for their partner", 1, 1000),
    ParameterSpec(
        "queue_depth", 1, "pairs that may wait to be encoded; when one more comes, the oldest is dropped", 1, 1000
    ),
    ParameterSpec(
        "image_transport",
        "raw",
        "raw subscribes to Image on left/image_rect, compressed to CompressedImage on left/image_rect/compressed; "
        "likewise right",
        choices=("raw", "compressed"),
    ),
    ParameterSpec(
        "image_reliability", "best_effort", "reliability of the image subscriptions", choices=tuple(RELIABILITIES)
    ),
    ParameterSpec("bitstream_reliability", "reliable", "reliability of the packets", choices=tuple(RELIABILITIES)),
    ParameterSpec("bitstream_depth", 5, "packets kept for retransmission", 1, 1000),
    ParameterSpec("lifespan", 1.0, "seconds after which a packet is not sent any more; 0 for no limit", 0.0, 60.0),
    ParameterSpec(
        "baseline", 0.0, "metres between the cameras, where camera_info lacks it; 0 to use camera_info", 0.0, 10.0
    ),
)


@dataclass(frozen=True)
class _Pair:
    left: Image | CompressedImage
    right: Image | CompressedImage
    sync_ms: float  # from the arrival of the first image until the pair was complete
    complete_ns: int  # when it was, as time.monotonic_ns has it


class EncoderNode(ManagedNode):
    """Pairs images, encodes each pair in a thread of its own, publishes ``stereo_bitstream`` and ``codec_info``."""

    def __init__(self) -> None:
        self._encoder: Any = None
        self._model: StoredModel | None = None  # loaded by configure
        self._subscribers: list[Subscriber] = []
        self._worker: Worker[_Pair] | None = None
        self._sync = StereoSync([], queue_size=1)  # activate makes the one in use
        self._rigs = RigCache()
        self._window = Window()
        # It outlives the model: bits sent before a reconfiguration are still on the link.
        self._sent_bits = BitWindow()
        self._session = self._sequence = 0
        self._checked_rig: StereoRig | None = None
        self._swapped, self._swap_checked = False, -SWAP_CHECK_PERIOD_S
        self._last_image: dict[Side, float] = {}
        self._demanded_since = 0.0
        self.packets = self.errors = self.refused = 0
        super().__init__("encoder_node", PARAMETERS, self._on_change)

    # ------------------------------------------------------------------------------------------------ lifecycle

    def configure(self) -> None:
        """Load the vehicle's half of the model, create the publishers."""
        set_network_threads(self.value("threads"))
        model = self._load(self.value("device"))
        refused = self._on_change({name: self.value(name) for name in ("rate", "max_bitrate")})
        if refused:
            raise ValueError(f"parameter {refused}")
        self._controller = RateController(model.config.highest_rate, self._sent_bits)
        self._session, self._sequence = secrets.randbits(64), 0
        self._info_publisher = self.create_lifecycle_publisher(CodecInfo, "codec_info", latched_qos())
        self._publisher = self.create_lifecycle_publisher(
            StereoBitstream,
            "stereo_bitstream",
            packet_qos(self.value("bitstream_reliability"), self.value("bitstream_depth"), self.value("lifespan")),
            event_callbacks=PublisherEventCallbacks(matched=lambda _: self._follow_demand()),
            qos_overriding_options=overridable(publisher=True),
        )
        self.get_logger().info(
            f"model {model.name}, fingerprint {model.fingerprint:016x}, engine {self._encoder.engine}, "
            f"session {self._session:016x}"
        )

    def _load(self, device: str) -> StoredModel:
        from sicm_ros.codec.encoder import StereoEncoder
        from sicm_ros.model_store import load_model

        self._model = load_model(self.value("model"), half="vehicle", device=device)
        self._encoder = StereoEncoder(self._model, device=device, engine=self.value("engine"))
        return self._model

    def activate(self) -> None:
        """Announce the codec, and subscribe to the images as soon as somebody listens."""
        tolerance = self.value("sync_tolerance") if self.value("sync") == "approximate" else 0.0
        self._sync = StereoSync([], self.value("sync_depth"), tolerance, self.get_clock())
        self._sync.registerCallback(self._on_pair)
        self._rigs = RigCache(self.value("baseline"))
        self._swapped, self._swap_checked = False, -SWAP_CHECK_PERIOD_S
        self._worker = Worker(self._encode, self.value("queue_depth"), self._on_error, "encoder")
        self._publish_codec_info()
        self.state = "active"
        self._follow_demand()

    def deactivate(self) -> None:
        """Unsubscribe, let the pair in work finish."""
        self._unsubscribe()
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def cleanup(self) -> None:
        """Free the model and the publishers."""
        for name in ("_publisher", "_info_publisher"):
            publisher = getattr(self, name, None)
            if publisher is not None:
                self.destroy_lifecycle_publisher(publisher)
                setattr(self, name, None)
        self._encoder = self._model = None

    # ---------------------------------------------------------------------------------------------------- input

    def _follow_demand(self) -> None:
        """Subscribe to the images while somebody listens (or always, if not lazy)."""
        if self.state != "active":
            return
        wanted = not self.value("lazy") or self._publisher.get_subscription_count() > 0
        if wanted and not self._subscribers:
            self._subscribe()
        elif not wanted and self._subscribers:
            self._unsubscribe()

    def _subscribe(self) -> None:
        self._demanded_since = time.monotonic()
        self._last_image = {}
        compressed = self.value("image_transport") == "compressed"
        infos = [self._subscriber(CameraInfo, f"{side}/camera_info") for side in SIDES]
        images = [self._subscriber(CompressedImage if compressed else Image, self._image_topic(side)) for side in SIDES]
        for side, info, image in zip(SIDES, infos, images, strict=True):
            info.registerCallback(self._on_camera_info, side)
            image.registerCallback(self._on_image, side)
        self._sync.connectInput(images)

    def _subscriber(self, kind: type, topic: str) -> Subscriber:
        profile = image_qos(self.value("image_reliability"))
        subscriber = Subscriber(self, kind, topic, qos_profile=profile, qos_overriding_options=overridable())
        self._subscribers.append(subscriber)
        return subscriber

    def _image_topic(self, side: Side) -> str:
        """Full name. As with image_transport, a compressed topic follows the remapping of the raw one."""
        topic = self.resolve_topic_name(f"{side}/image_rect")
        return f"{topic}/compressed" if self.value("image_transport") == "compressed" else topic

    def _unsubscribe(self) -> None:
        for subscriber in self._subscribers:
            self.destroy_subscription(subscriber.sub)
        self._subscribers = []
        self._sync.reset()

    def _on_camera_info(self, message: CameraInfo, side: Side) -> None:
        try:
            self._rigs.update(side, message)
        except CameraInfoError as error:
            self.problems.add("camera_info", str(error))

    def _on_image(self, message: Image | CompressedImage, side: Side) -> None:
        self._last_image[side] = time.monotonic()

    def _on_pair(self, left: Image | CompressedImage, right: Image | CompressedImage) -> None:
        if self._worker is not None:
            now = time.monotonic_ns()
            self._worker.submit(_Pair(left, right, (now - self._sync.first_arrival_ns) / 1e6, now))

    # ----------------------------------------------------------------------------------- in the worker's thread

    def _encode(self, pairs: list[_Pair]) -> None:
        (pair,) = pairs
        started = time.perf_counter()
        left, right = pair.left, pair.right
        try:
            images = self._convert(left, right)
            sizes = {side: (image.shape[1], image.shape[0]) for side, image in images.items()}
            messages: dict[Side, Image | CompressedImage] = {"left": left, "right": right}
            stamps_ns = {side: nanoseconds(message.header.stamp) for side, message in messages.items()}
            rig = self._rigs.rig(sizes, stamps_ns, CAMERA_INFO_WAIT_S)
            self._check_geometry(rig, *sizes["left"])
            converted_ms = 1e3 * (time.perf_counter() - started)
            rate = self.value("rate")
            wait_ms = (time.monotonic_ns() - pair.complete_ns) / 1e6
            decision = self._encode_within(images, rig, None if rate < 0 else rate)
        except ValueError as error:
            # Every check of images, calibration and sizes raises one, with words for the user.
            self.problems.add(type(error), f"pair dropped: {' '.join(str(error).split())}")
            return
        encoded = decision.sent
        if encoded is None:
            self.refused += 1
            self.problems.add("max_bitrate", f"pair dropped to keep within max_bitrate: {decision.refusal}")
            self._check_swapped(images)
            return
        stages = {"sync": pair.sync_ms, **encoded.stage_ms}
        stages["preprocess"] += converted_ms
        message = StereoBitstream(
            header=left.header,
            right_stamp=right.header.stamp,
            session=self._session,
            sequence=self._sequence,
            sync_ms=stages["sync"],
            preprocess_ms=stages["preprocess"],
            backbone_ms=stages["backbone"],
            smfc_ms=stages["smfc"],
            entropy_ms=stages["entropy"],
            data=array.array("B", encoded.packet),
        )
        self._publisher.publish(message)
        self._sequence += 1
        self.packets += 1
        self._window.sample(
            {
                **stages,
                "wait": wait_ms,
                "bytes": float(len(encoded.packet)),
                "rate": float(encoded.rate),
                "wire_bytes": float(wire_bytes(len(encoded.packet))),
                "tries": float(len(decision.tries)),
                "total": 1e3 * (time.perf_counter() - started),
            }
        )
        self._check_swapped(images)  # the packet does not wait for it

    def _encode_within(self, images: Mapping[Side, np.ndarray], rig: StereoRig, rate: float | None) -> RateDecision:
        """On the CPU from now on, if the GPU has no memory left."""
        budget = self.value("max_bitrate")
        try:
            return self._encoder.encode_within(images["left"], images["right"], rig, self._controller, budget, rate)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.fall_back(f"out of memory on {self.value('device')}: encoding on the CPU until configured again")
        self._load("cpu")
        return self._encoder.encode_within(images["left"], images["right"], rig, self._controller, budget, rate)

    def _convert(self, left: Image | CompressedImage, right: Image | CompressedImage) -> dict[Side, np.ndarray]:
        """Both images as RGB arrays; that they have one size is the codec's to check."""
        convert = rgb_from_compressed if self.value("image_transport") == "compressed" else to_rgb
        messages: dict[Side, Image | CompressedImage] = {"left": left, "right": right}
        images = {}
        for side, message in messages.items():
            try:
                images[side] = convert(message)
            except ImageError as error:
                raise ImageError(f"{side}/image_rect: {error}") from None
        return images

    def _check_geometry(self, rig: StereoRig, width: int, height: int) -> None:
        """Warn once about a camera for which the model's depth priors do not fit."""
        if rig is self._checked_rig or self._model is None:
            return
        self._checked_rig = rig
        warning = geometry_warning(self._model, rig, width, height)
        if warning:
            self.problems.add("geometry", warning)

    def _check_swapped(self, images: Mapping[Side, np.ndarray]) -> None:
        """Look for swapped images, now and then; images that do not tell change nothing."""
        left, right = images["left"], images["right"]
        now = time.monotonic()
        if now - self._swap_checked < SWAP_CHECK_PERIOD_S or left.shape != right.shape:
            return
        self._swap_checked = now
        found = views_swapped(left, right)
        if found is not None:
            self._swapped = found
        if found:
            self.problems.add("swapped", SWAPPED_WARNING)

    def _on_error(self, error: Exception, pairs: list[_Pair]) -> None:
        self.errors += 1
        self.problems.add("encoding", f"pair dropped: encoding failed: {type(error).__name__}: {error}")

    # ---------------------------------------------------------------------------------------------------- other

    def _publish_codec_info(self) -> None:
        header = Header(stamp=self.get_clock().now().to_msg())
        self._info_publisher.publish(codec_info(header, self._encoder.model))

    def _on_change(self, changed: dict[str, Any]) -> str | None:
        checks = {"rate": self._check_rate, "max_bitrate": self._check_max_bitrate}
        problems = [checks[name](value) for name, value in changed.items() if name in checks]
        return "; ".join(filter(None, problems)) or None

    def _check_max_bitrate(self, max_bitrate: int) -> str | None:
        if self._encoder is None or max_bitrate == 0:
            return None
        least = 8 * wire_bytes(self._encoder.least_bytes)
        if max_bitrate >= least:
            return None
        return (
            f"max_bitrate: expected 0 (no limit) or at least {least}, the bits on the wire of the smallest packet of "
            f"model {self._encoder.model.name}, got {max_bitrate}"
        )

    def _check_rate(self, rate: float) -> str | None:
        if self._model is None or rate == -1:
            return None
        highest = self._model.config.highest_rate
        if 0 <= rate <= highest:
            return None
        return f"rate: expected 0 to {highest} (or -1) for model {self._model.name}, got {rate:g}"

    def collect(self) -> list[Status]:
        """Diagnostics: what comes in, and what is made of it."""
        self._follow_demand()
        pairer, worker = self._sync.pairer, self._worker
        totals: dict[Hashable, int] = {
            "left": pairer.received["left"],
            "right": pairer.received["right"],
            "pairs": pairer.pairs,
            "packets": self.packets,
            "unstamped": self._sync.unstamped,
            "late": worker.dropped.total() if worker else 0,
            **{drop: count for drop, count in pairer.drops.items()},
        }
        new, samples, seconds = self._window.tick(totals)
        recent = self.problems.recent()
        return [self._input_status(new, recent, seconds), self._encoding_status(new, recent, samples, seconds)]

    def _input_status(self, new: Mapping[Hashable, int], recent: Mapping[ProblemKind, int], seconds: float) -> Status:
        pairer = self._sync.pairer
        if not self._subscribers:
            return input_status(new, seconds, pairer=pairer, idle_topic=self._publisher.topic_name)
        now = time.monotonic()
        silent = {self._image_topic(side): now - self._last_image.get(side, self._demanded_since) for side in SIDES}
        infos = {side: self.resolve_topic_name(f"{side}/camera_info") for side in self._rigs.missing()}
        missing = [
            self._rigs.errors.get(side, f"no message on {topic}: images cannot be used without it")
            for side, topic in infos.items()
        ]
        # What is wrong with an input has an error of its own, and a camera info is refused as it comes.
        kinds = (kind for kind in recent if kind == "camera_info" or isinstance(kind, type))
        refused = sorted(self.problems.latest[kind] for kind in kinds)
        return input_status(
            new, seconds, pairer=pairer, silent=silent, missing=missing, refused=refused, swapped=self._swapped
        )

    def _encoding_status(
        self,
        new: Mapping[Hashable, int],
        recent: Mapping[ProblemKind, int],
        samples: dict[str, list[float]],
        seconds: float,
    ) -> Status:
        figures = {
            "engine": self._encoder.engine if self._encoder is not None else "",
            "packets": self.packets,
            "max_bitrate": self.value("max_bitrate"),
            "dropped_max_bitrate": self.refused,
            "dropped_queue": self._worker.dropped.total() if self._worker else 0,
            "errors": self.errors,
            "subscribers": self._publisher.get_subscription_count(),
            "session": f"{self._session:016x}",
        }
        return encoding_status(new, recent, samples, seconds, figures, self.problems.latest)


def main(args: list[str] | None = None) -> NoReturn:
    """Entry point of ``encoder_node``. Ends the process."""
    end_process(run_node(EncoderNode, args))


if __name__ == "__main__":
    main()
