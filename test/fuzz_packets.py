# SPDX-License-Identifier: Apache-2.0
"""Mutation fuzzing of everything that reads a packet, on the frozen tiny model; runs as long as one likes.

    python test/fuzz_packets.py --cases 1000000 --seed 1 [--minutes 60]
    python test/fuzz_packets.py --replay 1/4711

Case n of seed s is made from the string "s/n" alone, so each can be repeated by itself. What must hold for each of them
is in ``Target.judge``. The cases run in a child process, whose address space may grow by ``HEADROOM`` only; the parent
notices when it crashes or hangs, says which case that was, and goes on after it. Ctrl-C ends it with the table so far.
Exits with 1 if any case failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

HEADROOM = 32 << 20  # bytes of address space beyond what valid packets took
UNLIMITED = 2**62  # cases
LIFE = 100_000  # cases of one child: an address space frays, and then the fuzzer's own copies no longer fit
SAMPLE = 61  # every so many cases memory is measured, and the case is decoded in one batch with sound packets
MAX_FAILURES = 20
HEADER, OVERHEAD = 73, 77  # docs/packet.md
OUTCOMES = (
    "decoded",
    "NotAPacketError",
    "WrongVersionError",
    "TruncatedPacketError",
    "DamagedPacketError",
    "ImplausiblePacketError",
    "WrongModelError",
    "SymbolMismatchError",
    "incomplete",
    "FAILED",
)
SHORT = ("decoded", "no packet", "version", "cut", "damaged", "implausib", "model", "symbols", "incompl", "FAILED")
LENGTHS = (
    0,
    1,
    2,
    3,
    4,
    72,
    73,
    76,
    77,
    78,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFB2,
    0xFFFFFFB3,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
SIZES = (0, 1, 2, 19, 20, 21, 95, 96, 97, 288, 375, 1242, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
NUMBERS = (
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1.2e-38,
    0.999,
    1.0,
    -1.0,
    700.0,
    1e3,
    1e6,
    1.001e6,
    1e9,
    -1e9,
    1.1e9,
    3.4e38,
    -3.4e38,
)


class Case(NamedTuple):
    """``data``: a packet, or a payload for the raster model. ``outcome`` is what must come out, if that is known."""

    data: bytes
    outcome: str | None = None


# ---------------------------------------------------------------------------------------------------- mutations


def sealed(body: bytes) -> bytes:
    """With a CRC that fits."""
    return body + struct.pack("<I", zlib.crc32(body))


def packed(header: bytes, payload: bytes) -> bytes:
    """A packet with this payload, its length and a CRC that fits."""
    return sealed(header[:65] + struct.pack("<I", len(payload)) + header[69:HEADER] + payload)


def patched(data: bytes, offset: int, fmt: str, *values: float) -> bytes:
    """Other values at an offset, and a CRC that fits."""
    body = bytearray(data[:-4])
    struct.pack_into("<" + fmt, body, offset, *values)
    return sealed(bytes(body))


def filler(rng: random.Random, length: int) -> bytes:
    """Random bytes, or one byte again and again."""
    return rng.randbytes(length) if rng.random() < 0.6 else bytes([rng.choice((0, 0xFF, rng.randrange(256)))]) * length


def much(rng: random.Random) -> bytes:
    """Mostly a few bytes, now and then megabytes."""
    if rng.random() < 0.004:
        return bytes([rng.randrange(256)]) * rng.randrange(1 << 20, 4 << 20)
    return filler(rng, rng.choice((1, 2, 3, 4, rng.randrange(1, 64), rng.randrange(1, 3000))))


def flipped(rng: random.Random, data: bytes, first: int = 0, last: int | None = None) -> bytes:
    """One to eight bits flipped in data[first:last]."""
    out = bytearray(data)
    last = len(data) if last is None else last
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8)) if last > first else 0):
        out[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    return bytes(out)


def overwritten(rng: random.Random, data: bytes) -> bytes:
    """A run of bytes replaced, sometimes by another part of the data."""
    if not data:
        return data
    start, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, rng.randrange(1, 100)))
    source = rng.randrange(len(data))
    run = data[source : source + length] if rng.random() < 0.3 else filler(rng, length)
    return (data[:start] + run + data[start + len(run) :])[: len(data)]


def damaged(rng: random.Random, payload: bytes) -> bytes:
    """A payload that is damaged in one of several ways."""
    way = rng.randrange(6)
    if way < 2:
        return flipped(rng, payload)
    if way < 4:
        return overwritten(rng, payload)
    cut = rng.randrange(len(payload) + 1)
    return (
        payload[:cut] + payload[cut + rng.randrange(1, 9) :]
        if way == 4
        else payload[:cut] + filler(rng, rng.randrange(1, 9)) + payload[cut:]
    )


def single(rng: random.Random, low: float, high: float) -> float:
    """A number whose decimal logarithm is in [low, high], of either sign."""
    return rng.choice((1, -1)) * 10 ** rng.uniform(low, high)


def rounded(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def rig(rng: random.Random) -> list[float]:
    """fx, fy, cx, cy and both translations: mostly nonsense, of several kinds."""
    values = [721.5377, 721.5377, 609.5593, 172.854, 44.85728, 0.2163791, 0.002745884, -339.5242, 2.199936, 0.0027299]
    way = rng.randrange(4)
    if way == 0:
        for _ in range(rng.randrange(1, 4)):
            values[rng.randrange(10)] = rng.choice(NUMBERS)
    elif way == 1:
        values = [single(rng, -44, 38) for _ in values]
    elif way == 2:
        # Just inside the bounds that docs/packet.md states.
        values = [
            10 ** rng.uniform(0, 6),
            10 ** rng.uniform(0, 6),
            single(rng, 0, 6),
            single(rng, 0, 6),
            *(single(rng, -3, 9) for _ in range(6)),
        ]
        values[6], values[9] = rng.choice(((0.0, 0.0), (values[6], values[6]), (values[6], values[9])))
        values[7] = values[4] - values[0] * 10 ** rng.uniform(-9, 3)
    else:
        # A baseline that is the difference of huge numbers.
        values[2], values[6] = rounded(single(rng, 0, 6)), rounded(single(rng, 0, 4))
        values[9] = rounded(rng.choice((0.0, rng.uniform(-1, 1))))
        difference = values[2] * (values[6] - values[9])
        values[4] = rounded(difference)
        values[7] = values[4] - difference - rng.choice((0.0, 1e-9, 1e-7, 1.0))
    return values


class Mutations:
    """One method for each kind of mutation: (rng) -> Case. ``WEIGHTS`` says how many of 1000 cases are of each kind."""

    WEIGHTS = {
        "unchanged": 1,
        "cut": 90,
        "cut_sealed": 15,
        "extended": 80,
        "extended_sealed": 15,
        "flipped": 120,
        "overwritten": 100,
        "length_lie": 60,
        "length_lie_sealed": 50,
        "spliced": 60,
        "spliced_sealed": 25,
        "other_model": 40,
        "other_model_forged": 10,
        "version_or_magic": 50,
        "random_bytes": 40,
        "random_body": 30,
        "geometry": 40,
        "rig": 50,
        "rate": 15,
        "payload_damaged": 45,
        "payload_random": 20,
        "hyper_damaged": 30,
        "hash_damaged": 10,
        "hash_forged": 12,
        "both_forged": 12,
        "stacked": 40,
        "raster_payload": 5,
    }

    def __init__(self, target: Target) -> None:
        self.target, self.corpus = target, target.corpus
        self.kinds = tuple(self.WEIGHTS)
        self.cumulative = [sum(list(self.WEIGHTS.values())[: i + 1]) for i in range(len(self.kinds))]

    def make(self, seed: int, number: int) -> tuple[str, Case]:
        """Kind and bytes of a case."""
        rng = random.Random(f"{seed}/{number}")
        kind = rng.choices(self.kinds, cum_weights=self.cumulative)[0]
        return kind, getattr(self, kind)(rng)

    def _packet(self, rng: random.Random) -> bytes:
        return rng.choice(self.corpus)

    def unchanged(self, rng: random.Random) -> Case:
        return Case(self._packet(rng), "decoded")

    def cut(self, rng: random.Random) -> Case:
        data = self._packet(rng)
        return Case(data[: rng.randrange(len(data))])

    def cut_sealed(self, rng: random.Random) -> Case:
        data = self._packet(rng)
        return Case(packed(data, data[HEADER : HEADER + rng.randrange(len(data) - OVERHEAD + 1)]))

    def extended(self, rng: random.Random) -> Case:
        return Case(self._packet(rng) + much(rng), "DamagedPacketError")

    def extended_sealed(self, rng: random.Random) -> Case:
        data, more = self._packet(rng), much(rng)
        payload = data[HEADER:-4]
        return Case(packed(data, payload + more if rng.random() < 0.7 else more + payload))

    def flipped(self, rng: random.Random) -> Case:
        return Case(flipped(rng, self._packet(rng)))

    def overwritten(self, rng: random.Random) -> Case:
        return Case(overwritten(rng, self._packet(rng)))

    def length_lie(self, rng: random.Random) -> Case:
        data = self._packet(rng)
        return Case(data[:65] + struct.pack("<I", self._length(rng, data)) + data[69:])

    def length_lie_sealed(self, rng: random.Random) -> Case:
        data = self._packet(rng)
        return Case(patched(data, 65, "I", self._length(rng, data)))

    @staticmethod
    def _length(rng: random.Random, data: bytes) -> int:
        near = max(0, len(data) - OVERHEAD + rng.randrange(-9, 10))
        return rng.choice((near, rng.choice(LENGTHS), rng.getrandbits(32)))

    def spliced(self, rng: random.Random) -> Case:
        a, b = self._packet(rng), self._packet(rng)
        return Case(a[: rng.randrange(len(a) + 1)] + b[rng.randrange(len(b) + 1) :])

    def spliced_sealed(self, rng: random.Random) -> Case:
        a, b = self._packet(rng), self._packet(rng)
        one, other = a[HEADER:-4], b[HEADER:-4]
        word = rng.choice((1, 4))
        return Case(
            packed(
                a,
                one[: word * rng.randrange(len(one) // word + 1)]
                + other[word * rng.randrange(len(other) // word + 1) :],
            )
        )

    def other_model(self, rng: random.Random) -> Case:
        data = self._packet(rng)
        if rng.random() < 0.5:
            return Case(patched(data, 5, "Q", rng.getrandbits(64)))
        return Case(packed(data[:5] + rng.randbytes(8) + data[13:], self.target.foreign), "WrongModelError")

    def other_model_forged(self, rng: random.Random) -> Case:
        foreign = self.target.foreign
        return Case(packed(self._packet(rng), foreign if rng.random() < 0.2 else damaged(rng, foreign)))

    def version_or_magic(self, rng: random.Random) -> Case:
        data = self._packet(rng)
        if rng.random() < 0.5:
            version = rng.choice((0, *range(2, 256)))
            other = patched(data, 4, "B", version)
            return Case(other if rng.random() < 0.5 else other[:-4] + data[-4:], "WrongVersionError")
        magic = rng.choice((flipped(rng, data[:4]), b"sicm", b"RIFF", b"\x89PNG", rng.randbytes(4)))
        return Case(sealed(magic + data[4:-4]))

    def random_bytes(self, rng: random.Random) -> Case:
        return Case(filler(rng, rng.choice((0, 1, 4, 5, 76, 77, 78, rng.randrange(1000)))))

    def random_body(self, rng: random.Random) -> Case:
        body = b"SICM\x01" + filler(rng, rng.randrange(600))
        if len(body) >= HEADER and rng.random() < 0.7:
            return Case(packed(body, body[HEADER:]))
        return Case(sealed(body))

    def geometry(self, rng: random.Random) -> Case:
        data = self._packet(rng)
        if rng.random() < 0.1:
            # Only the camera's size: passes, and leads to extreme scales.
            return Case(patched(data, 15, "2H", rng.choice(SIZES), rng.choice(SIZES)))
        for _ in range(rng.randrange(1, 4)):
            data = patched(data, 15 + 2 * rng.randrange(5), "H", rng.choice((*SIZES, rng.getrandbits(16))))
        return Case(data)

    def rig(self, rng: random.Random) -> Case:
        return Case(patched(self._packet(rng), 25, "10f", *rig(rng)))

    def rate(self, rng: random.Random) -> Case:
        index = rng.choice((0, 1, 5119, 5120)) if rng.random() < 0.2 else rng.randrange(5121, 1 << 16)
        outcome = "decoded" if index <= 5120 else "ImplausiblePacketError"
        return Case(patched(self._packet(rng), 13, "H", index), outcome)

    def payload_damaged(self, rng: random.Random) -> Case:
        data = self._packet(rng)
        return Case(packed(data, damaged(rng, data[HEADER:-4])))

    def payload_random(self, rng: random.Random) -> Case:
        return Case(packed(self._packet(rng), filler(rng, rng.randrange(self.target.most + 2))))

    def hyper_damaged(self, rng: random.Random) -> Case:
        """The hyper-latents are decoded first, from the payload's last bytes."""
        data = self._packet(rng)
        payload = data[HEADER:-4]
        return Case(packed(data, flipped(rng, payload, max(0, len(payload) - 16))))

    def hash_damaged(self, rng: random.Random) -> Case:
        return Case(patched(self._packet(rng), 69, "I", rng.choice((0, 0xFFFFFFFF, rng.getrandbits(32)))))

    def hash_forged(self, rng: random.Random) -> Case:
        """A damaged payload with the hash of what it decodes to; what is left in the coder gives it away."""
        data = self._packet(rng)
        payload = damaged(rng, data[HEADER:-4])
        number = self.target.symbol_hash(self.target.symbols_in(payload))
        return Case(packed(data[:69] + struct.pack("<I", number), payload))

    def both_forged(self, rng: random.Random) -> Case:
        """Symbols that no encoder would choose, coded as an encoder would: both checks hold."""
        data = self._packet(rng)
        if rng.random() < 0.5:
            payload, number = self.target.recode(self.target.symbols_in(damaged(rng, data[HEADER:-4])))
        else:
            payload, number = self.target.forge(rng)
        data = packed(data[:69] + struct.pack("<I", number), payload)
        if rng.random() < 0.6:
            return Case(data, "decoded")
        return Case(patched(data, 25, "10f", *rig(rng)))

    def stacked(self, rng: random.Random) -> Case:
        """Several mutations one after another, in one half of the cases with a CRC that fits."""
        data = self._packet(rng)
        for _ in range(rng.randrange(2, 5)):
            data = rng.choice((flipped, overwritten, damaged))(rng, data)
        if rng.random() < 0.5:
            data = packed(data, data[HEADER:-4]) if len(data) > OVERHEAD else sealed(data)
        return Case(data)

    def raster_payload(self, rng: random.Random) -> Case:
        """For the entropy decoder of the raster context, which the tiny model does not use."""
        if rng.random() < 0.05:
            return Case(self.target.foreign, "decoded")
        if rng.random() < 0.3:
            return Case(filler(rng, rng.randrange(1100)))
        return Case(damaged(rng, self.target.foreign))


