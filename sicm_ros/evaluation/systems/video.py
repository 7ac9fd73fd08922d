# SPDX-License-Identifier: Apache-2.0
"""Pictures as a video, coded by ffmpeg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .image_codec import CodecError, CodedViews, child_cpu_seconds, ffmpeg, nal_units

__all__ = ["Coded", "CodedLuma", "VideoFormat", "code_luma", "code_pair", "picture_sizes", "size_without_parameters"]

_MIDDLE = 512  # of 10 bits: chroma without colour


@dataclass(frozen=True)
class VideoFormat:
    """What is particular to the byte streams of a video codec."""

    container: str  # ffmpeg's name of it
    is_parameter_set: Callable[[bytes], bool]  # of a unit: nothing that a picture needs for itself
    is_slice: Callable[[bytes], bool]  # of a unit: part of a picture


class CodedLuma(NamedTuple):
    """Pictures (N, H, W) uint16 of 10 bits after coding, the bytes that have to be sent for them, and CPU seconds."""

    pictures: np.ndarray
    size: int
    encode_s: float
    decode_s: float


def size_without_parameters(stream: bytes, is_parameter_set: Callable[[bytes], bool]) -> int:
    """Bytes of a stream without its parameter sets, which are sent once; three for the start code of each unit."""
    return sum(3 + len(unit) for unit in nal_units(stream) if not is_parameter_set(unit))


def picture_sizes(stream: bytes, video: VideoFormat) -> list[int]:
    """Bytes of each picture in a stream of one slice a picture, counted as ``size_without_parameters`` does.

    What stands before a slice and is no parameter set, an APS of VVC, belongs to it.
    """
    sizes, size = [], 0
    for unit in nal_units(stream):
        size += 0 if video.is_parameter_set(unit) else 3 + len(unit)
        if video.is_slice(unit):
            sizes.append(size)
            size = 0
    if size:
        raise CodecError(f"{video.container}: expected a picture at the end of the stream, got {size} other bytes")
    return sizes


class Coded(NamedTuple):
    """Raw pictures after coding, the bytes that have to be sent for them, and CPU seconds."""

    pictures: bytes
    size: int
    encode_s: float
    decode_s: float


def _code(pictures: bytes, pixels: str, size: tuple[int, int], encoder: Sequence[str], video: VideoFormat) -> Coded:
    """Raw pictures through an encoder and a decoder; CPU times include the start of a program at each end, 0.01 s."""
    raw = ("-f", "rawvideo", "-pix_fmt", pixels)
    name = f"{size[0]}x{size[1]}"
    begin = child_cpu_seconds()
    stream = ffmpeg(
        [*raw, "-s", name, "-r", "10", "-i", "-", *encoder, "-threads", "1", "-f", video.container], pictures
    )
    encoded = child_cpu_seconds()
    found = ffmpeg(["-f", video.container, "-i", "-", *raw], stream)
    decoded = child_cpu_seconds()
    if len(found) != len(pictures):
        raise CodecError(f"{video.container}: pictures of {name}: expected {len(pictures)} bytes, got {len(found)}")
    sent = size_without_parameters(stream, video.is_parameter_set)
    return Coded(found, sent, encoded - begin, decoded - encoded)


def code_pair(left: np.ndarray, right: np.ndarray, encoder: Sequence[str], video: VideoFormat) -> CodedViews:
    """Both views (H, W, 3) uint8 RGB through ffmpeg, the left view first. ``encoder``: its arguments, which say 4:2:0.

    Parameter sets are not counted: they are sent once for all pairs. Raises CodecError.
    """
    size = left.shape[1], left.shape[0]
    coded = _code(left.tobytes() + right.tobytes(), "rgb24", size, encoder, video)
    views = np.frombuffer(coded.pictures, np.uint8).reshape(2, *left.shape)
    return CodedViews(views[0], views[1], *coded[1:])


def code_luma(pictures: np.ndarray, encoder: Sequence[str], video: VideoFormat, gray: bool) -> CodedLuma:
    """Pictures (N, H, W) uint16 of 10 bits, H and W even, through ffmpeg. ``encoder``: its arguments.

    ``gray``: 4:0:0, where the encoder takes it; else 4:2:0 with constant chroma. Parameter sets are not counted.
    Raises CodecError.
    """
    count, height, width = pictures.shape
    if not gray:
        chroma = np.full((count, height // 2, width), _MIDDLE, pictures.dtype)
        pictures = np.concatenate([pictures, chroma], 1)
    pixels = "gray10le" if gray else "yuv420p10le"
    data = pictures.astype("<u2").tobytes()
    coded = _code(data, pixels, (width, height), (*encoder, "-pix_fmt", pixels), video)
    found = np.frombuffer(coded.pictures, "<u2").reshape(pictures.shape)[:, :height].astype(np.uint16)
    return CodedLuma(found, *coded[1:])
