# SPDX-License-Identifier: Apache-2.0
"""The detector on the images as they are, and behind image codecs."""

from __future__ import annotations

import time

import cv2
import numpy as np

from ...codec.detector import StereoDetector
from ...data.source import StereoFrame
from ...geometry import InputGeometry, InputTransform
from ...model_store import StoredModel
from ...networks.complexity import count_complexity
from ...preprocessing import resize_view
from .image_codec import ImageCodec
from .system import Complexity, Outcome, SystemKind

__all__ = ["ImageSystem", "Uncompressed", "detector_complexity", "image_kind"]


def detector_complexity(model: StoredModel) -> Complexity:
    """That of the uncompressed detector."""
    counts = count_complexity(model.config)
    parts = [counts[name] for name in ("backbone", "matching", "analysis") if name in counts]
    return Complexity(sum(part[0] for part in parts), sum(part[1] for part in parts))


class Uncompressed:
    """The detector on the images as they are."""

    points, weights = (0.0,), ""

    def __init__(self, model: StoredModel, score_threshold: float) -> None:
        self._detector = StereoDetector(model, score_threshold=score_threshold)
        self.complexity = detector_complexity(model)

    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """See ``System``."""
        begin = time.process_time()
        objects = self._detector.detect(frame.left, frame.right, frame.rig)
        return Outcome(0, objects, 0.0, time.process_time() - begin)


class ImageSystem:
    """An image codec with the uncompressed detector behind it.

    Images are scaled before they are coded: to the network's input, a careful user's choice, since the detector sees no
    more than that, or to ``height``, after which they are scaled once more. The paper's 288x1280 images lose their
    right edge; here they keep it, and are filled up to a multiple of 8 with black.
    """

    def __init__(
        self, codec: ImageCodec, model: StoredModel, score_threshold: float, height: int | None = None
    ) -> None:
        self.points, self.weights = tuple(float(point) for point in codec.points), ""
        self.complexity = detector_complexity(model)
        self._codec, self._model, self._height = codec, model, height
        self._detector = StereoDetector(model, score_threshold=score_threshold)

    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """See ``System``."""
        begin = time.process_time()
        transform = self._model.transform(frame.left.shape[1], frame.left.shape[0])
        larger = None if self._height is None else _of_height(transform, self._height)
        left, right = (resize_view(view, larger or transform) for view in (frame.left, frame.right))
        scaled = time.process_time()
        coded = self._codec.code(left, right, int(point))
        coding = time.process_time()
        left, right = coded.left, coded.right
        if larger is not None:
            left, right = (_scaled_again(view, larger, transform) for view in (left, right))
        found = self._detector.detect_scaled(left, right, InputGeometry(transform, frame.rig))
        detected = time.process_time()
        return Outcome(coded.size, found, scaled - begin + coded.encode_s, coded.decode_s + detected - coding)


def _of_height(transform: InputTransform, height: int) -> InputTransform:
    """To images of that height, wide enough for all that ``transform`` leaves of a camera image."""
    source = transform.source_width, transform.source_height, transform.crop_top
    width = InputTransform(*source, 8, height).scaled_width
    return InputTransform(*source, -(-width // 8) * 8, height)


def _scaled_again(view: np.ndarray, larger: InputTransform, transform: InputTransform) -> np.ndarray:
    """From an image of ``larger`` to the one that ``transform`` would have made at once."""
    content = view[:, : larger.scaled_width]
    small = cv2.resize(content, (transform.scaled_width, transform.height), interpolation=cv2.INTER_AREA)
    return np.pad(small[:, : transform.width], ((0, 0), (0, max(0, transform.width - small.shape[1])), (0, 0)))


def image_kind(codec: ImageCodec, height: int | None = None) -> SystemKind:
    """The row of an image codec."""
    where = "at the network's input size" if height is None else f"{height} rows high, as in the paper"
    return SystemKind(
        codec.name + ("" if height is None else f"-{height}"),
        codec.title + ("" if height is None else f", {height} rows"),
        f"{codec.note}; images {where}",
        lambda model, threshold: ImageSystem(codec, model, threshold, height),
        codec.missing,
    )
