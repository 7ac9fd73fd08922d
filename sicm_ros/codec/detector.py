# SPDX-License-Identifier: Apache-2.0
"""Detection on features: on reconstructed ones and, as the uncompressed reference, on those of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..geometry import InputTransform, Object3D, StereoRig
from ..model_store import StoredModel, open_model
from ..networks.anchors import rig_tensor
from ..networks.backbone import StereoFeatures
from ..networks.detection import to_objects
from ..preprocessing import prepare

__all__ = ["StereoDetector", "analyse"]


def analyse(
    model: StoredModel,
    features: StereoFeatures,
    cameras: Sequence[tuple[InputTransform, StereoRig]],
    score_threshold: float,
) -> list[list[Object3D]]:
    """Boxes found in the features (B, C, h, w) of B pairs, best first.

    ``cameras`` holds, for each pair, how the camera images became the network's input, and the rig of the camera
    images.
    """
    analysis, config = model.net.analysis, model.config
    rigs = rig_tensor([transform.rig(rig) for transform, rig in cameras], model.device)
    found = analysis.decode(analysis(features), rigs, score_threshold, config.analysis.nms_iou)
    return [to_objects(boxes, transform, config.classes) for boxes, (transform, _) in zip(found, cameras, strict=True)]


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
        features = self.model.net.features(left_view, right_view)
        return analyse(self.model, features, [(transform, rig)], self.score_threshold)[0]
