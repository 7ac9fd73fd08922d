# SPDX-License-Identifier: Apache-2.0
"""VVC by VVenC, the paper's anchors: each view by itself, or the right view predicted from the left one."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from .image_codec import PAPER_QPS, CodedViews, ffmpeg_missing
from .video import CodedLuma, VideoFormat, code_luma, code_pair

__all__ = ["VVC", "Vvc", "code_vvc_luma", "is_vvc_parameter_set", "vvc_drive_encoder"]

Mode: TypeAlias = Literal["intra", "inter", "inter-one-qp"]

# Low delay: pictures in their order, one intra picture at the start.
_LOW_DELAY = "PicReordering=0:DecodingRefreshType=none:POC0IDR=1:IntraPeriod=-1:IntraQPOffset=0"
# A P picture without an offset of its QP, predicted from the picture before.
_ONE_QP = "Frame1=P 1 0 0.0 0.0 0 0 1.0 0 0 0 0 0 0 0 1 1 1 0 0"
# The temporal filter would smooth each view with the other one, as if both were moments of one camera.
_NO_FILTER = "MCTF=0:BIM=0"
_PARAMETERS = {
    "intra": f"IntraPeriod=1:IntraQPOffset=0:{_NO_FILTER}",
    # The right view's QP is larger, as VVenC's low-delay configuration has it.
    "inter": f"{_LOW_DELAY}:GOPSize=8:{_NO_FILTER}",
    "inter-one-qp": f"{_LOW_DELAY}:GOPSize=1:{_ONE_QP}:{_NO_FILTER}",
}
_TITLES = {"intra": "VVC-Intra", "inter": "VVC-Inter", "inter-one-qp": "VVC-Inter, one QP"}
_NOTES = {
    "intra": "VVC of each view by itself (VVenC, preset fast)",
    "inter": "VVC, the right view predicted from the left one, with low-delay QP offsets (VVenC, preset fast)",
    "inter-one-qp": "VVC, the right view predicted from the left one, both at one QP (VVenC, preset fast)",
}


def is_vvc_parameter_set(unit: bytes) -> bool:
    """Whether no picture needs this unit of a byte stream for itself."""
    # VPS, SPS, PPS, access unit delimiter, SEI before and after a picture; but not APS, which a picture has for itself
    return unit[1] >> 3 in (14, 15, 16, 20, 23, 24)


VVC = VideoFormat("vvc", is_vvc_parameter_set, lambda unit: unit[1] >> 3 < 12)


def _encoder(qp: int, parameters: str) -> tuple[str, ...]:
    # VVenC's perceptual adaptation of the QP is off: a detector has no eyes.
    return "-c:v", "libvvenc", "-preset", "fast", "-qp", str(qp), "-qpa", "0", "-vvenc-params", parameters


class Vvc:
    """See ``ImageCodec``; a point is the QP."""

    points = PAPER_QPS

    def __init__(self, mode: Mode) -> None:
        self.name, self.title, self.note, self._mode = f"vvc-{mode}", _TITLES[mode], _NOTES[mode], mode

    def missing(self) -> str:
        """See ``ImageCodec``."""
        return ffmpeg_missing()

    def code(self, left: np.ndarray, right: np.ndarray, point: int) -> CodedViews:
        """See ``ImageCodec``."""
        encoder = (*_encoder(point, _PARAMETERS[self._mode]), "-pix_fmt", "yuv420p10le")
        return code_pair(left, right, encoder, VVC)


def code_vvc_luma(pictures: np.ndarray, qp: int) -> CodedLuma:
    """Pictures (N, H, W) uint16 of 10 bits as intra pictures. Raises CodecError."""
    return code_luma(pictures, _encoder(qp, _PARAMETERS["intra"]), VVC, gray=False)


def vvc_drive_encoder(qp: int) -> tuple[str, ...]:
    """ffmpeg's arguments for one view of a drive: an intra picture, then pictures from those before.

    Nothing looks ahead: neither the temporal filter, nor the weights of blocks by their use in later pictures.
    """
    parameters = f"{_PARAMETERS['inter']}:LookAhead=0:MCTF=0:BIM=0"
    return *_encoder(qp, parameters), "-pix_fmt", "yuv420p10le"
