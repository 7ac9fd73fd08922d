# SPDX-License-Identifier: Apache-2.0
"""The packet: one coded stereo pair as self-describing bytes. ``docs/packet.md`` specifies it byte by byte."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

from ..geometry import GeometryError, InputGeometry, InputTransform, StereoRig, input_transform
from ..networks.config import PACKET_VERSION as VERSION

__all__ = [
    "DamagedPacketError",
    "ImplausiblePacketError",
    "MAGIC",
    "NotAPacketError",
    "OVERHEAD",
    "PacketError",
    "PacketHeader",
    "RATE_STEPS",
    "SymbolMismatchError",
    "TruncatedPacketError",
    "VERSION",
    "WrongModelError",
    "WrongVersionError",
    "bits_per_pixel",
    "inspect",
    "pack",
    "payload_of",
    "rate_index",
    "read_header",
    "unpack",
]

MAGIC = b"SICM"
RATE_STEPS = 1024  # a rate travels as this many steps from one trained rate to the next
# magic, version, fingerprint, rate, geometry, payload bytes, hash
_HEADER = struct.Struct("<4sBQH50sII")
# source width and height, crop, network width and height, rig
_GEOMETRY = struct.Struct("<5H10f")
_CRC = struct.Struct("<I")
OVERHEAD = _HEADER.size + _CRC.size


class PacketError(ValueError):
    """Bytes that cannot be decoded. Subclasses say why; the message is one line."""


class NotAPacketError(PacketError):
    """The bytes do not start like a packet."""


class TruncatedPacketError(PacketError):
    """Bytes are missing at the end."""


class DamagedPacketError(PacketError):
    """The check sum is wrong, or there are more bytes than the packet says."""


class WrongVersionError(PacketError):
    """A packet of another version of the format."""


class WrongModelError(PacketError):
    """A packet that was coded with other weights."""


class ImplausiblePacketError(PacketError):
    """A field has a value that no encoder of this model writes."""


class SymbolMismatchError(PacketError):
    """The decoded symbols differ from the coded ones: the two sides computed different probabilities."""


def rate_index(rate: float) -> int:
    """The 16-bit number that stands for ``rate`` in a packet."""
    return min(max(round(rate * RATE_STEPS), 0), 0xFFFF)


@dataclass(frozen=True)
class PacketHeader:
    """The fields of a packet. Packets of one camera share one ``geometry``; for ``symbol_hash`` see ``payload.py``."""

    fingerprint: int
    rate_index: int
    geometry: InputGeometry
    payload_bytes: int
    symbol_hash: int
    version: int = VERSION

    @property
    def rate(self) -> float:
        """The rate as the codec takes it: 0 for the fewest bits, 1 for the next trained rate, ..."""
        return self.rate_index / RATE_STEPS


def pack(
    fingerprint: int, rate: int, transform: InputTransform, rig: StereoRig, payload: bytes, symbol_hash: int
) -> bytes:
    """The packet. ``rate`` is a ``rate_index``, ``rig`` the camera images'.

    Raises GeometryError where a size needs more than 16 bits, or ``read_header`` would refuse the rig.
    """
    sizes = (transform.source_width, transform.source_height, transform.crop_top, transform.width, transform.height)
    if max(sizes) > 0xFFFF:
        raise GeometryError(f"image size: expected at most 65535 x 65535, got {sizes[0]} x {sizes[1]}")
    numbers = (rig.fx, rig.fy, rig.cx, rig.cy, *rig.left_translation, *rig.right_translation)
    try:
        geometry = _GEOMETRY.pack(*sizes, *numbers)
        _geometry(geometry)
    except OverflowError:
        raise GeometryError(f"calibration: expected numbers of 32-bit floats, got {rig}") from None
    except ImplausiblePacketError as error:
        raise GeometryError(f"calibration: no packet can hold it: {error}") from None
    body = _HEADER.pack(MAGIC, VERSION, fingerprint, rate, geometry, len(payload), symbol_hash) + payload
    return body + _CRC.pack(zlib.crc32(body))


def read_header(data: bytes) -> PacketHeader:
    """The header of a packet whose length, CRC and fields are valid. Raises a PacketError; does not copy the packet."""
    view = memoryview(data).cast("B")
    start = bytes(view[: len(MAGIC)])
    if start != MAGIC[: len(start)] or not start:
        raise NotAPacketError(f"not a packet: expected it to start with {MAGIC!r}, got {start!r}")
    if len(view) > len(MAGIC) and view[len(MAGIC)] != VERSION:
        raise WrongVersionError(f"packet version: expected {VERSION}, got {view[len(MAGIC)]}")
    if len(view) < OVERHEAD:
        raise TruncatedPacketError(f"packet cut off: expected at least {OVERHEAD} bytes, got {len(view)}")
    _, version, fingerprint, rate, geometry, payload_bytes, symbol_hash = _HEADER.unpack_from(view)
    total = OVERHEAD + payload_bytes
    if len(view) < total:
        raise TruncatedPacketError(f"packet cut off: expected {total} bytes, got {len(view)}")
    if len(view) > total:
        raise DamagedPacketError(f"packet damaged: expected {total} bytes, got {len(view)}")
    expected, got = _CRC.unpack_from(view, total - _CRC.size)[0], zlib.crc32(view[: total - _CRC.size])
    if expected != got:
        raise DamagedPacketError(f"packet damaged: expected CRC-32 {expected:08x}, got {got:08x}")
    # From here on the bytes are what somebody wrote; that may still be nonsense.
    return PacketHeader(fingerprint, rate, _geometry(geometry), payload_bytes, symbol_hash, version)


@lru_cache(maxsize=64)
def _geometry(field: bytes) -> InputGeometry:
    """The geometry that a header's bytes describe; of a stream of packets, read once. Raises ImplausiblePacketError."""
    source_width, source_height, crop_top, width, height, *numbers = _GEOMETRY.unpack(field)
    if min(source_width, source_height, width, height) == 0 or crop_top >= source_height:
        raise ImplausiblePacketError(
            f"packet geometry: expected positive sizes and crop_top < source_height, got "
            f"source {source_width}x{source_height}, crop_top {crop_top}, network "
            f"{width}x{height}"
        )
    try:
        rig = StereoRig(
            numbers[0],
            numbers[1],
            numbers[2],
            numbers[3],
            (numbers[4], numbers[5], numbers[6]),
            (numbers[7], numbers[8], numbers[9]),
        )
    except GeometryError as e:
        raise ImplausiblePacketError(f"packet {e}") from None
    # Wide bounds, that keep every number computed from them finite.
    if not (
        1 <= min(rig.fx, rig.fy)
        and max(rig.fx, rig.fy, abs(rig.cx), abs(rig.cy)) <= 1e6
        and rig.baseline <= 1e3
        and max(map(abs, (*rig.left_translation, *rig.right_translation))) <= 1e9
    ):
        raise ImplausiblePacketError(
            f"packet rig: expected focal lengths of 1 to 1e6 pixels and a baseline below 1 km, got {rig}"
        )
    try:
        # Huge translations that nearly cancel leave a baseline of rounding errors, which may turn negative.
        return InputGeometry(input_transform(source_width, source_height, crop_top, width, height), rig)
    except GeometryError as e:
        raise ImplausiblePacketError(f"packet rig, scaled to the network's input: {e}") from None


