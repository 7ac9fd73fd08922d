# SPDX-License-Identifier: Apache-2.0
"""A stereo pair as a video of two pictures, coded by ffmpeg."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .image_codec import CodecError, CodedViews, child_cpu_seconds, ffmpeg, nal_units

__all__ = ["code_pair"]


def code_pair(
    left: np.ndarray,
    right: np.ndarray,
    encoder: Sequence[str],
    container: str,
    is_parameter_set: Callable[[bytes], bool],
) -> CodedViews:
    """Both views (H, W, 3) uint8 RGB through ffmpeg: 4:2:0, the left view first.

    ``encoder``: ffmpeg's arguments; ``container``: hevc or vvc. Parameter sets are not counted: they are sent once for
    all pairs. CPU times include the start of a program at each end, some 0.01 s. Raises CodecError.
    """
    height, width = left.shape[:2]
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24")
    begin = child_cpu_seconds()
    stream = ffmpeg(
        [*raw, "-s", f"{width}x{height}", "-r", "10", "-i", "-", *encoder, "-threads", "1", "-f", container],
        left.tobytes() + right.tobytes(),
    )
    encoded = child_cpu_seconds()
    pixels = ffmpeg(["-f", container, "-i", "-", *raw], stream)
    decoded = child_cpu_seconds()
    views = np.frombuffer(pixels, np.uint8)
    if views.size != 2 * left.size:
        raise CodecError(f"{container}: expected two pictures of {width}x{height}, got {views.size} bytes")
    # Three bytes of a start code before each unit.
    size = sum(3 + len(unit) for unit in nal_units(stream) if not is_parameter_set(unit))
    found = views.reshape(2, *left.shape)
    return CodedViews(found[0], found[1], size, encoded - begin, decoded - encoded)
