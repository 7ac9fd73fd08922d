# SPDX-License-Identifier: Apache-2.0
"""From camera images to the network's input: the same at run time and in training."""

from __future__ import annotations

import cv2
import numpy as np

from ..geometry import InputTransform

__all__ = ["MEAN", "STD", "normalise", "resize_view"]

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, as the backbone of the paper expects
STD = np.array([0.229, 0.224, 0.225], np.float32)


def resize_view(image: np.ndarray, transform: InputTransform) -> np.ndarray:
    """Crop, scale and fit one view: (H, W, 3) uint8 RGB -> (height, width, 3) uint8. Padding on the right is black."""
    image = image[transform.crop_top :]
    shrinks = transform.scale < 1
    image = cv2.resize(
        image, (transform.scaled_width, transform.height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    image = image[:, : transform.width]
    return np.pad(image, ((0, 0), (0, transform.width - image.shape[1]), (0, 0)))


def normalise(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 RGB -> (3, h, w) float32 with ImageNet's mean and deviation taken out."""
    return np.ascontiguousarray(((image.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1))
