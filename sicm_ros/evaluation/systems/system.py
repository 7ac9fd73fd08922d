# SPDX-License-Identifier: Apache-2.0
"""A compared system: a stereo pair to bytes, and bytes to boxes. All detect with the same weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ...codec.decoder import StereoDecoder
from ...codec.detector import StereoDetector
from ...codec.encoder import StereoEncoder
from ...data.source import StereoFrame
from ...geometry import InputGeometry, Object3D
from ...inference import Engine
from ...model_store import StoredModel
from ...preprocessing import resize_view
from .image_codec import ImageCodec

__all__ = ["FeatureSystem", "ImageSystem", "Outcome", "System", "Uncompressed"]


class Outcome(NamedTuple):
    """What a pair became: bytes that are sent, boxes, and CPU seconds on the vehicle and at the other end."""

    size: int
    objects: list[Object3D]
    encode_s: float
    decode_s: float


class System(Protocol):
    """A way from a pair to boxes at several qualities, ``points``, from few bytes to many."""

    @property
    def name(self) -> str:
        """Its name in commands and tables."""

    @property
    def points(self) -> Sequence[float]:
        """Its qualities, from few bytes to many."""

    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """Code a pair and detect. Raises CodecError."""


class Uncompressed:
    """The detector on the images as they are."""

    name = "uncompressed"
    points = (0.0,)

    def __init__(self, model: StoredModel, score_threshold: float) -> None:
        self._detector = StereoDetector(model, score_threshold=score_threshold)

    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """See ``System``."""
        begin = time.process_time()
        objects = self._detector.detect(frame.left, frame.right, frame.rig)
        return Outcome(0, objects, 0.0, time.process_time() - begin)


class ImageSystem:
    """An image codec at the network's input size, with the uncompressed detector behind it.

    A careful user scales before coding: the detector sees no more than that, and it takes a third of the bytes.
    """

    def __init__(self, codec: ImageCodec, model: StoredModel, score_threshold: float) -> None:
        self.name, self.points = codec.name, tuple(float(point) for point in codec.points)
        self._codec, self._model = codec, model
        self._detector = StereoDetector(model, score_threshold=score_threshold)

    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """See ``System``."""
        begin = time.process_time()
        transform = self._model.transform(frame.left.shape[1], frame.left.shape[0])
        left, right = (resize_view(view, transform) for view in (frame.left, frame.right))
        scaled = time.process_time()
        coded = self._codec.code(left, right, int(point))
        coding = time.process_time()
        found = self._detector.detect_scaled(coded.left, coded.right, InputGeometry(transform, frame.rig))
        detected = time.process_time()
        return Outcome(coded.size, found, scaled - begin + coded.encode_s, coded.decode_s + detected - coding)


class FeatureSystem:
    """A model of this package through packets, at its rates."""

    def __init__(self, model: StoredModel, score_threshold: float, engine: Engine = "torch") -> None:
        self.name = model.name
        self.points = tuple(float(rate) for rate in range(int(model.config.highest_rate) + 1))
        self._encoder = StereoEncoder(model, engine=engine)
        self._decoder = StereoDecoder(model, score_threshold=score_threshold, engine=engine)

    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """See ``System``."""
        begin = time.process_time()
        packet = self._encoder.encode(frame.left, frame.right, frame.rig, rate=point).packet
        encoded = time.process_time()
        objects = self._decoder.decode(packet).objects
        return Outcome(len(packet), objects, encoded - begin, time.process_time() - encoded)
