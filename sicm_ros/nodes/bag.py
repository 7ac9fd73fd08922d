# SPDX-License-Identifier: Apache-2.0
"""rosbag2 files (sqlite3 and mcap), read and written by ``rosbags``: no ROS is needed but for recording live topics."""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import ReaderError, StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from sicm_ros.conversion.camera_info import CameraInfoError, RigCache, camera_info_fields
from sicm_ros.conversion.frames import CAMERA_FRAME, static_transforms
from sicm_ros.conversion.images import rgb_to_message_fields, to_rgb
from sicm_ros.conversion.stamps import nanoseconds, time_fields
from sicm_ros.data.kitti import KittiError, open_source, read_calib
from sicm_ros.data.pairing import StereoSync
from sicm_ros.data.source import SIDES, Side, StereoFrame
from sicm_ros.geometry import StereoRig
from sicm_ros.ros.node_process import NodeProcess, image_profile_variables

__all__ = [
    "BagError",
    "BagRecorder",
    "BagStereo",
    "BagWriter",
    "TOPIC_SCHEMES",
    "find_stereo_topics",
    "from_kitti",
    "is_bag",
    "message_class",
    "open_bag",
    "opened",
    "play",
    "typestore",
]

Storage = Literal["sqlite3", "mcap"]
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
BITSTREAM_TYPE = "sicm_ros/msg/StereoBitstream"
LATCHED = ("codec_info", "label_info", "tf_static")
_GIVE_CALIB = "give the rig by calib (a KITTI calibration file)"

# Image topics of the left and the right view as converters of KITTI name them; a camera_info is beside each.
TOPIC_SCHEMES = {
    "sicm": ("/left/image_rect", "/right/image_rect"),
    "kitti2bag": ("/kitti/camera_color_left/image", "/kitti/camera_color_right/image"),
    "kitti_to_ros2bag": ("/kitti/camera/color/left/image_raw", "/kitti/camera/color/right/image_raw"),
    "kitti2rosbag2": ("/camera1/left/image_raw", "/camera2/right/image_raw"),
    "ros2_dataset_bridge": ("/kitti/left_camera/image", "/kitti/right_camera/image"),
}

# Where several stereo pairs are in a bag: rectified before raw, colour before grey, KITTI's cameras 2 and 3 first.
_PREFERENCES = ("rect", "color", "colour", "rgb", "image_02", "image_2", "cam2", "camera_2")


class BagError(ValueError):
    """A bag that cannot be read or written; the message is one line naming the bag and what is expected."""


# ------------------------------------------------------------------------------------------------------------- types


def _definition_folders(package: str) -> Iterator[Path]:
    """Where the .msg files of a package may lie: source tree, workspaces and installs, this environment."""
    root = Path(__file__).resolve().parents[2]
    yield root / "msg" if package == "sicm_ros" else root / "interfaces" / package / "msg"
    prefixes = [
        *os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep),
        sys.prefix,
        *(str(parent) for parent in Path(__file__).resolve().parents),
    ]
    for prefix in filter(None, prefixes):
        yield Path(prefix) / "share" / package / "msg"


