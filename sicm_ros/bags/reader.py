# SPDX-License-Identifier: Apache-2.0
"""Reads rosbag2 files (sqlite3 and mcap), and the stereo pairs in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.rosbag2 import ReaderError

from sicm_ros.bags.topics import find_stereo_topics
from sicm_ros.bags.types import IMAGE_TYPES, BagError, typestore
from sicm_ros.conversion.camera_info import CameraInfoError, RigCache
from sicm_ros.conversion.images import ImageError, rgb_from_compressed, to_rgb
from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.data.kitti import read_calib
from sicm_ros.data.pairing import StereoMatch, StereoPairer
from sicm_ros.data.source import SIDES, Side, StereoFrame
from sicm_ros.geometry import StereoRig

__all__ = ["BagStereo", "PairPlace", "is_bag", "open_bag", "opened", "raw_messages"]

_GIVE_CALIB = "name a KITTI calibration file (option --calib, or the player's parameter calib)"


def is_bag(path: str | Path) -> bool:
    """Whether ``path`` looks like a rosbag2 folder or a single bag file."""
    path = Path(path)
    return (path / "metadata.yaml").is_file() or path.suffix in (".mcap", ".db3", ".bag")


def open_bag(path: str | Path) -> AnyReader:
    """A reader, to be used in a ``with`` statement. Raises BagError."""
    path = Path(path)
    if not path.exists():
        raise BagError(f"{path}: no such bag")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        raise BagError(f"{path}: expected a bag with a metadata.yaml, there is none")
    try:
        return AnyReader([path], default_typestore=typestore())
    except (AnyReaderError, ReaderError, OSError) as error:
        raise BagError(f"{path}: not a readable bag: {error}") from None


def _open(reader: AnyReader, path: Path) -> None:
    try:
        reader.open()
    except Exception as error:  # noqa: BLE001 - damaged files surface as whatever the parsers of YAML, SQL, ... raise
        raise BagError(f"{path}: not a readable bag: {' '.join(str(error).split()) or type(error).__name__}") from None


def _messages(
    reader: AnyReader,
    path: Path,
    connections: Sequence[Connection],
    start_ns: int | None = None,
    stop_ns: int | None = None,
) -> Iterator[tuple[Connection, int, Any]]:
    """The deserialised messages of some connections from a recording time on and before another, with that time; a
    damaged file is a BagError."""
    for connection, stamp_ns, raw in raw_messages(reader, path, connections, start_ns, stop_ns):
        try:
            message = reader.deserialize(raw, connection.msgtype)
        except Exception as error:  # noqa: BLE001 - as in _open
            raise _damaged(path, error) from None
        yield connection, stamp_ns, message


def raw_messages(
    reader: AnyReader,
    path: Path,
    connections: Sequence[Connection] = (),
    start_ns: int | None = None,
    stop_ns: int | None = None,
) -> Iterator[tuple[Connection, int, bytes]]:
    """``reader.messages``, with a damaged file a BagError: connection, recording time, serialised message."""
    messages = reader.messages(connections, start_ns, stop_ns)
    while True:
        try:
            connection, stamp_ns, raw = next(messages)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - as in _open
            raise _damaged(path, error) from None
        yield connection, stamp_ns, bytes(raw)


def _damaged(path: Path, error: Exception) -> BagError:
    return BagError(f"{path}: damaged: {' '.join(str(error).split()) or type(error).__name__}")


@dataclass(frozen=True)
class _Image:
    """An image as it lies in a bag; ``place`` is its recording time and its number among its topic's of that time."""

    place: tuple[int, int]
    msgtype: str
    message: Any

    @property
    def header_ns(self) -> int:
        return nanoseconds(self.message.header.stamp)


@dataclass(frozen=True)
class PairPlace:
    """Where the images of a pair lie in a bag, and what is known of the pair without decoding them.

    ``left`` and ``right`` are a recording time in nanoseconds and a number among the topic's messages of that time.
    """

    index: int
    left: tuple[int, int]
    right: tuple[int, int]
    stamps_ns: tuple[int, int]  # of the left and the right image
    frame_id: str
    recorded_ns: int


