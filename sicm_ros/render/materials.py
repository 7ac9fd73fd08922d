# SPDX-License-Identifier: Apache-2.0
"""Materials: rows of numbers for the functions of surfaces.py. The first entry is the kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

__all__ = [
    "CAR_BODY",
    "CAR_GLASSHOUSE",
    "CAR_SIDE",
    "FACADE",
    "FOLIAGE",
    "GENERIC",
    "GROUND",
    "GROUND_SIZE",
    "SHEEN",
    "MATERIAL_SIZE",
    "PAINTS",
    "PAINT_WEIGHTS",
    "SIGN",
    "Vector",
    "WALLS",
    "WHEEL",
    "generic_surface",
    "pick",
]

# Kinds of surface (first entry of a material row).
GENERIC, GROUND, CAR_BODY, CAR_SIDE, CAR_GLASSHOUSE, WHEEL, FACADE, FOLIAGE, SIGN = range(9)

Vector: TypeAlias = "Sequence[float] | np.ndarray"
MATERIAL_SIZE = 40
GROUND_SIZE = 48
SHEEN = 39  # of the ground's parameters: how much sun it throws on at grazing angles


def generic_surface(
    rgb: Vector,
    texture: int,
    texels: float,
    contrast: float,
    rng: np.random.Generator,
    gloss: float = 0,
    ribs: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ambient: float = 0.85,
) -> list[float]:
    """The row of a plain surface: colour, texture and its scale and contrast, gloss, ribs, ambient light."""
    return [
        GENERIC,
        *rgb,
        texture,
        texels,
        contrast,
        gloss,
        rng.uniform(0, 256),
        rng.uniform(0, 256),
        *ribs,
        ambient,
    ]


PAINTS = np.array(
    [
        [0.55, 0.56, 0.56],
        [0.32, 0.33, 0.34],
        [0.10, 0.105, 0.11],
        [0.015, 0.015, 0.017],
        [0.78, 0.78, 0.77],
        [0.02, 0.035, 0.10],
        [0.05, 0.10, 0.22],
        [0.25, 0.015, 0.02],
        [0.38, 0.03, 0.025],
        [0.02, 0.07, 0.045],
        [0.30, 0.27, 0.20],
        [0.12, 0.045, 0.02],
        [0.55, 0.38, 0.03],
        [0.20, 0.32, 0.40],
    ]
)
PAINT_WEIGHTS = np.array([18, 14, 12, 19, 12, 6, 5, 3.5, 3, 2, 2, 1, 1, 1.5])


def pick(
    rng: np.random.Generator, table: np.ndarray, weights: np.ndarray | None = None, jitter: float = 0.2
) -> np.ndarray:
    """A random row (C,) of ``table`` (N, C), slightly varied."""
    p = None if weights is None else weights / weights.sum()
    tint = rng.uniform(1 - jitter, 1 + jitter) * rng.uniform(0.96, 1.04, 3)
    return np.clip(table[rng.choice(len(table), p=p)] * tint, 0.008, 0.85)


WALLS = np.array(
    [
        [0.55, 0.52, 0.45],
        [0.62, 0.60, 0.55],
        [0.68, 0.66, 0.62],
        [0.42, 0.36, 0.27],
        [0.30, 0.25, 0.20],
        [0.50, 0.42, 0.28],
        [0.36, 0.16, 0.10],
        [0.45, 0.45, 0.44],
        [0.60, 0.50, 0.30],
        [0.22, 0.20, 0.18],
    ]
)
