# SPDX-License-Identifier: Apache-2.0
"""Feature maps of several scales as one picture of 10 bits, as MPEG's feature anchor packs them.

Every channel is a tile. The tensor with the most elements comes first and fixes the picture's width: its tiles stand in
a grid as square as the number of channels allows. The others fill rows of that width below it. Values become
floor(1023 x / maximum): features behind a ReLU begin at 0, which is also what the picture is filled up with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = ["Packing", "dequantise", "packing_of", "quantise"]

LEVELS = 1023  # the highest value of 10 bits
# So that a value of the grid that float32 has rounded down stays at its level: 1023 * 2 ** -24 is less.
_ROUNDING = 1e-4

Shape = tuple[int, int, int]  # channels, rows, columns


def quantise(values: np.ndarray, maximum: float) -> np.ndarray:
    """Values from 0 to ``maximum``, others clipped -> levels, uint16."""
    if maximum <= 0:
        return np.zeros(values.shape, np.uint16)
    scaled = np.clip(values.astype(np.float64) / maximum, 0, 1) * LEVELS
    return np.floor(scaled + _ROUNDING).astype(np.uint16)


def dequantise(levels: np.ndarray, maximum: float) -> np.ndarray:
    """Levels -> values, float32."""
    return (levels * (maximum / LEVELS)).astype(np.float32)


def _grid(shape: Shape) -> tuple[int, int]:
    """Rows and columns of tiles, of which the longer side of the tiles gets fewer."""
    channels, height, width = shape
    short = max(n for n in range(1, math.isqrt(channels) + 1) if channels % n == 0)
    long = channels // short
    return (short, long) if height > width else (long, short)


@dataclass(frozen=True)
class Packing:
    """Where tensors lie in a picture of ``height`` rows and ``width`` columns, both even."""

    shapes: tuple[Shape, ...]
    places: tuple[tuple[int, int], ...]  # of each tensor: its first row, and how many tiles are beside each other
    height: int
    width: int

    def pack(self, levels: Sequence[np.ndarray]) -> np.ndarray:
        """Tensors (C, H, W) uint16 of the shapes -> the picture, (height, width) uint16."""
        picture = np.zeros((self.height, self.width), np.uint16)
        for tensor, shape, (top, columns) in zip(levels, self.shapes, self.places, strict=True):
            channels, height, width = shape
            rows = -(-channels // columns)
            tiles = np.zeros((rows * columns, height, width), np.uint16)
            tiles[:channels] = tensor
            block = tiles.reshape(rows, columns, height, width).swapaxes(1, 2)
            picture[top : top + rows * height, : columns * width] = block.reshape(rows * height, columns * width)
        return picture

    def unpack(self, picture: np.ndarray) -> list[np.ndarray]:
        """The inverse of ``pack``."""
        tensors = []
        for (channels, height, width), (top, columns) in zip(self.shapes, self.places, strict=True):
            rows = -(-channels // columns)
            block = picture[top : top + rows * height, : columns * width].reshape(rows, height, columns, width)
            tensors.append(block.swapaxes(1, 2).reshape(rows * columns, height, width)[:channels])
        return tensors


@lru_cache(maxsize=64)
def packing_of(shapes: tuple[Shape, ...]) -> Packing:
    """Where tensors of these shapes go."""
    order = sorted(range(len(shapes)), key=lambda i: -math.prod(shapes[i]))
    largest = shapes[order[0]]
    width = max(_grid(largest)[1] * largest[2], *(shape[2] for shape in shapes))
    width += width % 2
    places, top = [(0, 0)] * len(shapes), 0
    for i in order:
        channels, height, columns = shapes[i]
        # As many tiles as fit; where that is not all of them at once, the last row may be short.
        beside = min(channels, width // columns)
        places[i] = top, beside
        top += -(-channels // beside) * height
    return Packing(shapes, tuple(places), top + top % 2, width)
