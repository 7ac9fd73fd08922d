# SPDX-License-Identifier: Apache-2.0
"""The player node: publishes KITTI folders, sequences and bags as a stereo camera would, or in lock-step with the
decoder."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray

from sicm_ros.bags.reader import is_bag
from sicm_ros.bags.types import BagError, message_class
from sicm_ros.conversion.camera_info import camera_info_fields
from sicm_ros.conversion.frames import BASE_FRAME, CAMERA_FRAME, static_transforms
from sicm_ros.conversion.images import rgb_to_message_fields
from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.data.kitti import KittiError
from sicm_ros.data.source import SIDES, Side, StereoFrame
from sicm_ros.geometry import StereoRig
from sicm_ros.nodes.player_source import BagPairs, KittiPairs, PacketSource, is_packet_bag
from sicm_ros.ros.parameters import ParameterSpec, declare
from sicm_ros.ros.qos import RELIABILITIES, boxes_qos, image_qos, latched_qos, overridable, packet_qos
from sicm_ros.ros.run_node import NodeError, run_node
from sicm_ros.ros.stop_signals import end_process

__all__ = ["PARAMETERS", "KittiPlayerNode", "main"]

T = TypeVar("T")
DEFAULT_PERIOD_NS = 100_000_000
SETTLE_S = 0.2

PARAMETERS = (
    ParameterSpec("path", "", "KITTI object folder, raw drive, odometry sequence, or a bag (folder, .db3, .mcap)"),
    ParameterSpec("frequency", 0.0, "pairs per second (Hz); 0 for the source's own times", 0.0, 1000.0),
    ParameterSpec("start", 0.0, "seconds of the source to leave out at its beginning", 0.0, 1e6),
    ParameterSpec("paused", False, "stand still, before the first pair or wherever it is", runtime=True),
    ParameterSpec("loop", False, "start over at the end; stamps go on increasing"),
    ParameterSpec("count", 0, "play only so many pairs; 0 for all", 0, 2**31 - 1),
    ParameterSpec("lockstep", False, "send the next pair only when the boxes of the last one are back"),
    ParameterSpec(
        "lockstep_timeout", 10.0, "seconds to wait for the boxes of a pair before it counts as unanswered", 0.1, 3600.0
    ),
    ParameterSpec(
        "wait_timeout",
        30.0,
        "seconds to wait for the first subscriber before playing (in lock-step: before giving up); 0 not to wait",
        0.0,
        3600.0,
    ),
    ParameterSpec(
        "wait_for",
        "subscribers",
        "what must be there before playing: subscribers of both views (or of a bag's packets), or viewer_node",
        choices=("subscribers", "viewer"),
    ),
    ParameterSpec(
        "subscribers",
        1,
        "subscribers that left/camera_info (of a bag of packets: stereo_bitstream) must "
        "have before playing; more than one so that a recorder misses nothing",
        1,
        100,
    ),
    ParameterSpec(
        "stamps", "source", "header stamps: the source's own, or the time of sending", choices=("source", "now")
    ),
    ParameterSpec(
        "frame_id",
        "",
        "frame of the images; empty for the bag's own, or camera_0_optical for KITTI, in which both P project",
    ),
    ParameterSpec("publish_tf", True, "publish /tf_static with base_link and the cameras"),
    ParameterSpec("publish_clock", False, "publish the time of the source on /clock, for nodes with use_sim_time"),
    ParameterSpec("reliability", "reliable", "reliability of the images", choices=tuple(RELIABILITIES)),
    ParameterSpec("left_topic", "", "image topic of the left view in a bag; empty to find it by its name"),
    ParameterSpec("right_topic", "", "image topic of the right view in a bag; empty to find it by its name"),
    ParameterSpec("sync_tolerance", 0.01, "seconds between the stamps of a pair in a bag", 0.0, 1.0),
    ParameterSpec("calib", "", "KITTI calibration file with the rig, for a bag without camera_info"),
    ParameterSpec(
        "replay_outputs", False, "of a bag of packets, play the recorded boxes too, instead of decoding again"
    ),
)


@dataclass(frozen=True)
class _Step:
    """One thing to send at a time of the source: a pair, or a message of a bag.

    ``send(offset_ns)`` publishes it, with stamps that much later, and returns the stamp that its boxes will have.
    ``answered`` tells whether boxes will come back at all.
    """

    stamp_ns: int
    send: Callable[[int], int]
    answered: bool


class KittiPlayerNode(Node):
    """Plays one source in a thread of its own, and counts which pairs came back as boxes."""

    def __init__(self) -> None:
        super().__init__("kitti_player_node")
        declare(self, PARAMETERS)
        self.exit_status: int | None = None
        self.sent = self.unanswered = 0
        self._paused_s = 0.0
        self._recorded: dict[str, Any] = {}
        self._answers: Counter[int] = Counter()
        self._answered = threading.Condition()
        self._awaited: deque[tuple[int, float]] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._rig: StereoRig | None = None
        self._transforms: Any = None
        self._open()
        self._box_publishers = 0
        self.create_subscription(
            Detection3DArray,
            "detections",
            self._on_boxes,
            boxes_qos(100),
            event_callbacks=SubscriptionEventCallbacks(matched=self._on_matched),
            qos_overriding_options=overridable(),
        )

    def value(self, parameter: str) -> Any:
        """The value of a parameter."""
        return self.get_parameter(parameter).value

    def start(self, stop: threading.Event) -> None:
        """Begin to play."""
        self._stop = stop
        self._thread = threading.Thread(target=self._play_and_report, name="player", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop playing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(3.0)

    # --------------------------------------------------------------------------------------------------- source

    def _open(self) -> None:
        path = self.value("path")
        if not path:
            raise NodeError("parameter path: expected a KITTI folder or a bag, got nothing")
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10) if self.value("publish_clock") else None
        self._passes: Callable[[], Iterator[_Step]]
        if is_packet_bag(path):
            packets = PacketSource(path, self.value("start"), self.value("replay_outputs"))
            self._gates = self._create_packet_publishers(packets)
            self._passes = lambda: self._packet_steps(packets)
            return
        pairs: BagPairs | KittiPairs
        if is_bag(path):
            topics = (self.value("left_topic"), self.value("right_topic"))
            pairs = BagPairs(
                path, self.value("start"), topics, self.value("sync_tolerance"), self.value("calib") or None
            )
        else:
            pairs = KittiPairs(path, self.value("start"))
            if not pairs.count:
                raise NodeError(f"{path}: expected at least one stereo pair, there is none")
        self.get_logger().info(f"{path}: {pairs.what}")
        self._passes = lambda: (self._pair_step(frame, frame_id) for frame, frame_id in pairs)
        self._images, self._infos = {}, {}
        for side in SIDES:
            qos = image_qos(self.value("reliability"), 5)
            self._infos[side] = self.create_publisher(
                CameraInfo, f"{side}/camera_info", qos, qos_overriding_options=overridable(publisher=True)
            )
            self._images[side] = self.create_publisher(
                Image, f"{side}/image_rect", qos, qos_overriding_options=overridable(publisher=True)
            )
        viewer = self.value("wait_for") == "viewer"
        self._gates = [self._infos["left"]] if viewer else [*self._infos.values(), *self._images.values()]

    def _pair_step(self, frame: StereoFrame, frame_id: str) -> _Step:
        return _Step(frame.stamp_ns, partial(self._send_pair, frame, frame_id), True)

    def _create_packet_publishers(self, source: PacketSource) -> list[Any]:
        """Create publishers of everything that is played of a bag of packets; those of the packets are returned."""
        gates = []
        for recorded in source.topics:
            kind = message_class(recorded.msgtype)
            if kind is None:
                self.get_logger().info(f"{recorded.topic} is not played: {recorded.msgtype} is not installed here")
                continue
            qos = latched_qos() if recorded.latched else packet_qos("reliable", 10)
            publisher = self.create_publisher(
                kind, recorded.played_as, qos, qos_overriding_options=overridable(publisher=True)
            )
            self._recorded[recorded.topic] = publisher
            if recorded.is_packets:
                gates.append(publisher)
        return gates

    def _packet_steps(self, source: PacketSource) -> Iterator[_Step]:
        for message in source.messages(self._recorded):
            send = partial(_send_recorded, self._recorded[message.topic], message.raw, message.header_ns or 0)
            yield _Step(message.stamp_ns, send, message.header_ns is not None)

    # --------------------------------------------------------------------------------------------------- playing

    def _play_and_report(self) -> None:
        try:
            if not self._wait_for_subscribers():
                self.exit_status = 0 if self._stop.is_set() else 1
                return
            started = time.monotonic()
            self._play()
            seconds = time.monotonic() - started - self._paused_s
            for gate in self._gates:
                gate.wait_for_all_acked(Duration(seconds=2))
            status = self._report(seconds)
            if self.exit_status is None:
                self.exit_status = status
        except (KittiError, BagError) as error:
            self.get_logger().error(str(error))
            self.exit_status = 2
        except Exception as error:  # noqa: BLE001 - a thread's exception would be lost
            if not self._stop.is_set():
                self.get_logger().error(f"playing failed: {type(error).__name__}: {error}")
                self.exit_status = 1

    def _wait_for_subscribers(self) -> bool:
        """Wait until somebody takes the images and, in lock-step, somebody publishes boxes; False to give up."""
        lockstep, timeout = self.value("lockstep"), self.value("wait_timeout")
        end = time.monotonic() + timeout
        wanted = [self.value("subscribers"), *[1] * (len(self._gates) - 1)]
        while True:
            silent = [
                gate.topic_name
                for gate, count in zip(self._gates, wanted, strict=True)
                if not self._is_taken(gate, count)
            ]
            # A decoder that does not know yet that we listen would not decode.
            boxes = self._box_publishers > 0 or not (lockstep or self.count_publishers("detections"))
            if (not silent and boxes) or self._stop.is_set() or time.monotonic() >= end:
                break
            time.sleep(0.02)
        if self._stop.is_set() or not timeout or (not silent and boxes):
            # The other ends learn of a match at about the same time as this one.
            return not self._stop.wait(SETTLE_S if timeout else 0.0)
        number = "no" if self.value("subscribers") == 1 else "too few"
        missing = (
            f"{number} subscriber{'s' * (number != 'no')} of {silent[0]}"
            if silent
            else f"no publisher of {self.resolve_topic_name('detections')}"
        )
        if lockstep:
            self.get_logger().error(
                f"{missing} within {timeout:g} s: are the encoder and the decoder active, in this namespace and domain?"
            )
            return False
        self.get_logger().warning(f"{missing} within {timeout:g} s: playing nevertheless")
        return True

    def _is_taken(self, gate: Any, count: int) -> bool:
        """Whether a publisher has so many subscribers, the viewer among them if that is waited for."""
        if gate.get_subscription_count() < count:
            return False
        there = self.get_subscriptions_info_by_topic(gate.topic_name) if self.value("wait_for") == "viewer" else None
        return there is None or any(info.node_name == "viewer_node" for info in there)

    def _play(self) -> None:
        lockstep, frequency, limit = self.value("lockstep"), self.value("frequency"), self.value("count")
        offset_ns, begin_wall, pairs = 0, time.monotonic(), 0
        begin_ns: int | None = None
        while not self._stop.is_set():
            first_ns: int | None = None
            last_ns: int | None = None
            period_ns = DEFAULT_PERIOD_NS
            for step in _prefetched(self._passes()):
                if self._stop.is_set() or (limit and pairs >= limit):
                    return
                if last_ns is not None and step.answered and step.stamp_ns > last_ns:
                    period_ns = step.stamp_ns - last_ns
                if step.answered or first_ns is None:
                    first_ns = step.stamp_ns if first_ns is None else first_ns
                    last_ns = step.stamp_ns
                source_ns = step.stamp_ns + offset_ns
                begin_ns = source_ns if begin_ns is None else begin_ns
                if not lockstep:
                    due = pairs / frequency if frequency else (source_ns - begin_ns) / 1e9
                    late = time.monotonic() - begin_wall - due
                    # A camera does not catch up in a burst; neither does this one.
                    if late > 0.5:
                        begin_wall += late
                    paused = self._sleep_until(begin_wall + due, source_ns)
                    begin_wall += paused
                else:
                    paused = self._wait_while_paused()
                self._paused_s += paused
                if self._stop.is_set():
                    return
                self._publish_clock(source_ns)
                key = step.send(offset_ns)
                if not step.answered:
                    continue
                pairs += 1
                self.sent += 1
                self._awaited.append((key, time.monotonic()))
                if lockstep:
                    self._await(key, pairs)
            if not pairs:
                start = f" after a start of {self.value('start'):g} s" if self.value("start") else ""
                raise KittiError(f"{self.value('path')}: expected at least one pair{start}, there is none")
            if not self.value("loop") or first_ns is None or last_ns is None:
                return
            offset_ns += last_ns - first_ns + period_ns
            # Only the counts matter over many passes.
            self._settle(self.value("lockstep_timeout"))

    def _wait_while_paused(self) -> float:
        """Seconds that passed until ``paused`` was false."""
        begin = time.monotonic()
        while self.value("paused") and not self._stop.is_set():
            self._stop.wait(0.02)
        return time.monotonic() - begin

    def _sleep_until(self, wall: float, source_ns: int) -> float:
        """Wait for a time, and for the end of a pause on the way; seconds by which pauses have put it off."""
        paused = 0.0
        while not self._stop.is_set():
            paused += self._wait_while_paused()
            left = wall + paused - time.monotonic()
            if left <= 0:
                break
            self._publish_clock(source_ns - round(left * 1e9))
            self._stop.wait(min(left, 0.02))
        return paused

    def _publish_clock(self, source_ns: int) -> None:
        if self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=Time(nanoseconds=max(0, source_ns)).to_msg()))

    def _send_pair(self, frame: StereoFrame, frame_id: str, offset_ns: int) -> int:
        left_ns, right_ns = frame.stamp_ns + offset_ns, frame.right_stamp_ns + offset_ns
        if self.value("stamps") == "now":
            shift = self.get_clock().now().nanoseconds - left_ns
            left_ns, right_ns = left_ns + shift, right_ns + shift
        frame_id = self.value("frame_id") or frame_id
        if frame.rig != self._rig and self.value("publish_tf"):
            self._publish_transforms(frame.rig, frame_id, left_ns)
        self._rig = frame.rig
        views: tuple[tuple[Side, np.ndarray, int], ...] = (
            ("left", frame.left, left_ns),
            ("right", frame.right, right_ns),
        )
        for side, image, stamp_ns in views:
            header = Header(stamp=Time(nanoseconds=stamp_ns).to_msg(), frame_id=frame_id)
            height, width, _ = image.shape
            self._infos[side].publish(CameraInfo(header=header, **camera_info_fields(frame.rig, side, width, height)))
            self._images[side].publish(Image(header=header, **rgb_to_message_fields(image)))
        return left_ns

    def _publish_transforms(self, rig: StereoRig, frame_id: str, stamp_ns: int) -> None:
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:
            if self._rig is None:
                self.get_logger().info("/tf_static is not published: tf2_msgs is not installed here")
            return
        if self._transforms is None:
            self._transforms = self.create_publisher(TFMessage, "/tf_static", latched_qos())
        stamp = Time(nanoseconds=stamp_ns).to_msg()
        message = TFMessage()
        for t in static_transforms(rig, frame_id):
            if t.parent == BASE_FRAME and frame_id != CAMERA_FRAME:
                continue  # where another camera stands on its vehicle is not for us to say
            x, y, z, w = t.rotation
            message.transforms.append(
                TransformStamped(
                    header=Header(stamp=stamp, frame_id=t.parent),
                    child_frame_id=t.child,
                    transform=Transform(
                        translation=Vector3(x=t.translation[0], y=t.translation[1], z=t.translation[2]),
                        rotation=Quaternion(x=x, y=y, z=z, w=w),
                    ),
                )
            )
        self._transforms.publish(message)

    # --------------------------------------------------------------------------------------------------- answers

    def _on_matched(self, info: Any) -> None:
        self._box_publishers = info.current_count

    def _on_boxes(self, message: Detection3DArray) -> None:
        with self._answered:
            self._answers[nanoseconds(message.header.stamp)] += 1
            self._answered.notify_all()

    def _await(self, key: int, number: int) -> None:
        timeout = self.value("lockstep_timeout")
        end = time.monotonic() + timeout
        with self._answered:
            while key not in self._answers and time.monotonic() < end and not self._stop.is_set():
                self._answered.wait(0.1)
            if key not in self._answers and not self._stop.is_set():
                self.get_logger().warning(f"pair {number}: no boxes within {timeout:g} s")

    def _settle(self, patience_s: float) -> None:
        """Forget the answered pairs, and count those that were sent longer ago than ``patience_s`` as unanswered."""
        now = time.monotonic()
        with self._answered:
            waiting: deque[tuple[int, float]] = deque()
            for key, sent in self._awaited:
                if self._answers[key] > 0:
                    self._answers[key] -= 1
                elif now - sent < patience_s:
                    waiting.append((key, sent))
                else:
                    self.unanswered += 1
            self._awaited = waiting
            # A pass of a bag repeats the stamps of the last one: an answer counts once.
            self._answers = +self._answers

    def _report(self, seconds: float) -> int:
        """Say how it went; the exit status."""
        end = time.monotonic() + 2.0
        with self._answered:
            # The last boxes of a free-running play are still on their way; without a decoder there are none.
            last = self._awaited[-1][0] if self._awaited else None
            while (
                self._answers
                and last is not None
                and last not in self._answers
                and time.monotonic() < end
                and not self._stop.is_set()
            ):
                self._answered.wait(0.1)
        self._settle(0.0)
        logger = self.get_logger()
        summary = f"sent {self.sent} pairs in {seconds:.1f} s ({self.sent / max(seconds, 1e-9):.1f} Hz)"
        answered = self.sent - self.unanswered
        if self.value("replay_outputs") and self._recorded:
            logger.info(f"{summary}, with the recorded boxes")
            return 0
        if not answered and not self.value("lockstep"):
            logger.info(f"{summary}; nobody publishes boxes")
            return 0
        (logger.info if not self.unanswered else logger.warning)(
            f"{summary}; boxes of {answered} came back, {self.unanswered} pairs without an answer"
        )
        return 1 if self.unanswered and self.value("lockstep") else 0


def _send_recorded(publisher: Any, raw: bytes, key: int, offset_ns: int) -> int:
    publisher.publish(raw)
    return key


def _prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items, with the next one read in a thread while the present one is used."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        future = pool.submit(next, items, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def main(args: list[str] | None = None) -> NoReturn:
    """Entry point of ``kitti_player_node``. Ends the process."""
    end_process(run_node(KittiPlayerNode, args))


if __name__ == "__main__":
    main()
