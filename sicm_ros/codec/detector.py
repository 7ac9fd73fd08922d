# SPDX-License-Identifier: Apache-2.0
"""Detection on features: on reconstructed ones and, as the uncompressed reference, on those of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry import InputGeometry, Object3D, StereoRig
from ..model_store import StoredModel, open_model
from ..networks.anchors import rig_tensor
from ..networks.detection import AnalysisOutput, to_objects
from ..preprocessing import normalise, prepare

__all__ = ["Boxes", "StereoDetector", "analyse"]


class Boxes(NamedTuple):
    """What was found in one pair."""

    objects: list[Object3D]  # best first
    refused: int  # how many boxes were left out because they cannot exist, see ``networks.detection.can_exist``


def analyse(
    model: StoredModel,
    output: AnalysisOutput,
    geometries: Sequence[InputGeometry],
    score_threshold: float,
) -> list[Boxes]:
    """The boxes that the visual analysis has found in B pairs, best first.

    ``geometries`` has, for each pair, how the camera images became the network's input, and the rigs of both.
    """
    analysis, config = model.net.analysis, model.config
    rigs = rig_tensor([geometry.rig for geometry in geometries], model.device)
    transforms = [geometry.transform for geometry in geometries]
    found = analysis.decode(output, rigs, score_threshold, config.analysis.nms_iou, transforms)
    return [
        Boxes(to_objects(boxes, transform, config.classes), boxes.refused)
        for boxes, transform in zip(found, transforms, strict=True)
    ]


class StereoDetector:
    """The detector without the codec, as the reference for compression. Raises ModelError and InputError."""

    def __init__(
        self, model: str | Path | StoredModel, device: str | torch.device = "cpu", score_threshold: float | None = None
    ) -> None:
        self.model = open_model(model, "both", device)
        default = self.model.config.analysis.score_threshold
        self.score_threshold = default if score_threshold is None else score_threshold

    @torch.inference_mode()
    def detect(self, left: np.ndarray, right: np.ndarray, rig: StereoRig) -> list[Object3D]:
        """Boxes of one pair: (H, W, 3) uint8 RGB each; ``rig`` is that of these images."""
        left_view, right_view, transform = prepare(left, right, self.model.transform, self.model.device)
        return self._boxes(left_view, right_view, InputGeometry(transform, rig))

    @torch.inference_mode()
    def detect_scaled(self, left: np.ndarray, right: np.ndarray, geometry: InputGeometry) -> list[Object3D]:
        """Boxes of a pair that ``resize_view`` has made: uint8 RGB of the network's input size."""
        left_view, right_view = (
            torch.from_numpy(normalise(view[None])).to(self.model.device) for view in (left, right)
        )
        return self._boxes(left_view, right_view, geometry)

    def _boxes(self, left: Tensor, right: Tensor, geometry: InputGeometry) -> list[Object3D]:
        output = self.model.net.detect(self.model.net.features(left, right))
        return analyse(self.model, output, [geometry], self.score_threshold)[0].objects
