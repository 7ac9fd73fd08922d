# SPDX-License-Identifier: Apache-2.0
"""Rate control (equation 1, sum of R_i <= R_max): the rate of each frame, so that no second holds too many bits.

Pure Python: no ROS, no torch. ``BitWindow`` alone gives the guarantee; ``RateController`` chooses rates such that
quality changes smoothly and the window rarely has to refuse a packet.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Generic, Protocol, TypeVar

__all__ = ["MAX_RISE", "MAX_TRIES", "BitWindow", "RateController", "RateDecision", "wire_bits", "wire_bytes"]

SECOND_NS = 1_000_000_000

# What the wire adds to a packet: the other fields of the message once, and for each datagram (of the size in
# config/fastdds_lossy.xml) the headers of Ethernet, IP, UDP, RTPS and its submessages. Measured with Fast DDS 2.14.
MESSAGE_FIELDS = 80
DATAGRAM_PAYLOAD = 1150
DATAGRAM_HEADERS = 190

# From one sent frame to the next the rate rises at most by this; it falls as far as it must.
MAX_RISE = 0.2
# Times that the entropy stage runs for one frame, at most; the last one is at the lowest rate.
MAX_TRIES = 4

# A packet may be this much larger (logarithm of bits) than planned before a lower rate is tried.
TOLERANCE = 0.05
# Tried rates differ at least by this.
LEAST_STEP = 0.1
# Shares of the budget that are planned with: for the frame at hand, and for a steady stream.
NEAR_SHARE, STEADY_SHARE = 0.98, 0.96
# Where not even the lowest rate is sustainable, packets are spaced evenly, but for this much.
SPACING_SLACK_S = 0.05
# Frames may come earlier than at a steady pace by this part of their period.
JITTER = 0.25
# Until two frames have come; an optimist would begin with more than the window lets follow.
ASSUMED_PERIOD_S = 1 / 30
# Slope of the logarithm of bits over the rate: until a frame was coded at two rates, and what is believed.
ASSUMED_SLOPE, LEAST_SLOPE, MOST_SLOPE = 0.3, 0.05, 2.0


def wire_bytes(packet_bytes: int) -> int:
    """Bytes that a packet of this size costs on an Ethernet-like link."""
    message = packet_bytes + MESSAGE_FIELDS
    return message + DATAGRAM_HEADERS * math.ceil(message / DATAGRAM_PAYLOAD)


def wire_bits(packet: bytes) -> int:
    """Bits that a packet costs on an Ethernet-like link."""
    return 8 * wire_bytes(len(packet))


class BitWindow:
    """The bits that were admitted in the last second, exactly: a sliding window, not a bucket.

    For any t, what is admitted in [t, t + 1 s) is at most the budget that held when the last of it was admitted.
    ``clock`` gives nanoseconds. Where it jumps back, time stands still here: a second of the window is then longer than
    one of real time, never shorter.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._last_reading = clock()
        self._now = 0
        self._admitted: deque[tuple[int, int]] = deque()
        self._bits = 0

    def now(self) -> int:
        """Nanoseconds of the window's own clock, which never goes back."""
        reading = self._clock()
        self._now += max(0, reading - self._last_reading)
        self._last_reading = reading
        while self._admitted and self._admitted[0][0] <= self._now - SECOND_NS:
            self._bits -= self._admitted.popleft()[1]
        return self._now

    def bits(self) -> int:
        """Bits admitted in the last second."""
        self.now()
        return self._bits

    def admitted(self) -> list[tuple[int, int]]:
        """(time, bits) of the last second's packets, the oldest first."""
        self.now()
        return list(self._admitted)

    def admit(self, bits: int, max_bitrate: float = math.inf) -> bool:
        """Count a packet that is sent now; False, and nothing is counted, if it would exceed the budget."""
        now = self.now()
        if self._bits + bits > max_bitrate:
            return False
        self._admitted.append((now, bits))
        self._bits += bits
        return True


class Coded(Protocol):
    """What an encoder makes of a frame."""

    @property
    def packet(self) -> bytes:
        """The bytes to send."""


T = TypeVar("T", bound=Coded)


@dataclass(frozen=True)
class RateDecision(Generic[T]):
    """The result for one frame: ``sent`` is to be sent now, or is None with the reason in ``refusal``.

    ``tries`` has all that was coded for it, in order; ``rate`` is the rate that was asked for of what was sent, or of
    the last try.
    """

    sent: T | None
    rate: float
    tries: tuple[T, ...]
    refusal: str = ""


