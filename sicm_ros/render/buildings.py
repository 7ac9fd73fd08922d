# SPDX-License-Identifier: Apache-2.0
"""Houses."""

from __future__ import annotations

import math

import numpy as np

from sicm_ros.render import meshes
from sicm_ros.render.builder import Builder
from sicm_ros.render.materials import FACADE, WALLS, generic_surface, pick
from sicm_ros.render.meshes import Mesh
from sicm_ros.render.textures import BRICK, FBM

__all__ = ["add_building"]


def _facade_row(rng: np.random.Generator, blank: bool = False) -> list[float]:
    rgb = pick(rng, WALLS, jitter=0.15)
    texture = BRICK if rng.uniform() < 0.35 else FBM
    storey = rng.uniform(2.8, 3.5)
    pitch = rng.uniform(1.9, 4.0)
    frame = (0.6, 0.6, 0.58) if rng.uniform() < 0.6 else tuple(pick(rng, WALLS) * 0.4)
    low = rng.uniform(0.75, 1.1)
    return [
        FACADE,
        *rgb,
        texture,
        rng.uniform(25, 60) if texture == BRICK else rng.uniform(10, 40),
        rng.uniform(0.05, 0.22),
        0.0 if blank else storey,
        pitch,
        rng.uniform(0.2, 0.9),
        100.0,
        rng.uniform(0.3, 0.55) * pitch,
        low,
        low + rng.uniform(1.1, 1.6),
        rng.uniform(0, 0.7),
        rng.uniform(0, 0.25),
        float(rng.integers(1000)),
        *frame,
        float(rng.integers(2)),
    ]


def add_building(
    b: Builder,
    rng: np.random.Generator,
    corner: tuple[float, float],
    heading: float,
    length: float,
    depth: float,
    wall: float,
    ground: float,
) -> None:
    """A house: the front wall starts at ``corner`` (x, z) along ``heading``; the house is ``depth`` to its left."""
    row = _facade_row(rng)
    row[10] = wall - 0.3
    side_row = list(row)
    if rng.uniform() < 0.5:
        side_row[7] = 0.0
    base = ground + 0.3
    c, s = math.cos(heading), math.sin(heading)

    def at(fwd: float, left: float) -> tuple[float, float, float]:
        return (corner[0] + c * fwd + s * left, base, corner[1] - s * fwd + c * left)

    total = wall + 0.3
    for origin, turn, n, surface in (
        (at(0, 0), heading, length, row),
        (at(0, depth), heading, length, row),
        (at(0, 0), heading - math.pi / 2, depth, side_row),
        (at(length, 0), heading - math.pi / 2, depth, side_row),
    ):
        b.add(meshes.quad([[0, 0, 0], [n, 0, 0], [n, 0, total], [0, 0, total]]), origin, turn, b.surface(surface))
    if rng.uniform() < 0.6:
        rise = rng.uniform(0.35, 0.6) * depth
        over = 0.4
        tile = b.surface(
            generic_surface(
                pick(rng, np.array([[0.28, 0.09, 0.05], [0.20, 0.08, 0.05], [0.09, 0.08, 0.08], [0.14, 0.07, 0.05]])),
                BRICK,
                50,
                0.25,
                rng,
            )
        )
        low = total - over * 2 * rise / depth
        roof = [
            meshes.quad(
                [
                    [-over, -over, low],
                    [length + over, -over, low],
                    [length + over, depth / 2, total + rise],
                    [-over, depth / 2, total + rise],
                ]
            ),
            meshes.quad(
                [
                    [-over, depth + over, low],
                    [length + over, depth + over, low],
                    [length + over, depth / 2, total + rise],
                    [-over, depth / 2, total + rise],
                ]
            ),
        ]
        b.add(meshes.merge(roof), at(0, 0), heading, tile)
        gable = b.surface(side_row[:7] + [0.0] + side_row[8:])
        for f in (0.0, length):
            v = np.array([[0, 0, total], [depth, 0, total], [depth / 2, 0, total + rise]], np.float64)
            mesh = Mesh(v, np.tile([0.0, -1.0, 0.0], (3, 1)), np.array([[0, 1, 2]], np.int32), np.zeros(1, np.int32))
            b.add(mesh, at(f, 0), heading - math.pi / 2, gable)
    else:
        flat = b.surface(generic_surface((0.2, 0.2, 0.2), FBM, 10, 0.2, rng))
        b.add(meshes.box((-0.2, -0.2, total), (length + 0.2, depth + 0.2, total + 0.35)), at(0, 0), heading, flat)
