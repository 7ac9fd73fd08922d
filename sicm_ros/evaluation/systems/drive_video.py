# SPDX-License-Identifier: Apache-2.0
"""Each view of a drive as a video of low delay, with the uncompressed detector behind it.

A picture is predicted from those before it, which no camera has to wait for. The encoder gets a whole drive at once all
the same, since ffmpeg hands pictures over late; a test shows that what comes later changes no byte.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO

import numpy as np

from ...codec.detector import StereoDetector
from ...data.source import StereoFrame
from ...geometry import InputGeometry
from ...model_store import StoredModel
from ...preprocessing import resize_view
from .hevc import HEVC, hevc_drive_encoder
from .image_codec import PAPER_QPS, CodecError, child_cpu_seconds, failure, ffmpeg_command, ffmpeg_missing
from .system import Outcome, SystemKind
from .uncompressed import detector_complexity
from .video import VideoFormat, picture_sizes
from .vvc import VVC, vvc_drive_encoder

__all__ = ["DRIVE_KINDS", "DriveVideo"]

Encoder = Callable[[int], tuple[str, ...]]  # ffmpeg's arguments for a QP


class DriveVideo:
    """See ``SequenceSystem``; a point is the QP. Images are coded at the network's input size.

    Decoded images are kept in temporary files, as large as the network's input of the whole drive.
    """

    points, weights = tuple(float(qp) for qp in PAPER_QPS), ""

    def __init__(self, encoder: Encoder, video: VideoFormat, model: StoredModel, score_threshold: float) -> None:
        self.complexity = detector_complexity(model)
        self._encoder, self._video, self._model = encoder, video, model
        self._detector = StereoDetector(model, score_threshold=score_threshold)
        self._shape = model.config.height, model.config.width, 3
        self._point, self._index = -1.0, dict[str, int]()
        self._encode_s = self._decode_s = 0.0  # of a pair, on average
        self._sizes: list[list[int]] = []
        self._pictures: list[IO[bytes]] = []

    def prepare(self, frames: Iterable[StereoFrame], point: float) -> None:
        """See ``SequenceSystem``."""
        for file in self._pictures:
            file.close()
        self._pictures, self._sizes, self._index, self._point = [], [], {}, point
        streams, names = self._encode(frames, int(point))
        begin = child_cpu_seconds()
        for stream in streams:
            with stream:
                sizes = picture_sizes(stream.read(), self._video)
                if len(sizes) != len(names):
                    raise CodecError(f"{self._video.container}: expected {len(names)} pictures, got {len(sizes)}")
                self._sizes.append(sizes)
                self._pictures.append(decode(stream, self._video, len(names), self._shape))
        self._decode_s = (child_cpu_seconds() - begin) / len(names)
        self._index = {name: i for i, name in enumerate(names)}

    def _encode(self, frames: Iterable[StereoFrame], qp: int) -> tuple[list[IO[bytes]], list[str]]:
        """The streams of both views, and the names of the frames."""
        names = []
        scaling, begin = 0.0, child_cpu_seconds()
        height, width, _ = self._shape
        command = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "10", "-i", "-"]
        command += [*self._encoder(qp), "-threads", "1", "-f", self._video.container]
        streams: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(2)]
        with tempfile.TemporaryFile() as errors:
            programs = [
                subprocess.Popen(
                    ffmpeg_command(command, stream),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=(stream.fileno(),),
                )
                for stream in streams
            ]
            try:
                with suppress(BrokenPipeError):  # a program that has ended says why below
                    for frame in frames:
                        before = time.process_time()
                        transform = self._model.transform(frame.left.shape[1], frame.left.shape[0])
                        views = [resize_view(view, transform).tobytes() for view in (frame.left, frame.right)]
                        scaling += time.process_time() - before
                        names.append(frame.name)
                        for program, view in zip(programs, views, strict=True):
                            assert program.stdin is not None
                            program.stdin.write(view)
            finally:
                for program in programs:
                    assert program.stdin is not None
                    with suppress(BrokenPipeError):
                        program.stdin.close()
                statuses = [program.wait() for program in programs]
            if any(statuses) or not names:
                errors.seek(0)
                raise failure(f"ffmpeg {' '.join(command)}", errors.read(2000))
        self._encode_s = (scaling + child_cpu_seconds() - begin) / len(names)
        for stream in streams:
            stream.seek(0)
        return streams, names

    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """See ``System``."""
        index = self._index.get(frame.name)
        if index is None or point != self._point:
            raise CodecError(f"{frame.name} at {point:g}: expected a frame of the drive and the point prepared last")
        begin = time.process_time()
        views = []
        for file in self._pictures:
            count = math.prod(self._shape)
            file.seek(index * count)
            views.append(np.frombuffer(file.read(count), np.uint8).reshape(self._shape))
        transform = self._model.transform(frame.left.shape[1], frame.left.shape[0])
        objects = self._detector.detect_scaled(views[0], views[1], InputGeometry(transform, frame.rig))
        seconds = self._decode_s + time.process_time() - begin
        return Outcome(sum(sizes[index] for sizes in self._sizes), objects, self._encode_s, seconds)


def decode(stream: IO[bytes], video: VideoFormat, count: int, shape: tuple[int, int, int]) -> IO[bytes]:
    """From a file of a byte stream, a file of ``count`` RGB images of ``shape``, uint8. Raises CodecError."""
    stream.seek(0)
    command = ["-f", video.container, "-i", "-", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    pictures = tempfile.TemporaryFile()
    done = subprocess.run(
        ffmpeg_command(command, pictures),
        stdin=stream,
        capture_output=True,
        check=False,
        pass_fds=(pictures.fileno(),),
    )
    if done.returncode:
        raise failure(f"ffmpeg {' '.join(command)}", done.stderr)
    size = pictures.seek(0, 2)
    if size != count * math.prod(shape):
        raise CodecError(f"{video.container}: expected {count} pictures of {shape[1]}x{shape[0]}, got {size} bytes")
    return pictures


def _kind(name: str, title: str, note: str, encoder: Encoder, video: VideoFormat) -> SystemKind:
    return SystemKind(
        name,
        title,
        f"{note}; each view of a drive by itself, at the network's input size, one intra picture at the start",
        lambda model, threshold: DriveVideo(encoder, video, model, threshold),
        ffmpeg_missing,
        sequences=True,
    )


DRIVE_KINDS = (
    _kind("hevc-video", "HEVC, video", "HEVC at one QP (x265, preset medium, zero latency)", hevc_drive_encoder, HEVC),
    _kind("vvc-video", "VVC, video", "VVC with low-delay QP offsets (VVenC, preset fast)", vvc_drive_encoder, VVC),
)
