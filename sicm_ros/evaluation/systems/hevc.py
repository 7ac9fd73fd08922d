# SPDX-License-Identifier: Apache-2.0
"""HEVC by x265."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .image_codec import PAPER_QPS, CodedViews, ffmpeg_missing
from .video import CodedLuma, VideoFormat, code_luma, code_pair

__all__ = ["HEVC", "Hevc", "code_hevc_luma", "hevc_drive_encoder"]

# keyint: distance of intra pictures; ratios of 1: all pictures at one QP; no preference of what pleases eyes.
_COMMON = "info=0:log-level=none:ipratio=1:pbratio=1:bframes=0:frame-threads=1:pools=none:psy-rd=0:psy-rdoq=0"
_MODES = {"intra": "keyint=1", "inter": "keyint=-1:scenecut=0"}
_TITLES = {"intra": "HEVC-Intra", "inter": "HEVC-Inter, one QP"}
_NOTES = {
    "intra": "HEVC of each view by itself (x265, preset medium)",
    "inter": "HEVC, the right view predicted from the left one, both at one QP (x265, preset medium)",
}


def _is_parameter_set(unit: bytes) -> bool:
    # VPS, SPS, PPS, access unit delimiter, SEI before and after a picture
    return (unit[0] >> 1) & 63 in (32, 33, 34, 35, 39, 40)


HEVC = VideoFormat("hevc", _is_parameter_set, lambda unit: (unit[0] >> 1) & 63 < 32)


def _encoder(mode: Literal["intra", "inter"], qp: int) -> tuple[str, ...]:
    return "-c:v", "libx265", "-preset", "medium", "-x265-params", f"qp={qp}:{_MODES[mode]}:{_COMMON}"


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
        return code_pair(left, right, (*_encoder(self._mode, point), "-pix_fmt", "yuv420p"), HEVC)


def code_hevc_luma(pictures: np.ndarray, qp: int) -> CodedLuma:
    """Pictures (N, H, W) uint16 of 10 bits as intra pictures. Raises CodecError."""
    return code_luma(pictures, _encoder("intra", qp), HEVC, gray=True)


def hevc_drive_encoder(qp: int) -> tuple[str, ...]:
    """ffmpeg's arguments for one view of a drive: an intra picture, then pictures from those before, none held back."""
    return *_encoder("inter", qp), "-tune", "zerolatency", "-pix_fmt", "yuv420p"
