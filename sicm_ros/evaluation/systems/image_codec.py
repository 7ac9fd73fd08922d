# SPDX-License-Identifier: Apache-2.0
"""What an image codec is to the comparison, and programs that code images."""

from __future__ import annotations

import resource
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from typing import IO, NamedTuple, Protocol

import numpy as np

__all__ = [
    "CodecError",
    "CodedViews",
    "ImageCodec",
    "child_cpu_seconds",
    "failure",
    "ffmpeg",
    "ffmpeg_command",
    "ffmpeg_missing",
    "nal_units",
]

PAPER_QPS = (47, 42, 37, 32, 27, 22)  # from few bytes to many


class CodecError(ValueError):
    """An image codec that failed; one line."""


class CodedViews(NamedTuple):
    """Both views (H, W, 3) uint8 RGB after coding, the bytes that have to be sent for them, and CPU seconds."""

    left: np.ndarray
    right: np.ndarray
    size: int
    encode_s: float
    decode_s: float


class ImageCodec(Protocol):
    """A codec of stereo images."""

    @property
    def name(self) -> str:
        """Its name in commands."""

    @property
    def title(self) -> str:
        """Its name in tables and figures."""

    @property
    def note(self) -> str:
        """What it stands for."""

    @property
    def points(self) -> Sequence[int]:
        """Its qualities, from few bytes to many."""

    def missing(self) -> str:
        """Why it cannot run here, in one line; empty if it can."""

    def code(self, left: np.ndarray, right: np.ndarray, point: int) -> CodedViews:
        """Code and decode both views, (H, W, 3) uint8 RGB. Raises CodecError."""


def ffmpeg_missing() -> str:
    """Why there is no ffmpeg, or nothing."""
    try:
        encoders = _encoders()
    except (ImportError, RuntimeError, OSError):
        encoders = ""
    if "libx265" in encoders and "libvvenc" in encoders:
        return ""
    return "needs ffmpeg with libx265 and libvvenc: pip install -r requirements/evaluate.txt"


def _program() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


@cache
def _encoders() -> str:
    return subprocess.run([_program(), "-v", "error", "-encoders"], capture_output=True, text=True, check=False).stdout


def ffmpeg_command(arguments: Sequence[str], output: IO[bytes]) -> list[str]:
    """ffmpeg on one thread, which writes to an open file; the process has to be given its number (``pass_fds``).

    Not to the standard output: VVenC prints warnings there, which would count as bytes of the stream.
    """
    return [_program(), "-v", "error", "-threads", "1", *arguments, f"pipe:{output.fileno()}"]


def failure(what: str, said: bytes) -> CodecError:
    """What a program said, in one line."""
    words = " ".join(said.decode(errors="replace").split())
    return CodecError(f"{what}: {words[:300] or 'gave nothing'}")


def ffmpeg(arguments: Sequence[str], data: bytes) -> bytes:
    """What ffmpeg writes for ``data``, on one thread. Raises CodecError."""
    with tempfile.TemporaryFile() as output:
        command = ffmpeg_command(arguments, output)
        done = subprocess.run(command, input=data, capture_output=True, check=False, pass_fds=(output.fileno(),))
        output.seek(0)
        result = output.read()
    if done.returncode or not result:
        raise failure(f"ffmpeg {' '.join(arguments)}", done.stderr)
    return result


def child_cpu_seconds() -> float:
    """CPU time of all programs that this process has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def nal_units(stream: bytes) -> list[bytes]:
    """The units of a byte stream of H.265 or H.266, without start codes."""
    parts = stream.split(b"\0\0\1")[1:]
    return [part.rstrip(b"\0") for part in parts]