class BagStereo:
    """The stereo pairs of a bag, in order: ``for frame, frame_id in BagStereo(path)``.

    Topics are found by their names unless given. The rig comes from the camera infos, or from ``calib`` (a KITTI
    calibration file) where the bag has none. Images are (H, W, 3) uint8 RGB; ``frame_id`` is the left image's.
    ``drops`` counts the images that found no partner in the last pass.
    """

    def __init__(
        self,
        path: str | Path,
        left_topic: str = "",
        right_topic: str = "",
        tolerance_s: float = 0.01,
        calib: str | Path | None = None,
    ) -> None:
        self.path, self.tolerance_s, self.drops = Path(path), tolerance_s, 0
        with opened(self.path) as reader:
            images = {c.topic: c for c in reader.connections if c.msgtype in IMAGE_TYPES}
            if left_topic or right_topic:
                for topic in (left_topic, right_topic):
                    if topic not in images:
                        there = ", ".join(sorted(images)) or "none"
                        raise BagError(f"{path}: no image topic {topic!r}; there are: {there}")
                pair = (left_topic, right_topic)
            else:
                try:
                    pair = find_stereo_topics(list(images))
                except BagError as error:
                    raise BagError(f"{path}: {error}") from None
            self.topics: dict[Side, str] = {"left": pair[0], "right": pair[1]}
            self.count = min(sum(c.msgcount for c in reader.connections if c.topic == topic) for topic in pair)
            self._rigs = RigCache(depth=None)
            self._rig = read_calib(calib) if calib else None
            if self._rig is None:
                self._read_camera_infos(reader)

    def __len__(self) -> int:
        return self.count

    def _read_camera_infos(self, reader: AnyReader) -> None:
        for side, topic in self.topics.items():
            # image_transport's compressed topics have one level more.
            names = {topic.rsplit("/", levels)[0] + "/camera_info" for levels in (1, 2)}
            connections = [
                c
                for c in reader.connections
                if c.topic in names and c.msgtype == "sensor_msgs/msg/CameraInfo" and c.msgcount
            ]
            if not connections:
                raise BagError(f"{self.path}: no camera_info beside {topic}; {_GIVE_CALIB}")
            for _, _, message in _messages(reader, self.path, connections[:1]):
                try:
                    self._rigs.update(side, _RosOneInfo(message) if not hasattr(message, "p") else message)
                except CameraInfoError as error:
                    raise BagError(f"{self.path}: {error}; {_GIVE_CALIB}") from None

    def __iter__(self) -> Iterator[tuple[StereoFrame, str]]:
        for frame, frame_id, _ in self.recorded():
            yield frame, frame_id

    def recorded(self, start_s: float = 0.0) -> Iterator[tuple[StereoFrame, str, int]]:
        """The pairs with the time, in nanoseconds, at which the later image of each was recorded.

        The first ``start_s`` seconds of the recording are left out.
        """
        for index, (match, recorded_ns) in enumerate(self._matches(start_s)):
            stamps_ns = (match.left_stamp_ns, match.right_stamp_ns)
            try:
                frame = self._frame(index, match.left, match.right, stamps_ns)
            except ImageError as error:
                raise BagError(f"{self.path}: {error}") from None
            yield frame, _frame_id(match), recorded_ns

    def places(self) -> Iterator[PairPlace]:
        """Where the pairs lie: for others that read single pairs of the same bag with ``frame``."""
        for index, (match, recorded_ns) in enumerate(self._matches()):
            stamps_ns = (match.left_stamp_ns, match.right_stamp_ns)
            yield PairPlace(index, match.left.place, match.right.place, stamps_ns, _frame_id(match), recorded_ns)

    def frame(self, reader: AnyReader, place: PairPlace) -> StereoFrame:
        """The pair that ``places`` found there. Raises ImageError if an image of it cannot be decoded."""
        left, right = (
            self._at(reader, self.topics[side], at) for side, at in zip(SIDES, (place.left, place.right), strict=True)
        )
        return self._frame(place.index, left, right, place.stamps_ns)

    def _matches(self, start_s: float = 0.0) -> Iterator[tuple[StereoMatch[_Image], int]]:
        pairer: StereoPairer[_Image] = StereoPairer(self.tolerance_s, depth=30)
        sides = {topic: side for side, topic in self.topics.items()}
        last = dict[str, tuple[int, int]]()
        with opened(self.path) as reader:
            connections = [c for c in reader.connections if c.topic in sides and c.msgtype in IMAGE_TYPES]
            start_ns = reader.start_time + round(1e9 * start_s) if start_s else None
            for connection, recorded_ns, message in _messages(reader, self.path, connections, start_ns):
                before_ns, number = last.get(connection.topic, (None, 0))
                last[connection.topic] = place = (recorded_ns, number + 1 if recorded_ns == before_ns else 0)
                image = _Image(place, connection.msgtype, message)
                # Some converters leave the header's stamp at zero.
                match = pairer.add(sides[connection.topic], image.header_ns or recorded_ns, image)
                if match is not None:
                    yield match, recorded_ns
        self.drops = sum(pairer.drops.values()) + sum(pairer.waiting(side) for side in SIDES)

    def _at(self, reader: AnyReader, topic: str, place: tuple[int, int]) -> _Image:
        connections = [c for c in reader.connections if c.topic == topic and c.msgtype in IMAGE_TYPES]
        found = _messages(reader, self.path, connections, place[0], place[0] + 1)
        for number, (connection, _, message) in enumerate(found):
            if number == place[1]:
                return _Image(place, connection.msgtype, message)
        raise BagError(f"{self.path}: {topic}: expected a message of the time {place[0]}, there is none any more")

    def _frame(self, index: int, left: _Image, right: _Image, stamps_ns: tuple[int, int]) -> StereoFrame:
        views = (_pixels(left), _pixels(right))
        if views[0].shape != views[1].shape:
            sizes = [f"{view.shape[1]}x{view.shape[0]}" for view in views]
            raise ImageError(f"left and right image differ in size: {' and '.join(sizes)}")
        rig = self._rig_of(views[0], {"left": left.header_ns, "right": right.header_ns})
        return StereoFrame(f"{index:06d}", *views, rig, *stamps_ns, None)

    def _rig_of(self, image: np.ndarray, stamps_ns: dict[Side, int]) -> StereoRig:
        if self._rig is not None:
            return self._rig
        size = (image.shape[1], image.shape[0])
        try:
            return self._rigs.rig({"left": size, "right": size}, stamps_ns)
        except CameraInfoError as error:
            raise BagError(f"{self.path}: {error}; {_GIVE_CALIB}") from None


def _pixels(image: _Image) -> np.ndarray:
    return (to_rgb if image.msgtype == "sensor_msgs/msg/Image" else rgb_from_compressed)(image.message)


def _frame_id(match: StereoMatch[_Image]) -> str:
    return match.left.message.header.frame_id


class _RosOneInfo:
    """ROS 1's CameraInfo, whose P is a capital letter."""

    def __init__(self, message: Any) -> None:
        self.p = message.P
        for name in ("header", "width", "height", "binning_x", "binning_y", "roi"):
            setattr(self, name, getattr(message, name))


class opened:
    """``open_bag`` with every failure a BagError."""

    def __init__(self, path: Path) -> None:
        self._path, self._reader = path, open_bag(path)

    def __enter__(self) -> AnyReader:
        _open(self._reader, self._path)
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()
