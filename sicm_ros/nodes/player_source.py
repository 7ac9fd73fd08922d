# SPDX-License-Identifier: Apache-2.0
"""The sources of the player: the stereo pairs of a KITTI folder or of a bag, or a bag of packets."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sicm_ros.bags.reader import BagStereo, is_bag, opened, raw_messages
from sicm_ros.bags.types import BITSTREAM_TYPE, LATCHED
from sicm_ros.conversion.frames import CAMERA_FRAME
from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.data.kitti import open_source
from sicm_ros.data.source import StereoFrame

__all__ = ["BagPairs", "KittiPairs", "PacketSource", "RecordedMessage", "RecordedTopic", "is_packet_bag"]

# What a decoder makes of the packets of a bag, and would make again.
OUTPUTS = ("detections", "detection_markers", "decode_stats", "label_info", "diagnostics")


class KittiPairs:
    """The pairs of a KITTI folder from ``start_s`` seconds on, each with the frame of its images."""

    def __init__(self, path: str, start_s: float) -> None:
        self._source = open_source(path)
        self.count = len(self._source)
        self.what = f"{self.count} pairs"
        self._kept: list[int] = []
        if self.count:
            start_ns = self._source.stamp_ns(0) + round(1e9 * start_s)
            self._kept = [i for i in range(self.count) if self._source.stamp_ns(i) >= start_ns]

    def __iter__(self) -> Iterator[tuple[StereoFrame, str]]:
        return ((self._source[i], CAMERA_FRAME) for i in self._kept)


class BagPairs:
    """The pairs of a bag from ``start_s`` seconds on, each with the frame of its images.

    ``topics``: those of the left and the right images, empty to find them by their names. ``calib``: a KITTI
    calibration file for a bag without camera infos.
    """

    def __init__(
        self, path: str, start_s: float, topics: tuple[str, str], tolerance_s: float, calib: str | None
    ) -> None:
        self._bag = BagStereo(path, *topics, tolerance_s, calib)
        self._start_s = start_s
        self.what = f"{len(self._bag)} pairs of {self._bag.topics['left']} and {self._bag.topics['right']}"

    def __iter__(self) -> Iterator[tuple[StereoFrame, str]]:
        return ((frame, frame_id) for frame, frame_id, _ in self._bag.recorded(self._start_s))


def is_packet_bag(path: str) -> bool:
    """Whether ``path`` is a bag with packets and without images."""
    if not is_bag(path):
        return False
    with opened(Path(path)) as reader:
        types = {c.msgtype for c in reader.connections if c.msgcount}
    return BITSTREAM_TYPE in types and "sensor_msgs/msg/Image" not in types


@dataclass(frozen=True)
class RecordedTopic:
    """A topic of a bag, and the name under which it is played."""

    topic: str
    played_as: str
    msgtype: str

    @property
    def latched(self) -> bool:
        """Whether a late subscriber must still get the last message."""
        return _is_latched(self.topic)

    @property
    def is_packets(self) -> bool:
        """Whether these are the packets."""
        return self.msgtype == BITSTREAM_TYPE


@dataclass(frozen=True)
class RecordedMessage:
    """A serialised message and when it was recorded; ``header_ns`` is a packet's own stamp, None for anything else."""

    stamp_ns: int
    topic: str
    raw: bytes
    header_ns: int | None


class PacketSource:
    """A bag of packets from ``start_s`` seconds on. ``with_outputs``: recorded boxes are played, too."""

    def __init__(self, path: str, start_s: float, with_outputs: bool) -> None:
        self._path, self._start_s = Path(path), start_s
        self.topics: list[RecordedTopic] = []
        with opened(self._path) as reader:
            connections = list(reader.connections)
        roots = {c.topic.rsplit("/", 1)[0] for c in connections if c.msgtype == BITSTREAM_TYPE}
        known: set[str] = set()
        for connection in connections:
            name = connection.topic.rsplit("/", 1)[-1]
            if (name in OUTPUTS and not with_outputs) or connection.topic in known:
                continue
            known.add(connection.topic)
            # Recorded names are absolute; they become relative again, to a single vehicle's namespace if there is
            # one, so that ours applies.
            ours = connection.msgtype.startswith("sicm_ros/")
            topic = connection.topic.removeprefix(f"{min(roots)}/" if len(roots) == 1 else "/")
            topic = connection.topic if name.startswith("tf") else name if ours else topic.lstrip("/")
            self.topics.append(RecordedTopic(connection.topic, topic, connection.msgtype))

    def messages(self, topics: Container[str]) -> Iterator[RecordedMessage]:
        """The messages on ``topics``; of what is latched, the last ones before the start come first."""
        with opened(self._path) as reader:
            start_ns = reader.start_time + round(1e9 * self._start_s)
            latched = [c for c in reader.connections if c.topic in topics and _is_latched(c.topic)]
            before = raw_messages(reader, self._path, latched, None, start_ns) if latched and self._start_s else ()
            for topic, raw in {connection.topic: raw for connection, _, raw in before}.items():
                yield RecordedMessage(start_ns, topic, raw, None)
            for connection, stamp_ns, raw in raw_messages(reader, self._path, start_ns=start_ns):
                if connection.topic not in topics:
                    continue
                header_ns = None
                if connection.msgtype == BITSTREAM_TYPE:
                    message: Any = reader.deserialize(raw, connection.msgtype)
                    header_ns = nanoseconds(message.header.stamp)
                yield RecordedMessage(stamp_ns, connection.topic, raw, header_ns)


def _is_latched(topic: str) -> bool:
    return topic.rsplit("/", 1)[-1] in LATCHED
