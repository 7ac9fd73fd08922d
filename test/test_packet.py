# SPDX-License-Identifier: Apache-2.0
"""The packet against cuts, flips and forgeries: a typed error of one line, never anything else."""

import json
import struct
import zlib
from dataclasses import replace

import pytest
from codec_material import DATA, RIG, TINY_MODEL
from hypothesis import given, settings
from hypothesis import strategies as st

from sicm_ros.codec import packet
from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.packet import (
    DamagedPacketError,
    ImplausiblePacketError,
    NotAPacketError,
    PacketError,
    SymbolMismatchError,
    TruncatedPacketError,
    WrongModelError,
    WrongVersionError,
    inspect,
    pack,
    rate_index,
    read_header,
    unpack,
)
from sicm_ros.geometry import GeometryError, InputTransform

GOOD = (DATA / "tiny.sicm").read_bytes()
DECODER = StereoDecoder(TINY_MODEL)


def with_crc(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def forged(offset: int, fmt: str, *values: float) -> bytes:
    """The stored packet with other values at an offset, and a CRC that fits."""
    body = bytearray(GOOD[:-4])
    struct.pack_into("<" + fmt, body, offset, *values)
    return with_crc(bytes(body))


def refused(data: bytes, kind: type[PacketError], match: str) -> None:
    with pytest.raises(kind, match=match) as error:
        DECODER.decode(data)
    assert type(error.value) is kind and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"fx": 2e6},
        {"fy": 1e-3},
        {"cx": -2e6},
        {"fx": 1e300, "left_translation": (0.0, 0.0, 0.0), "right_translation": (-1e300, 0.0, 0.0)},
        {"right_translation": (-2e9, 0.0, 0.0)},
        {"right_translation": (-1e7, 0.0, 0.0)},
        {"left_translation": (1e8, 0.0, 0.0), "right_translation": (1e8 - 1, 0.0, 0.0)},
    ],
)
def test_no_packet_is_written_that_would_be_refused(changes):
    rig = replace(RIG, **changes)
    with pytest.raises(GeometryError, match="^calibration: ") as error:
        pack(1, 0, InputTransform(1242, 375, 100, 640, 144), rig, b"payload", 2)
    assert "\n" not in str(error.value)


def test_round_trip_and_overhead() -> None:
    transform = InputTransform(1242, 375, 100, 640, 144)
    data = pack(0xFEDCBA9876543210, rate_index(2.5), transform, RIG, b"payload", 0xDEADBEEF)
    header, payload = unpack(data)
    assert packet.OVERHEAD == 77 <= 80 and len(data) == 77 + 7
    assert payload == b"payload" and header.rate == 2.5 and header.geometry.transform == transform
    assert (header.fingerprint, header.symbol_hash) == (0xFEDCBA9876543210, 0xDEADBEEF)
    assert header.geometry.camera_rig.p_right[0, 3] == pytest.approx(RIG.p_right[0, 3], rel=1e-7)
    assert header.geometry.camera_rig.baseline == pytest.approx(RIG.baseline, rel=1e-6)
    # The network's input has one rig, computed once for all packets of a camera.
    assert header.geometry.rig == transform.rig(header.geometry.camera_rig)
    again = read_header(pack(1, 0, transform, RIG, b"another", 2))
    assert again.geometry is header.geometry
    other = read_header(pack(1, 0, transform, replace(RIG, cy=RIG.cy + 1), b"another", 2))
    assert other.geometry.rig.cy == pytest.approx(header.geometry.rig.cy + transform.scale)
    fields = inspect(data)
    assert fields["packet_bytes"] == 84 and fields["fingerprint"] == "fedcba9876543210"
    assert fields["source_size"] == [1242, 375] and json.loads(json.dumps(fields)) == fields
    assert rate_index(1000.0) == 0xFFFF and rate_index(-1.0) == 0


def test_bytes_are_where_the_specification_says() -> None:
    assert GOOD[:5] == b"SICM\x01"
    assert struct.unpack_from("<Q", GOOD, 5)[0] == DECODER.model.fingerprint
    assert struct.unpack_from("<6H", GOOD, 13) == (3328, 1242, 375, 20, 288, 96)
    assert struct.unpack_from("<4f", GOOD, 25) == pytest.approx((RIG.fx, RIG.fy, RIG.cx, RIG.cy))
    assert struct.unpack_from("<6f", GOOD, 41) == pytest.approx((*RIG.left_translation, *RIG.right_translation))
    assert struct.unpack_from("<I", GOOD, 65)[0] == len(GOOD) - 77
    assert struct.unpack_from("<I", GOOD, len(GOOD) - 4)[0] == zlib.crc32(GOOD[:-4])


