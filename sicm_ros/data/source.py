# SPDX-License-Identifier: Apache-2.0
"""What a stereo frame is, whatever it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sicm_ros.geometry import Object3D, StereoRig

__all__ = ["SIDES", "Side", "StereoFrame"]

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")


@dataclass(frozen=True)
class StereoFrame:
    """A stereo pair: (H, W, 3) uint8 RGB images of one size, their rig, capture times in nanoseconds, labels if any."""

    name: str
    left: np.ndarray
    right: np.ndarray
    rig: StereoRig
    stamp_ns: int
    right_stamp_ns: int
    labels: list[Object3D] | None
