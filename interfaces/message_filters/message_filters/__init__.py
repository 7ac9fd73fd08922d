# SPDX-License-Identifier: Apache-2.0
"""What sicm_ros uses of ROS 2's ``message_filters``, for machines where the genuine package cannot be installed.

Names, arguments and behaviour are those of its Python interface in ROS 2 Jazzy. Use the genuine package wherever it
exists: it has synchronisers and a cache as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["SimpleFilter", "Subscriber"]


class SimpleFilter:
    """Hands what it puts out to every registered callback, in the order of their registration."""

    def __init__(self) -> None:
        self.callbacks: dict[int, tuple[Callable[..., object], tuple[Any, ...]]] = {}

    def registerCallback(self, cb: Callable[..., object], *args: Any) -> int:
        """``cb`` is called with each output, followed by ``args``. Returns the callback's key in ``callbacks``."""
        connection = len(self.callbacks)
        self.callbacks[connection] = (cb, args)
        return connection

    def signalMessage(self, *msg: Any) -> None:
        """Put out ``msg``: one message, or one of each input. What a callback raises goes to the caller."""
        for callback, args in list(self.callbacks.values()):
            callback(*msg, *args)


class Subscriber(SimpleFilter):
    """Puts out the messages of a subscription.

    Takes node, type and topic by position, and whatever ``Node.create_subscription`` takes beside them by name:
    ``Subscriber(node, Image, "image", qos_profile=...)``. The QoS profile is by default reliable with a depth of 10.
    The subscription is ``sub``, whose attributes are found here, too; ``node.destroy_subscription(s.sub)`` ends it.
    """

    def __init__(self, node: Any, msg_type: type, topic: str, /, **kwargs: Any) -> None:
        super().__init__()
        self.node = node
        self.topic = topic
        kwargs.setdefault("qos_profile", 10)
        self.sub = node.create_subscription(msg_type, topic, self.callback, **kwargs)

    def callback(self, msg: Any) -> None:
        """Put out ``msg``."""
        self.signalMessage(msg)

    def getTopic(self) -> str:
        """The topic as it was given."""
        return self.topic

    def __getattr__(self, name: str) -> Any:
        if name == "sub":  # not there yet, or creating it failed
            raise AttributeError(name)
        return getattr(self.sub, name)