def typestore() -> Typestore:
    """The message types of ROS 2 Jazzy with those of this package and of vision_msgs."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for package in ("sicm_ros", "vision_msgs"):
        folder = next((f for f in _definition_folders(package) if f.is_dir()), None)
        if folder is None:
            raise BagError(f"{package}: expected its message definitions in share/{package}/msg, found none")
        for path in sorted(folder.glob("*.msg")):
            types.update(get_types_from_msg(path.read_text(), f"{package}/msg/{path.stem}"))
    store.register(types)
    return store


# ----------------------------------------------------------------------------------------------------------- reading


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
    reader: AnyReader, path: Path, connections: Sequence[Connection], start_ns: int | None = None
) -> Iterator[tuple[Connection, int, Any]]:
    """The deserialised messages of some connections from a recording time on, with that time; a damaged file is a
    BagError."""
    try:
        for connection, stamp_ns, raw in reader.messages(connections, start_ns):
            yield connection, stamp_ns, reader.deserialize(raw, connection.msgtype)
    except Exception as error:  # noqa: BLE001 - as in _open
        raise BagError(f"{path}: damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


def find_stereo_topics(topics: Sequence[str]) -> tuple[str, str]:
    """The left and the right topic among image topics, by their names. Raises BagError if that is not clear."""

    def preference(pair: tuple[str, str]) -> tuple[int, ...]:
        return tuple(-(word in pair[0]) for word in _PREFERENCES)

    pairs = [(left, right) for left in topics for right in topics if _is_pair(left, right)]
    pairs.sort(key=preference)
    if not pairs or (len(pairs) > 1 and preference(pairs[0]) == preference(pairs[1])):
        found = ", ".join(sorted(topics)) or "none"
        what = "more than one stereo pair" if pairs else "no stereo pair"
        raise BagError(f"{what} among the image topics ({found}): name them by left_topic and right_topic")
    return pairs[0]


def _is_pair(left: str, right: str) -> bool:
    """Whether two names differ in their side only: left/right, or neighbouring camera numbers."""

    def neutral(name: str) -> str:
        return re.sub(r"\d+", "#", re.sub("left|right", "*", name))

    if left == right or neutral(left) != neutral(right):
        return False
    if "left" in left or "right" in left:
        return "left" in left and "right" not in left and "right" in right and "left" not in right
    numbers = zip(re.findall(r"\d+", left), re.findall(r"\d+", right), strict=True)
    differing = [(int(a), int(b)) for a, b in numbers if a != b]
    return bool(differing) and all(b == a + 1 for a, b in differing)


class BagStereo:
    """The stereo pairs of a bag, in order: ``for frame, frame_id in BagStereo(path)``.

    Topics are found by their names unless given. The rig comes from the camera infos, or from ``calib`` (a KITTI
    calibration file) where the bag has none. Images are RGB; ``frame_id`` is the left image's. ``drops`` counts the
    images that found no partner in the last pass.
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
        sync: StereoSync[Any] = StereoSync(self.tolerance_s, depth=30)
        sides = {topic: side for side, topic in self.topics.items()}
        with opened(self.path) as reader:
            connections = [c for c in reader.connections if c.topic in sides and c.msgtype in IMAGE_TYPES]
            start_ns = reader.start_time + round(1e9 * start_s) if start_s else None
            for connection, recorded_ns, message in _messages(reader, self.path, connections, start_ns):
                # Some converters leave the header's stamp at zero.
                stamp_ns = nanoseconds(message.header.stamp) or recorded_ns
                match = sync.add(sides[connection.topic], stamp_ns, (connection.msgtype, message))
                if match is None:
                    continue
                left, right = (self._image(*item) for item in (match.left, match.right))
                if left.shape != right.shape:
                    sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (left, right)]
                    raise BagError(f"{self.path}: left and right image differ in size: {' and '.join(sizes)}")
                rig = self._rig_of(left, *(item[1].header.stamp for item in (match.left, match.right)))
                yield (
                    StereoFrame(
                        f"{sync.pairs - 1:06d}", left, right, rig, match.left_stamp_ns, match.right_stamp_ns, None
                    ),
                    match.left[1].header.frame_id,
                    recorded_ns,
                )
        self.drops = sum(sync.drops.values()) + sum(sync.waiting(side) for side in SIDES)

    def _rig_of(self, image: np.ndarray, *stamps: Any) -> StereoRig:
        if self._rig is not None:
            return self._rig
        left_ns, right_ns = (nanoseconds(stamp) for stamp in stamps)
        try:
            return self._rigs.rig(image.shape[1], image.shape[0], left_ns, right_ns)
        except CameraInfoError as error:
            raise BagError(f"{self.path}: {error}; {_GIVE_CALIB}") from None

    def _image(self, msgtype: str, message: Any) -> np.ndarray:
        try:
            if msgtype == "sensor_msgs/msg/Image":
                return to_rgb(message)
        except ValueError as error:
            raise BagError(f"{self.path}: {error}") from None
        image = cv2.imdecode(np.asarray(message.data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise BagError(f"{self.path}: a compressed image ({message.format!r}) cannot be decoded")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


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


# ----------------------------------------------------------------------------------------------------------- writing


def _latched_qos() -> Qos:
    no_time = QosTime(0, 0)
    return Qos(
        QosHistory.KEEP_LAST,
        1,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL,
        no_time,
        no_time,
        QosLiveliness.AUTOMATIC,
        no_time,
        False,
    )


class BagWriter:
    """Writes messages to a new rosbag2 folder; a ``with`` statement closes it. Safe to call from any thread."""

    def __init__(self, path: str | Path, storage: Storage = "sqlite3") -> None:
        plugins = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
        if storage not in plugins:
            raise BagError(f"storage: expected one of {', '.join(plugins)}, got {storage!r}")
        self.path, self.store, self.messages = Path(path), typestore(), 0
        # SQLite's objects may be used by one thread only, so one thread does all the writing.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bag")
        self._connections: dict[str, Connection] = {}
        try:
            self._writer = Writer(self.path, version=8, storage_plugin=plugins[storage])
            self._thread.submit(self._writer.open).result()
        except (WriterError, OSError) as error:
            self._thread.shutdown()
            raise BagError(f"{path}: cannot write the bag: {error}") from None

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, topic: str, msgtype: str, stamp_ns: int, message: Any) -> None:
        """Write one message: serialised CDR bytes, or an object of ``self.store``'s types."""
        raw = message if isinstance(message, bytes) else self.store.serialize_cdr(message, msgtype)
        self._thread.submit(self._write, topic, msgtype, stamp_ns, raw).result()

    def _write(self, topic: str, msgtype: str, stamp_ns: int, raw: bytes | memoryview) -> None:
        if topic not in self._connections:
            qos = [_latched_qos()] if topic.rsplit("/", 1)[-1] in LATCHED else []
            self._connections[topic] = self._writer.add_connection(
                topic, msgtype, typestore=self.store, offered_qos_profiles=qos
            )
        self._writer.write(self._connections[topic], stamp_ns, raw)
        self.messages += 1

    def write_static_transforms(self, rig: StereoRig, stamp_ns: int, camera_frame: str = CAMERA_FRAME) -> None:
        """Write ``/tf_static`` with the frames of a played camera."""
        types = self.store.types
        transforms = [
            types["geometry_msgs/msg/TransformStamped"](
                header=self.header(stamp_ns, t.parent),
                child_frame_id=t.child,
                transform=types["geometry_msgs/msg/Transform"](
                    translation=types["geometry_msgs/msg/Vector3"](*t.translation),
                    rotation=types["geometry_msgs/msg/Quaternion"](*t.rotation),
                ),
            )
            for t in static_transforms(rig, camera_frame)
        ]
        message = types["tf2_msgs/msg/TFMessage"](transforms=transforms)
        self.write("/tf_static", "tf2_msgs/msg/TFMessage", stamp_ns, message)

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """A std_msgs/Header."""
        stamp = self.store.types["builtin_interfaces/msg/Time"](**time_fields(stamp_ns))
        return self.store.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)

    def close(self) -> None:
        """Finish the bag."""
        self._thread.submit(self._writer.close).result()
        self._thread.shutdown()


