# SPDX-License-Identifier: Apache-2.0
"""What can be told of a camera or of a pair that can be encoded, but whose boxes will be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..geometry import StereoRig
from .swapped_views import SWAPPED_WARNING, views_swapped

if TYPE_CHECKING:
    from ..model_store import StoredModel

__all__ = ["geometry_warning", "pair_warnings"]

# The depth priors of a model still fit a camera that differs by this factor.
GEOMETRY_TOLERANCE = 1.25


def geometry_warning(model: StoredModel, rig: StereoRig, width: int, height: int) -> str | None:
    """Words for a camera whose disparities are far from those that the model was trained on, or None.

    Compared is focal length times baseline at the network's resolution: it turns a disparity into a depth.
    """
    expected = model.reference_focal_baseline
    if not expected:
        return None
    ratio = model.transform(width, height).rig(rig).focal_baseline / expected
    if 1 / GEOMETRY_TOLERANCE <= ratio <= GEOMETRY_TOLERANCE:
        return None
    return (
        f"focal length times baseline is {ratio:.2f} times that of the training data of model {model.name}: depths "
        "will be wrong; train with this camera's calibration, or check its baseline"
    )


def pair_warnings(model: StoredModel, left: np.ndarray, right: np.ndarray, rig: StereoRig) -> list[str]:
    """Warnings about one pair, (H, W, 3) uint8 RGB each, with the rig of these images."""
    found = [geometry_warning(model, rig, left.shape[1], left.shape[0])]
    if views_swapped(left, right):
        found.append(SWAPPED_WARNING)
    return [words for words in found if words]