class RateController:
    """Chooses the rate of each frame.

    The logarithm of a packet's bits is modelled as linear in the rate, with an offset for each frame. The plan is the
    highest constant rate at which this frame, and the frames to come if they are as those of the last second, stay
    within the budget, given what is still in the window. So no burst follows a pause, and the cost of a single hard
    frame is spread over the whole second after it. A frame that comes out larger than planned is coded again at lower
    rates.
    """

    def __init__(self, highest_rate: float, window: BitWindow | None = None) -> None:
        self.highest_rate = highest_rate
        self.window = BitWindow() if window is None else window
        self._last_frame: int | None = None
        self._last_rate: float | None = None
        self._clear_at = 0  # when the next of packets like those sent would be due
        self._periods: deque[int] = deque(maxlen=9)
        self._history: deque[tuple[float, float]] = deque(maxlen=120)  # rate and log bits of the last frames
        self._slope = ASSUMED_SLOPE

    def encode(self, max_bitrate: float, preferred_rate: float, encode_at: Callable[[float], T]) -> RateDecision[T]:
        """Code one frame with ``encode_at`` (rate to packet), called up to MAX_TRIES times, and admit it if it fits.

        ``max_bitrate`` is in bits per second; 0 is no limit: all is sent at ``preferred_rate``, and counted, so that
        the guarantee holds from the very frame with which a limit comes. What is admitted is to be sent at once.
        Raises ValueError for a budget that is negative or no number.
        """
        if not 0 <= max_bitrate < math.inf:
            raise ValueError(f"max_bitrate: expected bits per second, at least 0 (no limit), got {max_bitrate:g}")
        now = self._note_frame()
        highest = min(max(preferred_rate, 0.0), self.highest_rate)
        if not max_bitrate:
            coded = encode_at(highest)
            self.window.admit(wire_bits(coded.packet))
            return self._sent(coded, highest, (coded,))
        if self._last_rate is not None:
            highest = min(highest, self._last_rate + MAX_RISE)
        tries, rate, fits, sustainable = self._search(now, max_bitrate, highest, encode_at)
        coded = tries[-1]
        bits = wire_bits(coded.packet)
        if not fits:
            left = max(max_bitrate - self.window.bits(), 0)
            refusal = f"and {left:.0f} are left of this second's {max_bitrate:.0f}"
        elif rate == 0 and not sustainable and self._clear_at - now > SPACING_SLACK_S * SECOND_NS:
            refusal = f"too many for each frame at {max_bitrate:.0f} bit/s: those that are sent are spaced evenly"
        elif self.window.admit(bits, max_bitrate):
            self._clear_at = max(self._clear_at, now) + SECOND_NS // int(max_bitrate / bits)
            return self._sent(coded, rate, tries)
        else:
            refusal = "more than the window has left"  # the window only empties while a frame is coded
        self._history.append((rate, math.log(bits)))
        return RateDecision(None, rate, tries, f"its packet at rate {rate:.2f} has {bits} bits on the wire, {refusal}")

    def _note_frame(self) -> int:
        now = self.window.now()
        if self._last_frame is not None and now > self._last_frame:
            self._periods.append(min(now - self._last_frame, SECOND_NS))
        self._last_frame = now
        return now

    def _sent(self, coded: T, rate: float, tries: tuple[T, ...]) -> RateDecision[T]:
        self._last_rate = rate
        self._history.append((rate, math.log(wire_bits(coded.packet))))
        return RateDecision(coded, rate, tries)

    def _search(
        self, now: int, max_bitrate: float, highest: float, encode_at: Callable[[float], T]
    ) -> tuple[tuple[T, ...], float, bool, bool]:
        """Tries at falling rates; the last one's rate, whether it fits the window, and whether it is as planned."""
        free = max_bitrate - self.window.bits()
        rooms = self._rooms(now, max_bitrate)
        rate = highest
        if self._history:
            # The next picture may be as hard as the harder of the last two.
            offset = max(bits - self._slope * r for r, bits in itertools.islice(reversed(self._history), 2))
            rate = min(highest, max(0.0, self._plan(rooms, offset)))
        tries: list[T] = []
        last: tuple[float, float] | None = None
        while True:
            tries.append(encode_at(rate))
            bits = wire_bits(tries[-1].packet)
            log_bits = math.log(bits)
            if last is not None:
                step = last[0] - rate
                secant = min(max((last[1] - log_bits) / step, LEAST_SLOPE), MOST_SLOPE)
                self._slope += 0.7 * min(step, 1.0) * (secant - self._slope)
            last = rate, log_bits
            planned = self._plan(rooms, log_bits - self._slope * rate)
            fits, sustainable = bits <= free, self._slope * (rate - planned) <= TOLERANCE
            if (fits and (sustainable or len(tries) == MAX_TRIES - 1)) or rate == 0:
                return tuple(tries), rate, fits, sustainable
            rate = 0.0 if len(tries) == MAX_TRIES - 1 else max(0.0, min(planned, rate - LEAST_STEP))

    def _rooms(self, now: int, max_bitrate: float) -> list[float]:
        """Bits that this frame and the k next ones may take together, for k = 0, 1, ... over one second."""
        period = median(self._periods) if self._periods else ASSUMED_PERIOD_S * SECOND_NS
        count = min(int(SECOND_NS / period) + 1, self._history.maxlen or 1)
        held = deque(self.window.admitted())
        bits, rooms = sum(b for _, b in held), []
        for k in range(count):
            while k and held and held[0][0] <= now + (k - JITTER) * period - SECOND_NS:
                bits -= held.popleft()[1]
            share = NEAR_SHARE + (STEADY_SHARE - NEAR_SHARE) * k / max(count - 1, 1)
            rooms.append(share * max_bitrate - bits)
        return rooms

    def _plan(self, rooms: list[float], offset: float) -> float:
        """The highest rate, minus infinity included, that this frame and those to come can have."""
        if min(rooms) <= 0:
            return -math.inf
        recent = list(itertools.islice(reversed(self._history), len(rooms) - 1))
        weights = [math.exp(bits - self._slope * rate - offset) for rate, bits in recent] + [1.0]
        mean = sum(weights) / len(weights)
        return (min(math.log(room / (1 + k * mean)) for k, room in enumerate(rooms)) - offset) / self._slope