def from_kitti(
    source: str | Path,
    out: str | Path,
    storage: Storage = "sqlite3",
    frames: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    topics: str = "sicm",
) -> int:
    """Write a KITTI object folder, raw drive or odometry sequence as a rosbag2, ready for any ROS 2 player.

    ``topics`` is one of ``TOPIC_SCHEMES``: by default those of the encoder node, at the root. Stamps are the source's
    own (the object benchmark's frames get 10 Hz). ``frames`` limits their number; ``progress`` is called with frames
    done and in all. The number of pairs. Raises KittiError or BagError.
    """
    if topics not in TOPIC_SCHEMES:
        raise BagError(f"topics: expected one of {', '.join(TOPIC_SCHEMES)}, got {topics!r}")
    data = open_source(source)
    total = len(data) if frames is None else min(frames, len(data))
    if not total:
        raise KittiError(f"{source}: expected at least one stereo pair, there is none")
    with BagWriter(out, storage) as bag:
        types = bag.store.types
        for index in range(total):
            frame = data[index]
            if not index:
                bag.write_static_transforms(frame.rig, frame.stamp_ns)
            views: tuple[tuple[Side, np.ndarray, int], ...] = (
                ("left", frame.left, frame.stamp_ns),
                ("right", frame.right, frame.right_stamp_ns),
            )
            for (side, image, stamp_ns), topic in zip(views, TOPIC_SCHEMES[topics], strict=True):
                header = bag.header(stamp_ns, CAMERA_FRAME)
                height, width, _ = image.shape
                info = camera_info_fields(frame.rig, side, width, height)
                roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
                info.update({name: np.array(info[name]) for name in ("d", "k", "r", "p")})
                bag.write(
                    f"{topic.rsplit('/', 1)[0]}/camera_info",
                    "sensor_msgs/msg/CameraInfo",
                    stamp_ns,
                    types["sensor_msgs/msg/CameraInfo"](header=header, binning_x=0, binning_y=0, roi=roi, **info),
                )
                fields = rgb_to_message_fields(image)
                fields["data"] = np.frombuffer(fields["data"], np.uint8)
                bag.write(
                    topic,
                    "sensor_msgs/msg/Image",
                    stamp_ns,
                    types["sensor_msgs/msg/Image"](header=header, **fields),
                )
            if progress is not None:
                progress(index + 1, total)
    return total


