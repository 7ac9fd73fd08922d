# SPDX-License-Identifier: Apache-2.0
"""Features of the backbone as pictures of a video codec, and the rest of the detector on what comes back (VVC-Feature).

The largest value of each scale, one float32 for both views, is sent with the pictures: 12 bytes a pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from ...codec.detector import analyse
from ...data.source import StereoFrame
from ...geometry import InputGeometry
from ...model_store import StoredModel, open_model
from ...preprocessing import prepare
from .feature_packing import dequantise, packing_of, quantise
from .hevc import code_hevc_luma
from .image_codec import PAPER_QPS, ffmpeg_missing
from .system import Complexity, Outcome, SystemKind
from .uncompressed import detector_complexity
from .video import CodedLuma
from .vtm import code_vtm_luma, vtm_missing
from .vvc import code_vvc_luma

__all__ = ["FEATURE_KINDS", "FeatureVideo"]

LumaCodec = Callable[[np.ndarray, int], CodedLuma]


class FeatureVideo:
    """See ``System``; a point is the QP. Both views are intra pictures; the matching is done with decoded features."""

    points, weights = tuple(float(qp) for qp in PAPER_QPS), ""

    def __init__(self, codec: LumaCodec, model: StoredModel, score_threshold: float) -> None:
        self._codec, self._threshold = codec, score_threshold
        self._model = open_model(model, "both", "cpu")
        self.complexity: Complexity = detector_complexity(model)

    @torch.inference_mode()
    def run(self, frame: StereoFrame, point: float) -> Outcome:
        """See ``System``."""
        begin = time.process_time()
        net = self._model.net
        left, right, transform = prepare(frame.left, frame.right, self._model.transform, self._model.device)
        scales = [np.stack([view[0].numpy() for view in scale]) for scale in net.features(left, right)]
        maxima = [float(scale.max()) for scale in scales]
        packing = packing_of(tuple(scale.shape[1:] for scale in scales))
        levels = [quantise(scale, maximum) for scale, maximum in zip(scales, maxima, strict=True)]
        pictures = np.stack([packing.pack([scale[view] for scale in levels]) for view in (0, 1)])
        packed = time.process_time()
        coded = self._codec(pictures, int(point))
        coding = time.process_time()
        views = [packing.unpack(picture) for picture in coded.pictures]
        f0, f1, f2 = (
            tuple(torch.from_numpy(dequantise(view[i], maximum))[None] for view in views)
            for i, maximum in enumerate(maxima)
        )
        output = net.detect(((f0[0], f0[1]), (f1[0], f1[1]), (f2[0], f2[1])))
        geometry = InputGeometry(transform, frame.rig)
        objects = analyse(self._model, output, [geometry], self._threshold)[0].objects
        detected = time.process_time()
        size = coded.size + 4 * len(maxima)
        return Outcome(size, objects, packed - begin + coded.encode_s, coded.decode_s + detected - coding)


_PACKING = "features packed into pictures of 10 bits as in MPEG's feature anchor, intra, largest values as float32"


def _kind(name: str, title: str, note: str, codec: LumaCodec, missing: Callable[[], str]) -> SystemKind:
    return SystemKind(
        name, title, f"{_PACKING}; {note}", lambda model, threshold: FeatureVideo(codec, model, threshold), missing
    )


FEATURE_KINDS = (
    _kind("hevc-feature", "HEVC-Feature", "x265, preset medium, 4:0:0", code_hevc_luma, ffmpeg_missing),
    _kind(
        "vvc-feature",
        "VVC-Feature",
        "VVenC, preset fast, 4:2:0 with constant chroma, since VVenC in ffmpeg takes nothing else",
        code_vvc_luma,
        ffmpeg_missing,
    ),
    _kind("vtm-feature", "VVC-Feature, VTM", "VTM, all intra, 4:0:0", code_vtm_luma, vtm_missing),
)
