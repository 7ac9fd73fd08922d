# SPDX-License-Identifier: Apache-2.0
"""Whether the left and the right image of a rectified pair were exchanged: disparities are then negative."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["SWAPPED_WARNING", "views_swapped"]

SWAPPED_WARNING = (
    "left and right image seem to be swapped: what is near lies further left in the left image; "
    "depths will be wrong; exchange the two"
)
WIDTH, MOST_SHIFT, WINDOW = 160, 12, 7  # pixels of the small images that are compared
LEAST_SHIFT = 1
LEAST_CONTRAST = 5.0  # standard deviation of grey values in a window
CLEAR = 0.25  # mean absolute difference by which the best match of one sign has to be better than that of the other
LEAST_SHARE, LEAST_PIXELS = 0.1, 200  # of the pixels with contrast that have to have clear matches
MAJORITY = 0.8  # of the clear matches that have to be of one sign


def views_swapped(left: np.ndarray, right: np.ndarray) -> bool | None:
    """Whether two (H, W, 3) uint8 RGB views of one size are exchanged; None if the images do not tell.

    Small grey copies are compared at shifts of both signs, less their local mean and over their local contrast. In
    any scene before the cameras all matches are on one side.
    """
    negative, positive, contrast = evidence(left, right)
    clear = negative + positive
    if clear < max(LEAST_PIXELS, LEAST_SHARE * contrast):
        return None
    if max(negative, positive) < MAJORITY * clear:
        return None
    return negative > positive


def evidence(left: np.ndarray, right: np.ndarray) -> tuple[int, int, int]:
    """Pixels whose clear best match has a negative disparity, a positive one; and pixels with contrast at all."""
    (a, contrast), (b, _) = _normalised(left), _normalised(right)
    width = a.shape[1] - 2 * MOST_SHIFT
    centre = np.ascontiguousarray(a[:, MOST_SHIFT:-MOST_SHIFT])
    costs = {}
    for shift in range(-MOST_SHIFT, MOST_SHIFT + 1):
        start = MOST_SHIFT - shift
        costs[shift] = cv2.blur(cv2.absdiff(centre, b[:, start : start + width]), (WINDOW, WINDOW))
    none = np.minimum.reduce([costs[shift] for shift in range(1 - LEAST_SHIFT, LEAST_SHIFT)])
    positive = np.minimum.reduce([costs[shift] for shift in range(LEAST_SHIFT, MOST_SHIFT + 1)])
    negative = np.minimum.reduce([costs[-shift] for shift in range(LEAST_SHIFT, MOST_SHIFT + 1)])
    seen = contrast[:, MOST_SHIFT:-MOST_SHIFT] > LEAST_CONTRAST
    is_positive = seen & (positive < negative - CLEAR) & (positive < none)
    is_negative = seen & (negative < positive - CLEAR) & (negative < none)
    return int(is_negative.sum()), int(is_positive.sum()), int(seen.sum())


def _normalised(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A small grey copy, (h, WIDTH) float32, less local means and over local deviations, which are returned, too."""
    height = max(WINDOW, round(image.shape[0] * WIDTH / image.shape[1]))
    small = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.blur(grey, (WINDOW, WINDOW))
    deviation = np.sqrt(np.maximum(cv2.blur(grey * grey, (WINDOW, WINDOW)) - mean * mean, 0))
    return (grey - mean) / (deviation + 2), deviation
