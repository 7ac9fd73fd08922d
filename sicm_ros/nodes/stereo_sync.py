# SPDX-License-Identifier: Apache-2.0
"""Stereo pairs as a filter of ``message_filters``: left and right images in, pairs out."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from message_filters import SimpleFilter
from rclpy.clock import Clock, ROSClock

from sicm_ros.conversion.stamps import nanoseconds
from sicm_ros.data.pairing import StereoPairer
from sicm_ros.data.source import SIDES, Side

__all__ = ["StereoSync"]

# For images without a stamp: both of a pair arrive one after the other, on a busy machine some time apart.
UNSTAMPED_SLOP_NS = 50_000_000


class StereoSync(SimpleFilter):
    """Takes two filters, of the left and of the right images, and calls back with both messages of each pair.

    Used as the synchronisers of ``message_filters`` are::

        left, right = (Subscriber(node, Image, f"{side}/image_rect", qos_profile=image_qos()) for side in SIDES)
        sync = StereoSync([left, right], queue_size=10, slop=0.01)
        sync.registerCallback(lambda left, right: ...)

    Any filter will do whose messages have a header. ``pairer`` does the matching and counts what it drops, by side and
    reason. No lock is held during the callbacks: one that raises, or takes long, stops no other thread and loses no
    later pair. Safe to feed from any thread.
    """

    def __init__(
        self, fs: Sequence[SimpleFilter], queue_size: int, slop: float = 0.0, clock: Clock | None = None
    ) -> None:
        """``fs``: the filters of the left and of the right images, or none yet (see ``connectInput``).

        ``queue_size``: images of each side that may wait. ``slop``: seconds between the stamps of a pair, 0 for equal
        ones. ``clock``: dates images whose stamp is zero. Raises ValueError for numbers out of range and for a number
        of filters that is not two.
        """
        super().__init__()
        self.pairer: StereoPairer[Any] = StereoPairer(slop, queue_size)
        self.unstamped = 0
        self._slop_ns = self.pairer.tolerance_ns
        self._clock = clock or ROSClock()
        self._handed_out = threading.local()
        if fs:
            self.connectInput(fs)

    def connectInput(self, fs: Sequence[SimpleFilter]) -> None:
        """Take images from these two filters, too. Raises ValueError where they are not two."""
        if len(fs) != len(SIDES):
            raise ValueError(f"fs: expected the filters of the left and of the right images, got {len(fs)}")
        for side, source in zip(SIDES, fs, strict=True):
            source.registerCallback(self.add, side)

    def add(self, message: Any, side: Side) -> None:
        """Take one message, and hand out the pair that it completes."""
        now = time.monotonic_ns()
        self.pairer.tolerance_ns = self._slop_ns
        if not nanoseconds(message.header.stamp):
            # Some drivers and converters never set it; such an image is as old as its arrival.
            message.header.stamp = self._clock.now().to_msg()
            self.unstamped += 1
            self.pairer.tolerance_ns = max(self._slop_ns, UNSTAMPED_SLOP_NS)
        match = self.pairer.add(side, nanoseconds(message.header.stamp), message, now)
        if match is not None:
            self._handed_out.first_arrival_ns = match.first_arrival_ns
            self.signalMessage(match.left, match.right)

    @property
    def first_arrival_ns(self) -> int:
        """In a callback: when the first image of its pair came, as ``time.monotonic_ns`` has it."""
        return self._handed_out.first_arrival_ns

    def reset(self) -> None:
        """Forget the images that wait; they are counted as dropped."""
        self.pairer.reset()
