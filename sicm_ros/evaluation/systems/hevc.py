# SPDX-License-Identifier: Apache-2.0
"""HEVC by x265."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .image_codec import PAPER_QPS, CodedViews, ffmpeg_missing
from .video import code_pair

__all__ = ["Hevc"]

# keyint: distance of intra pictures; ratios of 1: both pictures at one QP.
_COMMON = "info=0:log-level=none:ipratio=1:pbratio=1:bframes=0:frame-threads=1:pools=none"
_MODES = {"intra": "keyint=1", "inter": "keyint=-1:scenecut=0"}
_TITLES = {"intra": "HEVC-Intra", "inter": "HEVC-Inter, one QP"}
_NOTES = {
    "intra": "HEVC of each view by itself (x265, preset medium)",
    "inter": "HEVC, the right view predicted from the left one, both at one QP (x265, preset medium)",
}


class Hevc:
    """See ``ImageCodec``; a point is the QP."""

    points = PAPER_QPS

    def __init__(self, mode: Literal["intra", "inter"]) -> None:
        self.name, self.title, self.note, self._mode = f"hevc-{mode}", _TITLES[mode], _NOTES[mode], mode

    def missing(self) -> str:
        """See ``ImageCodec``."""
        return ffmpeg_missing()

    def code(self, left: np.ndarray, right: np.ndarray, point: int) -> CodedViews:
        """See ``ImageCodec``."""
        parameters = f"qp={point}:{_MODES[self._mode]}:{_COMMON}"
        encoder = ("-c:v", "libx265", "-preset", "medium", "-pix_fmt", "yuv420p", "-x265-params", parameters)
        return code_pair(left, right, encoder, "hevc", _is_parameter_set)


def _is_parameter_set(unit: bytes) -> bool:
    # VPS, SPS, PPS, access unit delimiter, SEI before and after a picture
    return (unit[0] >> 1) & 63 in (32, 33, 34, 35, 39, 40)
