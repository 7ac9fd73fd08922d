# SPDX-License-Identifier: Apache-2.0
"""VVC by its reference software VTM, which the paper takes, where EncoderApp and DecoderApp are on the PATH.

Its configurations are looked for in the folder that VTM_CFG names, else beside EncoderApp: in its folder, and in
``cfg`` there and one folder above, where a build of VTM has them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from .image_codec import PAPER_QPS, CodecError, CodedViews, child_cpu_seconds, failure, ffmpeg, ffmpeg_missing
from .video import Coded, CodedLuma, size_without_parameters
from .vvc import is_vvc_parameter_set

__all__ = ["Vtm", "code_vtm_luma", "vtm_missing"]

_INTRA, _LOW_DELAY = "encoder_intra_vtm.cfg", "encoder_lowdelay_P_vtm.cfg"
_CONFIGS = {"intra": _INTRA, "inter": _LOW_DELAY}
_TITLES = {"intra": "VVC-Intra, VTM", "inter": "VVC-Inter, VTM"}
_NOTES = {
    "intra": "VVC of each view by itself (VTM, all intra)",
    "inter": "VVC, the right view predicted from the left one (VTM, low delay P)",
}


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(f"{name}Static")


def _config(name: str) -> Path | None:
    """A configuration of VTM; None where there is none."""
    if "VTM_CFG" in os.environ:
        folders = [Path(os.environ["VTM_CFG"])]
    else:
        program = _program("EncoderApp")
        beside = Path(program).resolve().parent if program else Path()
        folders = [beside, beside / "cfg", beside.parent / "cfg"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def vtm_missing() -> str:
    """Why VTM cannot run here, in one line; empty if it can."""
    if _program("EncoderApp") is None or _program("DecoderApp") is None:
        return (
            "needs VTM's EncoderApp and DecoderApp on the PATH (https://vcgit.hhi.fraunhofer.de/jvet/VVCSoftware_VTM)"
        )
    for name in _CONFIGS.values():
        if _config(name) is None:
            return f"needs VTM's {name}: set VTM_CFG to its folder"
    return ""


def _run(name: str, arguments: list[str], folder: str, result: str) -> bytes:
    """The file ``result`` that a program writes in ``folder``."""
    command = [_program(name) or name, *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    except OSError as error:
        raise CodecError(f"{name}: {error.strerror}") from None
    path = Path(folder) / result
    if done.returncode or not path.is_file() or not path.stat().st_size:
        raise failure(name, done.stderr[:300] or done.stdout[-300:])
    return path.read_bytes()


def _code(data: bytes, shape: tuple[int, int, int], bits: Literal[8, 10], config: str, qp: int) -> Coded:
    """Raw pictures, of 8 bits in 4:2:0 or of 10 in 4:0:0, through both programs. ``shape``: count, rows, columns."""
    count, height, width = shape
    path = _config(config)
    if path is None:
        raise CodecError(vtm_missing())
    begin = child_cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "input.yuv").write_bytes(data)
        command = ["-c", str(path.resolve()), "-i", "input.yuv", "-b", "output.bin", "-o", "output.yuv"]
        command += ["-wdt", str(width), "-hgt", str(height), "-q", str(qp), "-f", str(count), "-fr", "10"]
        # All pictures, where the intra configuration takes every eighth; sizes that are not a multiple of 8.
        command += ["--TemporalSubsampleRatio=1", "--ConformanceWindowMode=1"]
        command += [f"--InputBitDepth={bits}", f"--InputChromaFormat={420 if bits == 8 else 400}"]
        stream = _run("EncoderApp", command, folder, "output.bin")
        encoded = child_cpu_seconds()
        found = decode(stream, bits)
    decoded = child_cpu_seconds()
    if len(found) != len(data):
        raise CodecError(f"DecoderApp: expected pictures of {len(data)} bytes, got {len(found)}")
    sent = size_without_parameters(stream, is_vvc_parameter_set)
    return Coded(found, sent, encoded - begin, decoded - encoded)


def decode(stream: bytes, bits: Literal[8, 10]) -> bytes:
    """The raw pictures of a byte stream, of two bytes a sample above 8 bits. Raises CodecError."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "output.bin").write_bytes(stream)
        return _run("DecoderApp", ["-b", "output.bin", "-o", "decoded.yuv", "-d", str(bits)], folder, "decoded.yuv")


class Vtm:
    """See ``ImageCodec``; a point is the QP."""

    points = PAPER_QPS

    def __init__(self, mode: Literal["intra", "inter"]) -> None:
        self.name, self.title, self.note, self._mode = f"vtm-{mode}", _TITLES[mode], _NOTES[mode], mode

    def missing(self) -> str:
        """See ``ImageCodec``."""
        return vtm_missing() or ffmpeg_missing()  # ffmpeg converts colours

    def code(self, left: np.ndarray, right: np.ndarray, point: int) -> CodedViews:
        """See ``ImageCodec``."""
        height, width = left.shape[:2]
        size = ("-s", f"{width}x{height}", "-i", "-", "-f", "rawvideo", "-pix_fmt")
        rgb, yuv = (("-f", "rawvideo", "-pix_fmt", pixels) for pixels in ("rgb24", "yuv420p"))
        begin = child_cpu_seconds()
        data = ffmpeg([*rgb, *size, "yuv420p"], left.tobytes() + right.tobytes())
        converted_s = child_cpu_seconds() - begin
        coded = _code(data, (2, height, width), 8, _CONFIGS[self._mode], point)
        begin = child_cpu_seconds()
        views = np.frombuffer(ffmpeg([*yuv, *size, "rgb24"], coded.pictures), np.uint8).reshape(2, *left.shape)
        decode_s = coded.decode_s + child_cpu_seconds() - begin
        return CodedViews(views[0], views[1], coded.size, converted_s + coded.encode_s, decode_s)


def code_vtm_luma(pictures: np.ndarray, qp: int) -> CodedLuma:
    """Pictures (N, H, W) uint16 of 10 bits as intra pictures in 4:0:0. Raises CodecError."""
    count, height, width = pictures.shape
    coded = _code(pictures.astype("<u2").tobytes(), (count, height, width), 10, _INTRA, qp)
    return CodedLuma(np.frombuffer(coded.pictures, "<u2").reshape(pictures.shape), *coded[1:])
