# SPDX-License-Identifier: Apache-2.0
"""Keeps the bits on the wire below a budget by choosing the codec's rate for each pair. Pure Python, no ROS."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["BitBudget", "wire_bytes"]

# What the wire adds to a packet: the other fields of the message once, and for each datagram (of the size in
# config/fastdds_lossy.xml) the headers of Ethernet, IP, UDP, RTPS and its submessages. Measured with Fast DDS 2.14.
MESSAGE_FIELDS = 80
DATAGRAM_PAYLOAD = 1150
DATAGRAM_HEADERS = 190

# The bucket holds this many seconds of the budget: what may be sent at once after a pause.
BURST_S = 0.5
# Sizes are aimed at this part of what is left, because the next picture may be harder than the last.
MARGIN = 0.9


def wire_bytes(packet_bytes: int) -> int:
    """Bytes that a packet of this size costs on an Ethernet-like link."""
    message = packet_bytes + MESSAGE_FIELDS
    return message + DATAGRAM_HEADERS * math.ceil(message / DATAGRAM_PAYLOAD)


class BitBudget:
    """A token bucket with a model of how packet size depends on the rate.

    For each pair: ``choose`` gives the rate to encode with, ``admit`` tells whether the packet may be sent, and counts
    it. In any stretch of T seconds at most ``limit * (T + BURST_S)`` bits are admitted. Times are seconds of one clock.
    """

    def __init__(self, highest_rate: float) -> None:
        self.highest_rate = highest_rate
        self.refused = 0
        self._tokens: float | None = None
        self._updated = 0.0
        self._limit = 0.0
        self._last_choice: float | None = None
        self._period_s: float | None = None
        # Of the last packets: rate, and the logarithm of the bits on the wire. It is close to linear in the rate.
        self._samples: deque[tuple[float, float]] = deque(maxlen=60)

    def choose(self, now: float, limit_bps: float, preferred_rate: float) -> float:
        """The highest rate up to ``preferred_rate`` whose packets are expected to fit ``limit_bps`` bits per second."""
        self._refill(now, limit_bps)
        if self._last_choice is not None:
            period = min(now - self._last_choice, 1.0)
            self._period_s = period if self._period_s is None else 0.8 * self._period_s + 0.2 * period
        self._last_choice = now
        tokens, capacity = self._tokens or 0.0, limit_bps * BURST_S
        share = limit_bps * (0.1 if self._period_s is None else self._period_s)
        # A bucket more than half full allows for more than this pair's share, an emptier one for less.
        target = MARGIN * max(min(share + 0.3 * (tokens - capacity / 2), tokens), 1.0)
        if not self._samples:
            # Nothing is known yet: the first packet is the smallest that there is.
            return 0.0
        slope, intercept = self._model()
        return min(max((math.log(target) - intercept) / slope, 0.0), preferred_rate, self.highest_rate)

    def admit(self, now: float, limit_bps: float, rate: float, packet_bytes: int) -> bool:
        """Take a packet's bits from the budget; False if they are not there, and the packet must not be sent."""
        self._refill(now, limit_bps)
        bits = 8.0 * wire_bytes(packet_bytes)
        self._samples.append((rate, math.log(bits)))
        if bits > (self._tokens or 0.0):
            self.refused += 1
            return False
        self._tokens = (self._tokens or 0.0) - bits
        return True

    def _refill(self, now: float, limit_bps: float) -> None:
        capacity = limit_bps * BURST_S
        if self._tokens is None or limit_bps != self._limit:
            self._tokens, self._limit, self._updated = capacity, limit_bps, now
        self._tokens = min(capacity, self._tokens + limit_bps * max(0.0, now - self._updated))
        self._updated = max(now, self._updated)

    def _model(self) -> tuple[float, float]:
        """Slope and intercept of log bits over the rate; the intercept follows the latest pictures."""
        count = len(self._samples)
        mean_x = sum(x for x, _ in self._samples) / count
        mean_y = sum(y for _, y in self._samples) / count
        spread = sum((x - mean_x) ** 2 for x, _ in self._samples)
        slope = 0.35
        if spread > 0.05 * count:
            slope = sum((x - mean_x) * (y - mean_y) for x, y in self._samples) / spread
        slope = min(max(slope, 0.05), 2.0)
        latest = list(self._samples)[-3:]
        return slope, sum(y - slope * x for x, y in latest) / len(latest)