def test_images_too_large_for_the_fields() -> None:
    with pytest.raises(GeometryError, match="65535"):
        pack(0, 0, InputTransform(70000, 375, 100, 640, 144), RIG, b"", 0)


def test_not_a_packet() -> None:
    for data in (b"", b"x", b"SIXM" + GOOD[4:], b"\x89PNG\r\n\x1a\n" * 20):
        refused(data, NotAPacketError, "not a packet: expected it to start with")


def test_every_cut_is_noticed() -> None:
    for length in range(1, len(GOOD)):
        refused(GOOD[:length], TruncatedPacketError, f"cut off: expected .* got {length}$")


def test_longer_than_it_says() -> None:
    refused(GOOD + b"\0", DamagedPacketError, f"expected {len(GOOD)} bytes, got {len(GOOD) + 1}")


def test_other_version() -> None:
    refused(forged(4, "B", 2), WrongVersionError, "packet version: expected 1, got 2")


def test_every_flipped_bit_is_noticed() -> None:
    for position in range(len(GOOD)):
        for bit in (0, 7):
            data = bytearray(GOOD)
            data[position] ^= 1 << bit
            with pytest.raises(PacketError):
                DECODER.decode(bytes(data))


def test_other_model() -> None:
    refused(forged(5, "Q", 1), WrongModelError, r"expected fingerprint \w{16} \(tiny\), got 0000000000000001")


@pytest.mark.parametrize(
    "offset, fmt, values, match",
    [
        (13, "H", (5 * 1024 + 1,), "packet rate: expected 0 to 5, got 5.0"),
        (15, "H", (0,), "packet geometry: expected positive sizes"),
        (19, "H", (375,), "packet geometry: expected positive sizes and crop_top < source_height"),
        (19, "H", (21,), r"packet geometry: expected network size and crop \(288, 96, 20\), got \(288, 96, 21\)"),
        (21, "H", (65535,), "packet geometry: expected network size"),
        (25, "f", (float("nan"),), "packet rig: every value must be finite"),
        (25, "f", (-700.0,), "packet rig: focal lengths must be positive"),
        (25, "f", (1e-30,), "packet rig: "),
        (33, "f", (3e38,), "packet rig: "),
        (53, "f", (339.0,), "packet rig: baseline .* must be positive"),
        (53, "f", (-3e38,), "packet rig: expected focal lengths"),
    ],
)
def test_implausible_fields(offset: int, fmt: str, values: tuple[float, ...], match: str) -> None:
    refused(forged(offset, fmt, *values), ImplausiblePacketError, match)


def test_implausible_payload() -> None:
    payload = bytes(10_000)
    body = bytearray(GOOD[:73])
    struct.pack_into("<I", body, 65, len(payload))
    refused(
        with_crc(bytes(body) + payload), ImplausiblePacketError, "packet payload: expected at most 692 bytes, got 10000"
    )


def test_forged_symbols() -> None:
    refused(forged(69, "I", 0), SymbolMismatchError, "packet symbols: expected hash 00000000")
    for position in range(73, len(GOOD) - 4, 5):
        refused(
            forged(position, "B", GOOD[position] ^ 0x55),
            SymbolMismatchError,
            "both ends computed different|expected a payload that ends with them",
        )
    # The same symbols, and something after them.
    body = bytearray(GOOD[:-4] + b"\x01\x02\x03\x04")
    struct.pack_into("<I", body, 65, len(body) - 73)
    refused(with_crc(bytes(body)), SymbolMismatchError, "packet symbols")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_payload_gives_a_typed_error(payload: bytes) -> None:
    body = bytearray(GOOD[:73] + payload)
    struct.pack_into("<I", body, 65, len(payload))
    with pytest.raises(PacketError):
        DECODER.decode(with_crc(bytes(body)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_forged_header_gives_boxes_or_a_typed_error(data: st.DataObject) -> None:
    body = bytearray(GOOD[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(13, 72))
        chunk = data.draw(st.binary(min_size=1, max_size=8))
        body[start : start + len(chunk)] = chunk
    try:
        decoded = DECODER.decode(with_crc(bytes(body)))
    except PacketError as e:
        assert "\n" not in str(e)
    else:
        assert all(abs(o.z) < 1e9 for o in decoded.objects)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic(data: bytes) -> None:
    with pytest.raises(PacketError):
        unpack(b"SICM" + data)
