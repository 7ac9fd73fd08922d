# SPDX-License-Identifier: Apache-2.0
"""Records live topics into a bag."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sicm_ros.bags.types import LATCHED, Storage, message_class
from sicm_ros.bags.writer import BagWriter

__all__ = ["BagRecorder"]


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