# ------------------------------------------------------------------------------------------------------- live topics


def message_class(msgtype: str) -> Any:
    """The Python class of ``package/msg/Name``, or None where its package is not installed."""
    package, _, name = msgtype.split("/")
    with suppress(ImportError):
        return getattr(importlib.import_module(f"{package}.msg"), name, None)
    return None


class BagRecorder:
    """Records live topics as they come, without deserialising them. ``topics``: name -> type (``package/msg/Name``)."""

    def __init__(self, node: Any, path: str | Path, topics: Mapping[str, str], storage: Storage = "sqlite3") -> None:
        from sicm_ros.ros.qos import boxes_qos, latched_qos

        self.writer = BagWriter(path, storage)
        self._node = node
        self._subscriptions = []
        for topic, msgtype in topics.items():
            qos = latched_qos() if topic.rsplit("/", 1)[-1] in LATCHED else boxes_qos(100)
            name = node.resolve_topic_name(topic)

            def record(raw: bytes, name: str = name, msgtype: str = msgtype) -> None:
                self.writer.write(name, msgtype, time.time_ns(), raw)

            self._subscriptions.append(node.create_subscription(message_class(msgtype), topic, record, qos, raw=True))

    def close(self) -> None:
        """Stop recording, finish the bag."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        self.writer.close()


def play(
    path: str | Path,
    rate: float | None = None,
    loop: bool = False,
    start: float = 0.0,
    paused: bool = False,
    clock: bool = False,
    parameters: Mapping[str, object] | None = None,
    view: str | None = None,
) -> int:
    """Play a bag with the player node, in this process, until it ends or is interrupted; the exit status.

    ``rate`` in Hz (default: the bag's own); ``start`` in seconds; ``clock`` publishes the bag's time on /clock;
    ``parameters`` are further ones of the player node. In a terminal the space key pauses and goes on. ``view`` adds
    the viewer node, with its parameter of that name; recorded boxes are played then, too. Raises BagError or ViewError.
    """
    if not is_bag(path):
        raise BagError(f"{path}: expected a rosbag2 folder (with metadata.yaml) or a .db3 or .mcap file")
    from rclpy.parameter import Parameter

    from sicm_ros.nodes.keyboard import on_key
    from sicm_ros.nodes.kitti_player import KittiPlayerNode
    from sicm_ros.ros.run_node import run_node

    values = {
        "path": str(path),
        "rate": float(rate or 0.0),
        "loop": loop,
        "start": float(start),
        "paused": paused,
        "publish_clock": clock,
        **(parameters or {}),
    }
    if view is not None:
        from sicm_ros.ros.rerun_view import check_view

        check_view(view)
        values = {"replay_outputs": True, "wait_for": "viewer", **values}
    arguments = ["--ros-args"]
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else str(value)
        arguments += ["-p", f"{name}:={text}"]
    nodes: list[KittiPlayerNode] = []

    def make() -> KittiPlayerNode:
        nodes.append(KittiPlayerNode())
        return nodes[0]

    def toggle() -> None:
        if nodes:
            now = not nodes[0].value("paused")
            nodes[0].set_parameters([Parameter("paused", value=now)])
            nodes[0].get_logger().info("paused: the space key goes on" if now else "playing")

    def run() -> int:
        with on_key(" ", toggle):
            return run_node(make, arguments)

    os.environ.update(image_profile_variables())
    if view is None:
        return run()
    from sicm_ros.ros.rerun_view import viewer_parameters

    viewer = NodeProcess("viewer", viewer_parameters(view))
    try:
        return run() or viewer.status() or 0
    finally:
        viewer.stop()
