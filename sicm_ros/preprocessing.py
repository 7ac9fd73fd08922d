# SPDX-License-Identifier: Apache-2.0
"""From camera images to the network's input: the same at run time and in training."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from .geometry import GeometryError, InputTransform

__all__ = ["InputError", "MEAN", "STD", "check_pair", "normalise", "prepare", "resize_view"]

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, as the backbone of the paper expects
STD = np.array([0.229, 0.224, 0.225], np.float32)
# The float32 value of each byte in each colour, (1, 256, 3).
_VALUES = ((np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - MEAN) / STD)[None]


def resize_view(image: np.ndarray, transform: InputTransform) -> np.ndarray:
    """Crop, scale and fit one view: (H, W, 3) uint8 RGB -> (height, width, 3) uint8. Padding on the right is black."""
    image = image[transform.crop_top :]
    shrinks = transform.scale < 1
    image = cv2.resize(
        image, (transform.scaled_width, transform.height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    image = image[:, : transform.width]
    return np.pad(image, ((0, 0), (0, transform.width - image.shape[1]), (0, 0)))


def normalise(images: np.ndarray) -> np.ndarray:
    """(..., h, w, 3) uint8 RGB -> (..., 3, h, w) float32, less ImageNet's mean and over its standard deviation.

    The memory keeps the order of a camera image, colours innermost, which PyTorch calls channels_last: the network
    takes it as it is.
    """
    rows = images.reshape(-1, images.shape[-2], 3)  # cv2 knows no more than two axes and the colours
    return np.moveaxis(cv2.LUT(rows, _VALUES).reshape(images.shape), -1, -3)


class InputError(ValueError):
    """Images or a rate that cannot be encoded; the message is one line and says what is expected."""


def check_pair(left: np.ndarray, right: np.ndarray) -> None:
    """Raise InputError unless both are (H, W, 3) uint8 RGB images of one size."""
    for side, image in (("left", left), ("right", right)):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"{side} image: expected uint8 RGB of shape (height, width, 3), got {what}")
    if left.shape != right.shape:
        raise InputError(
            f"left and right image: expected equal sizes, got {left.shape[1]}x{left.shape[0]} and "
            f"{right.shape[1]}x{right.shape[0]}"
        )


def prepare(
    left: np.ndarray,
    right: np.ndarray,
    transform_of: Callable[[int, int], InputTransform],
    device: torch.device,
) -> tuple[Tensor, Tensor, InputTransform]:
    """The network's input of each view, (1, 3, H, W) float32 on ``device``, and how the images became it.

    ``left`` and ``right`` are (h, w, 3) uint8 RGB. ``transform_of`` is a model's ``transform``: it takes the width and
    the height of the images. Raises InputError.
    """
    check_pair(left, right)
    try:
        transform = transform_of(left.shape[1], left.shape[0])
    except GeometryError as e:
        raise InputError(f"image size {left.shape[1]}x{left.shape[0]}: {e}") from None
    left_view, right_view = (
        torch.from_numpy(normalise(resize_view(image, transform)[None])).to(device) for image in (left, right)
    )
    return left_view, right_view, transform