# ---------------------------------------------------------------------------------------------------- what must hold


class Violation(AssertionError):
    """A case did not end as it must."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise Violation(text)


class Target:
    """The decoder of the tiny model under observation, and valid packets of it."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        import numpy as np
        from codec_material import DATA, TINY_MODEL
        from safetensors.torch import load_file

        from sicm_ros.codec import packet
        from sicm_ros.codec import payload as payload_module
        from sicm_ros.codec.decoder import StereoDecoder
        from sicm_ros.codec.range_coder import RangeCoder, SymbolDecoder, SymbolEncoder
        from sicm_ros.networks.entropy_model import StereoEntropyModel
        from sicm_ros.networks.entropy_tables import EntropyTables
        from sicm_ros.networks.integer_prior import symbol_limits

        self.np, self.torch, self.packet, self.encoder = np, torch, packet, SymbolEncoder
        self.payload_module = payload_module
        self.decoder = StereoDecoder(TINY_MODEL)
        self.config = config = self.decoder.model.config
        self.size = config.latent_size
        self.coder = RangeCoder(self.decoder.model.tables)
        self.limits = limits = symbol_limits().numpy()
        self.count = payload_module.symbol_count(config.latent_channels, config.hyper_channels, self.size)
        self.most = 3 * self.count + 8

        class Watched(SymbolDecoder):
            """Keeps all symbols of the packet decoded last, and looks at each."""

            seen: list[Any] = []
            indices: list[Any] = []
            last: Any = None

            def __init__(self, coder: RangeCoder, payload: bytes) -> None:
                super().__init__(coder, payload)
                Watched.seen, Watched.indices, Watched.last = [], [], self

            def hyper(self, view: int, shape: Any) -> Any:
                symbols = super().hyper(view, shape)
                require(symbols.dtype == np.int32 and symbols.shape == tuple(shape), "hyper-latent of a wrong shape")
                require(np.abs(symbols).max() <= 63, "hyper-latent's symbol beyond its table")
                Watched.seen.append(symbols)
                return symbols

            def latents(self, indices: Any) -> Any:
                symbols = super().latents(indices)
                require(symbols.dtype == np.int32 and symbols.shape == indices.shape, "latent of a wrong shape")
                require((np.abs(symbols) <= limits[indices]).all(), "latent's symbol beyond its table")
                Watched.seen.append(symbols)
                Watched.indices.append(indices)
                return symbols

        self.watched = Watched
        self._restore = payload_module.SymbolDecoder
        payload_module.SymbolDecoder = Watched  # type: ignore[misc]

        tensors = load_file(DATA / "raster.safetensors")
        self.raster_coder = RangeCoder(EntropyTables.from_tensors(tensors))
        raster = StereoEntropyModel(4, 2, "raster", 1).eval()
        raster.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("tables.")})
        self.raster = raster.integer_prior()
        self.foreign = (DATA / "raster.payload").read_bytes()

        frozen = (DATA / "tiny.sicm").read_bytes()
        rng = random.Random(0)
        self.corpus = [frozen]
        for index in (0, 1, 2048, 4000, 5120):
            payload, number = self.forge(rng)
            header = frozen[:13] + struct.pack("<H", index) + frozen[15:69] + struct.pack("<I", number)
            self.corpus.append(packed(header, payload))
        self.mutations = Mutations(self)
        self.highest_peak = 0
        # Twice, so that nothing is left that is only allocated once.
        for _ in range(2):
            self.boxes = [self.decoder.decode(data).objects for data in self.corpus]
            for kind in self.mutations.kinds:
                getattr(self.mutations, kind)(random.Random(0))

    def close(self) -> None:
        """Take the observer away again."""
        self.payload_module.SymbolDecoder = self._restore  # type: ignore[misc]

    # ---------------------------------------------------------------------------------- forging

    def symbols_in(self, payload: bytes) -> list[Any]:
        """What a payload decodes to: both hyper-latents, then the symbols of each step."""
        with self.torch.inference_mode():
            net = self.decoder.model.net.entropy_model
            self.payload_module.decompress(payload, self.coder, net.integer_prior(), self.size)
        return self.watched.seen

    def symbol_hash(self, symbols: list[Any]) -> int:
        """As docs/packet.md says."""
        return zlib.crc32(b"".join(x.astype("<i2").tobytes() for x in symbols))

    def recode(self, symbols: list[Any], indices: list[Any] | None = None, coder: Any = None) -> tuple[bytes, int]:
        """Payload and hash of the symbols decoded last, or of others with their scale indices."""
        encoder = self.encoder(coder or self.coder)
        for view in (0, 1):
            encoder.hyper(view, symbols[view])
        for step, index in zip(symbols[2:], self.watched.indices if indices is None else indices, strict=True):
            encoder.latents(step, index)
        return encoder.finish(), self.symbol_hash(symbols)

    def forge(self, rng: random.Random) -> tuple[bytes, int]:
        """Payload and hash of arbitrary symbols; integers only, so that they are the same everywhere."""
        np, torch = self.np, self.torch
        numbers = np.random.default_rng(rng.getrandbits(64))
        part = rng.choice((0, 1, 10, 100))  # of each symbol's range, in percent
        extreme = part == 100 and rng.random() < 0.5

        def draw(limit: Any) -> Any:
            symbols = numbers.integers(-(limit * part // 100), limit * part // 100 + 1)
            return (np.sign(symbols) * limit if extreme else symbols).astype(np.int32)

        rows, columns = -(-self.size[0] // 4), -(-self.size[1] // 4)
        seen = [draw(np.full((self.config.hyper_channels, rows, columns), 63)) for _ in range(2)]
        indices: list[Any] = []

        def read(index: Any) -> Any:
            indices.append(index[0].astype(np.uint8))
            seen.append(draw(self.limits[indices[-1]]))
            return seen[-1][None]

        with torch.inference_mode():
            hyper = (torch.from_numpy(seen[0])[None], torch.from_numpy(seen[1])[None])
            self.decoder.model.net.entropy_model.integer_prior().decode(hyper, self.size, read)
        return self.recode(seen, indices)

    # ---------------------------------------------------------------------------------- judging

    def plausible_outcomes(self, data: bytes) -> tuple[str, ...]:
        """Which outcomes the specification leaves; a second reading of docs/packet.md, section 1."""
        if not data or data[:4] != b"SICM"[: len(data)]:
            return ("NotAPacketError",)
        if len(data) > 4 and data[4] != 1:
            return ("WrongVersionError",)
        if len(data) < OVERHEAD:
            return ("TruncatedPacketError",)
        total = OVERHEAD + struct.unpack_from("<I", data, 65)[0]
        if len(data) != total:
            return ("TruncatedPacketError",) if len(data) < total else ("DamagedPacketError",)
        if zlib.crc32(memoryview(data)[:-4]) != struct.unpack_from("<I", data, total - 4)[0]:
            return ("DamagedPacketError",)
        fingerprint, rate, width, height, crop, *network = struct.unpack_from("<Q6H", data, 5)
        numbers = struct.unpack_from("<10f", data, 25)
        if 0 in (width, height, *network) or crop >= height or not all(map(math.isfinite, numbers)):
            return ("ImplausiblePacketError",)
        if min(numbers[:2]) < 1 or max(map(abs, numbers[:4])) > 1e6 or max(map(abs, numbers)) > 1e9:
            return ("ImplausiblePacketError",)
        if fingerprint != self.decoder.model.fingerprint:
            return ("WrongModelError", "ImplausiblePacketError")  # the latter for its baseline
        if (*network, crop) != (288, 96, 20) or rate > 5120 or total - OVERHEAD > self.most:
            return ("ImplausiblePacketError",)
        return ("decoded", "SymbolMismatchError", "ImplausiblePacketError")

    def judge(self, case: Case) -> str:
        """Outcome of a packet. Whatever is neither that nor as it should be is an exception."""
        self.watched.seen, self.watched.last = [], None
        refused = ""
        try:
            result = self.decoder.decode(case.data)
            outcome = "decoded"
        except self.packet.PacketError as e:
            outcome, refused = type(e).__name__, str(e)
        require(outcome in self.plausible_outcomes(case.data), f"the specification excludes {outcome} {refused!r}")
        require(case.outcome in (None, outcome), f"expected {case.outcome}, got {outcome} {refused!r}")
        if self.watched.last is not None:
            require(sum(x.size for x in self.watched.seen) == self.count, "another number of symbols than the model's")
        try:
            fields = self.packet.inspect(case.data)
        except self.packet.PacketError as e:
            require((type(e).__name__, str(e)) == (outcome, refused), f"inspect() says {e!r}, decode() {refused!r}")
        else:
            json.dumps(fields, allow_nan=False)
            require(
                self.watched.last is not None or outcome in ("WrongModelError", "ImplausiblePacketError"),
                f"inspect() accepts what is {outcome}",
            )
        if outcome != "decoded":
            require(refused.isprintable() and 20 < len(refused) < 500, f"not a line of text: {refused!r}")
            require(outcome == "SymbolMismatchError" or self.watched.last is None, "decoded, and refused later")
            return outcome
        # Both checks hold, so this is what an encoder of these symbols would have written.
        symbols, payload = self.watched.seen, case.data[HEADER:-4]
        require(self.watched.last.at_end(), "decoded with bytes left")
        require(self.symbol_hash(symbols) == struct.unpack_from("<I", case.data, 69)[0], "decoded with a wrong hash")
        require(self.recode(symbols)[0] == payload.rstrip(b"\0"), "the symbols are not those of the payload")
        for box in result.objects:
            numbers = (*box.bbox, box.height, box.width, box.length, box.x, box.y, box.z, box.rotation_y, box.alpha)
            require(all(map(math.isfinite, numbers)) and 0.5 < box.score <= 1, f"no box: {box}")
            left, top, right, bottom = box.bbox
            require(
                0 <= left <= right < result.header.geometry.transform.source_width
                and 0 <= top <= bottom < result.header.geometry.transform.source_height
                and box.label in self.config.classes,
                f"box outside of the image: {box}",
            )
        if case.data in self.corpus:
            require(result.objects == self.boxes[self.corpus.index(case.data)], "other boxes than before")
        return outcome

    def judge_batch(self, case: Case, outcome: str) -> None:
        """In a batch a case ends as it does alone, and its neighbours' latents are bit for bit what they are alone."""
        sound = self.corpus[0]
        with self.torch.inference_mode():
            alone = self.decoder._latents([sound])[1][0]
            outcomes, latents = self.decoder._latents([sound, case.data, sound])
        refused = isinstance(outcomes[1], self.packet.PacketError)
        require((type(outcomes[1]).__name__ if refused else "decoded") == outcome, f"{outcomes[1]!r} in a batch")
        require(len(latents) == 3 - refused, f"{len(latents)} sound packets in the batch")
        for other in (latents[0], latents[-1]):
            same = all(self.torch.equal(a, b) for a, b in ((other.left, alone.left), (other.right, alone.right)))
            require(same, "a neighbour in the batch has other latents than alone")

    def judge_raster(self, case: Case) -> str:
        """Outcome of a payload of the raster model, which comes without a packet."""
        with self.torch.inference_mode():
            decoded = self.payload_module.decompress(case.data, self.raster_coder, self.raster, (5, 9))
        require(sum(x.size for x in self.watched.seen) == 2 * (4 * 45 + 2 * 6), "another number of symbols")
        for view in (decoded.left, decoded.right):
            require(view.shape == (1, 4, 5, 9) and bool(self.torch.isfinite(view).all()), "latent of a wrong shape")
        coded = self.recode(self.watched.seen, coder=self.raster_coder)[0]
        require(decoded.complete == (case.data.rstrip(b"\0") == coded), "complete, or not, by mistake")
        outcome = "decoded" if decoded.complete else "incomplete"
        require(case.outcome in (None, outcome), f"expected {case.outcome}, got {outcome}")
        return outcome

    def memory_bound(self) -> int:
        """Bytes of Python's and numpy's that a case may take at most: docs/packet.md, section 8."""
        return (64 << 10) + 512 * self.count

    def run(self, seed: int, number: int) -> tuple[str, str, str]:
        """Kind, outcome, and what was wrong with a case."""
        kind, case = self.mutations.make(seed, number)
        judge = self.judge_raster if kind == "raster_payload" else self.judge
        try:
            outcome = judge(case)
            if number % SAMPLE == 0 and judge == self.judge:
                self.judge_batch(case, outcome)
                if outcome != "decoded":
                    peak = self.peak(case.data)
                    self.highest_peak = max(peak, self.highest_peak)
                    require(peak <= self.memory_bound(), f"took {peak} bytes of memory, bound {self.memory_bound()}")
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # the entropy coder's panics are no Exceptions
            where = "" if isinstance(e, Violation) else "".join(traceback.format_exception(e))
            return kind, "FAILED", f"{type(e).__name__}: {e}\n{where}".rstrip()
        return kind, outcome, ""

    def peak(self, data: bytes) -> int:
        """Bytes of Python's and numpy's that decoding takes at its peak, beyond the packet."""
        tracemalloc.start()
        try:
            self.decoder.decode(data)
        except self.packet.PacketError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak


# ---------------------------------------------------------------------------------------------------- processes


class Shared:
    """What the child tells the parent, in shared memory, so that it is there even if the child dies."""

    IDLE = 2**64 - 1

    def __init__(self, context: Any) -> None:
        self.state = context.RawArray("Q", [self.IDLE, 0, 0])  # running case, stop, cases done
        self.counts = context.RawArray("Q", len(Mutations.WEIGHTS) * len(OUTCOMES))

    def count(self, kind: str, outcome: str) -> None:
        self.counts[list(Mutations.WEIGHTS).index(kind) * len(OUTCOMES) + OUTCOMES.index(outcome)] += 1
        self.state[2] += 1


Worker = Callable[[Shared, Connection, int, int, int], None]


def hold_memory() -> None:
    """From here on the process may grow by ``HEADROOM`` only; then an allocation fails, whoever asks for it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def work(shared: Shared, failures: Connection, seed: int, first: int, last: int) -> None:
    """The child: cases first to last - 1."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    target = Target()
    hold_memory()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, last):
        if shared.state[1] or os.getppid() != parent:
            break
        shared.state[0] = number
        kind, outcome, problem = target.run(seed, number)
        shared.count(kind, outcome)
        if problem:
            failures.send((number, kind, problem))
    shared.state[0] = Shared.IDLE
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    print(
        f"memory: at most {growth} KiB more resident than before the first case (limit of the address space: "
        f"{HEADROOM >> 10} KiB more); Python and numpy in one refused case of {SAMPLE}: at most "
        f"{target.highest_peak} bytes, bound {target.memory_bound()}",
        flush=True,
    )


def supervise(
    seed: int,
    cases: int,
    minutes: float = math.inf,
    hang_s: float = 30.0,
    worker: Worker = work,
    every_s: float = 10.0,
    first: int = 0,
) -> tuple[Shared, list[tuple[int, str, str]]]:
    """Run cases first to cases - 1 in child processes; counts, and (case, kind, what was wrong) of each that failed."""
    context = multiprocessing.get_context("spawn")
    shared, failed = Shared(context), []
    begun, todo = time.monotonic(), cases - first
    shown, running, since = begun, Shared.IDLE, begun
    while first < cases and len(failed) < MAX_FAILURES:
        receiver, sender = context.Pipe(False)
        last = min(cases, first + LIFE)
        child = context.Process(target=worker, args=(shared, sender, seed, first, last))
        child.start()
        sender.close()
        hung, running, since = False, Shared.IDLE, time.monotonic()
        while True:
            try:
                child.join(0.2)
            except KeyboardInterrupt:
                shared.state[1] = 1  # the child ends after its case, and the table is printed
            alive = child.exitcode is None
            try:
                while receiver.poll():
                    failed.append(receiver.recv())
                    _show(seed, *failed[-1])
            except EOFError:
                pass
            if not alive:
                break
            now = time.monotonic()
            if shared.state[0] != running:
                running, since = shared.state[0], now
            if now - since > (hang_s if running != Shared.IDLE else max(hang_s, 300)) and not hung:
                hung = True
                os.kill(child.pid, signal.SIGABRT)  # faulthandler then says where
            elif hung and now - since > 2 * hang_s + 5:
                child.kill()
            if now - begun > 60 * minutes or len(failed) >= MAX_FAILURES:
                shared.state[1] = 1
            if now - shown >= every_s:
                shown = now
                _progress(shared.state[2], todo, now - begun, minutes, len(failed))
        if child.exitcode == 0:
            if shared.state[1]:
                break
            first = last
            continue
        if shared.state[0] == Shared.IDLE:
            failed.append((first, "start", f"the child ended with {child.exitcode} outside of any case"))
            _show(seed, *failed[-1])
            break
        number = shared.state[0]
        failed.append(
            (
                number,
                "crash",
                f"hang: no end within {hang_s:g} s" if hung else f"crash: the process ended with {child.exitcode}",
            )
        )
        _show(seed, *failed[-1])
        first, shared.state[0] = number + 1, Shared.IDLE
        shared.state[2] += 1
    return shared, failed


def _show(seed: int, number: int, kind: str, problem: str) -> None:
    print(f"FAILED {seed}/{number} ({kind}; repeat it with --replay {seed}/{number}): {problem}", flush=True)


def _progress(done: int, cases: int, seconds: float, minutes: float, failed: int) -> None:
    rate = done / seconds
    left = min((cases - done) / max(rate, 1e-3), 60 * minutes - seconds)
    of = "" if cases == UNLIMITED else f" of {cases}"
    print(f"{done}{of} cases, {rate:.0f}/s, {left / 60:.1f} min left, {failed} failed", flush=True)


def table(counts: Any) -> str:
    """Counts by kind of mutation and outcome."""
    rows = [["mutation", *SHORT, "all"]]
    kinds, width = list(Mutations.WEIGHTS), len(OUTCOMES)
    numbers = [list(counts[i * width : (i + 1) * width]) for i in range(len(kinds))]
    for name, row in [*zip(kinds, numbers, strict=True), ("all", [sum(x) for x in zip(*numbers, strict=True)])]:
        rows.append([name, *(str(n) if n else "." for n in row), str(sum(row))])
    return "\n".join(f"{row[0]:<19}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the packet decoder on the tiny model in test/data.")
    parser.add_argument("--cases", type=int, help="how many (default: 1000000, or as many as --minutes allows)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all cases (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--hang-s", type=float, default=30.0, help="a case that takes longer hangs (%(default)s)")
    parser.add_argument("--replay", metavar="SEED/CASE", help="run one case, here, and say how it ends")
    args = parser.parse_args()
    if args.replay:
        seed, number = map(int, args.replay.split("/"))
        target = Target()
        kind, case = target.mutations.make(seed, number)
        print(f"{kind}, {len(case.data)} bytes, beginning with {case.data[:400].hex()}", flush=True)
        _, outcome, problem = target.run(seed, number)
        print(problem or outcome)
        return int(bool(problem))
    begun = time.monotonic()
    unsaid = 1_000_000 if math.isinf(args.minutes) else UNLIMITED
    cases = unsaid if args.cases is None else args.cases
    shared, failed = supervise(args.seed, args.first + cases, args.minutes, args.hang_s, first=args.first)
    seconds = time.monotonic() - begun
    print(
        f"{table(shared.counts)}\n{shared.state[2]} cases of seed {args.seed} in {seconds / 60:.1f} min, "
        f"{len(failed)} failed"
    )
    return int(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
