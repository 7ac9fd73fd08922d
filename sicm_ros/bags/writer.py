# SPDX-License-Identifier: Apache-2.0
"""Writes rosbag2 folders."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

from sicm_ros.bags.types import LATCHED, BagError, Storage, typestore
from sicm_ros.conversion.frames import CAMERA_FRAME, static_transforms
from sicm_ros.conversion.stamps import time_fields
from sicm_ros.geometry import StereoRig

__all__ = ["BagWriter"]


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
    """Writes messages to a new rosbag2 folder. Safe to call from any thread.

    The bag is written beside, in ``.NAME.part``, and gets its name when it is closed. A ``with`` statement closes it,
    or removes what was written if an exception leaves it. Raises BagError.
    """

    def __init__(self, path: str | Path, storage: Storage = "sqlite3") -> None:
        plugins = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
        if storage not in plugins:
            raise BagError(f"storage: expected one of {', '.join(plugins)}, got {storage!r}")
        self.path, self.store, self.messages = Path(path), typestore(), 0
        if os.path.lexists(self.path):
            raise BagError(f"{path}: exists already; expected a bag that does not exist yet")
        self._part, self._failed = self.path.with_name(f".{self.path.name}.part"), False
        self._lock = self._begin()
        # SQLite's objects may be used by one thread only, so one thread does all the writing.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bag")
        self._connections: dict[str, Connection] = {}
        self._writer = Writer(self._part / self.path.name, version=8, storage_plugin=plugins[storage])
        try:
            self._do(self._writer.open)
        except BagError:
            self._end()
            raise

    def _begin(self) -> int:
        """Make the folder to write in, without what a killed process left there; the descriptor that locks it."""
        try:
            self._part.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._part, os.O_RDONLY)
        except OSError as error:
            raise BagError(f"{self.path}: cannot write the bag: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise BagError(f"{self.path}: another process is writing this bag") from None
        shutil.rmtree(self._part / self.path.name, ignore_errors=True)
        return lock

    def _do(self, call: Callable[..., object], *arguments: object) -> None:
        """Call in the writing thread."""
        try:
            self._thread.submit(call, *arguments).result()
        except (WriterError, OSError, sqlite3.Error) as error:
            self._failed = True
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BagError(f"{self.path}: cannot write the bag: {words}") from None

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed |= kind is not None
        self.close()

    def write(self, topic: str, msgtype: str, stamp_ns: int, message: Any) -> None:
        """Write one message: serialised CDR bytes, or an object of ``self.store``'s types."""
        raw = message if isinstance(message, bytes) else self.store.serialize_cdr(message, msgtype)
        self._do(self._write, topic, msgtype, stamp_ns, raw)

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
        """Finish the bag, and give it its name; remove it if anything could not be written."""
        try:
            if self._failed:
                with suppress(Exception):  # what could not be written cannot be finished either
                    self._thread.submit(self._writer.abort).result()
            else:
                self._do(self._writer.close)
                self._do((self._part / self.path.name).rename, self.path)
        finally:
            self._end()

    def _end(self) -> None:
        self._thread.shutdown()
        shutil.rmtree(self._part, ignore_errors=True)
        os.close(self._lock)
