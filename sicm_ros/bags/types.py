# SPDX-License-Identifier: Apache-2.0
"""The message types in bags, and definitions that all of bags/ shares."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

__all__ = ["BITSTREAM_TYPE", "BagError", "IMAGE_TYPES", "LATCHED", "Storage", "message_class", "typestore"]

Storage = Literal["sqlite3", "mcap"]
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
BITSTREAM_TYPE = "sicm_ros/msg/StereoBitstream"
LATCHED = ("codec_info", "label_info", "tf_static")


class BagError(ValueError):
    """A bag that cannot be read or written; the message is one line naming the bag and what is expected."""


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


def message_class(msgtype: str) -> Any:
    """The Python class of ``package/msg/Name``, or None where its package is not installed."""
    package, _, name = msgtype.split("/")
    with suppress(ImportError):
        return getattr(importlib.import_module(f"{package}.msg"), name, None)
    return None