def bits_per_pixel(packet_bytes: int, width: int, height: int) -> float:
    """Bits of a whole packet for each pixel of both camera images, ``width`` x ``height`` each."""
    return 8 * packet_bytes / (2 * width * height)


def payload_of(data: bytes) -> bytes:
    """The payload of a packet that ``read_header`` has accepted."""
    return bytes(memoryview(data).cast("B")[_HEADER.size : -_CRC.size])


def unpack(data: bytes) -> tuple[PacketHeader, bytes]:
    """Header and payload. Raises a PacketError; allocates no more than ``data`` itself."""
    return read_header(data), payload_of(data)


def inspect(data: bytes) -> dict[str, object]:
    """A packet's fields by name, in the order of ``docs/packet.md``. Raises a PacketError."""
    header = read_header(data)
    rig, transform = header.geometry.camera_rig, header.geometry.transform
    source_width, source_height = transform.source_width, transform.source_height
    return {
        "version": header.version,
        "fingerprint": f"{header.fingerprint:016x}",
        "rate": header.rate,
        "source_size": [source_width, source_height],
        "crop_top": transform.crop_top,
        "network_size": [transform.width, transform.height],
        "scale": [transform.scaled_width / source_width, transform.scale],
        "fx": rig.fx,
        "fy": rig.fy,
        "cx": rig.cx,
        "cy": rig.cy,
        "left_translation": list(rig.left_translation),
        "right_translation": list(rig.right_translation),
        "baseline_m": rig.baseline,
        "payload_bytes": header.payload_bytes,
        "symbol_hash": f"{header.symbol_hash:08x}",
        "packet_bytes": len(data),
        "bits_per_pixel": bits_per_pixel(len(data), source_width, source_height),
    }
