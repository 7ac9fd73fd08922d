# SPDX-License-Identifier: Apache-2.0
"""Street furniture: signs, lamps, fences, and unlabelled objects of a person's size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sicm_ros.render import meshes
from sicm_ros.render.builder import Builder
from sicm_ros.render.materials import PAINTS, SIGN, WALLS, generic_surface, pick
from sicm_ros.render.meshes import Mesh
from sicm_ros.render.plants import add_bush
from sicm_ros.render.textures import BRICK, COBBLE, FBM, PLAIN, STREAK

__all__ = ["add_clutter", "add_fence", "add_pole", "add_sign"]


def add_sign(b: Builder, rng: np.random.Generator, x: float, z: float, y: float, heading: float) -> None:
    """A traffic sign on its post."""
    steel = b.surface(generic_surface((0.35, 0.36, 0.37), STREAK, 40, 0.1, rng, 0.3))
    tall = rng.uniform(2.0, 3.0)
    b.add(meshes.tube((0, 0, -0.1), (0, 0, tall + 0.3), 0.035, 0.035, 0, 6, False), (x, y, z), 0.0, steel)
    kind = int(rng.integers(3))
    border, inside, ink = [
        ((0.5, 0.02, 0.02), (0.65, 0.65, 0.63), (0.02, 0.02, 0.02)),
        ((0.5, 0.02, 0.02), (0.02, 0.06, 0.35), (0.5, 0.02, 0.02)),
        ((0.02, 0.08, 0.4), (0.02, 0.08, 0.4), (0.65, 0.65, 0.65)),
        ((0.6, 0.45, 0.02), (0.65, 0.65, 0.6), (0.05, 0.05, 0.05)),
    ][rng.integers(4)]
    row = b.surface([SIGN, *border, kind, *inside, *ink, float(rng.integers(999))])
    size = rng.uniform(0.3, 0.42)
    if kind == 0:
        a = np.linspace(0, 2 * math.pi, 21)[:-1]
        rim = np.stack([np.cos(a), np.zeros(20), np.sin(a)], -1)
    elif kind == 1:
        rim = np.array([[-1, 0, -1], [1, 0, -1], [0, 0, 1.0]])
    else:
        rim = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1.0]])
    fan = np.array([[0, k, k + 1] for k in range(1, len(rim) - 1)], np.int32)
    plate = Mesh(rim, np.tile([0.0, -1.0, 0.0], (len(rim), 1)), fan, np.zeros(len(fan), np.int32))
    _add_scaled(b, plate, (x, y - tall, z - 0.06), heading, size, row)


def _add_scaled(
    b: Builder, mesh: Mesh, at: Sequence[float], heading: float, size: float | tuple[float, float], row: int
) -> None:
    """Place a flat plate that is ``size`` metres large and whose local coordinates are in [-1, 1]."""
    sx, sz = (size, size) if isinstance(size, float) else size
    b.add(mesh.stretched((sx, 1, sz)), at, heading, row)
    rows = b.instances[-1].reshape(3, 4)
    rows[0] /= sx
    rows[2] /= sz
    b.instances[-1] = rows.ravel()


def add_clutter(b: Builder, rng: np.random.Generator, x: float, z: float, y: float, heading: float) -> None:
    """An unlabelled object of a person's size, or thinner."""
    kind = int(rng.integers(8))
    turn = heading + rng.normal(0, 0.3)
    if kind == 0:
        post = b.surface(
            generic_surface(
                pick(rng, np.array([[0.4, 0.4, 0.4], [0.05, 0.05, 0.05], [0.5, 0.05, 0.04], [0.6, 0.6, 0.6]])),
                PLAIN,
                1,
                0,
                rng,
                0.1,
                (0.0, 0.0, 0.0),
            )
        )
        for k in range(int(rng.integers(1, 5))):
            b.add(
                meshes.tube((k * 1.5, 0, 0), (k * 1.5, 0, rng.uniform(0.8, 1.1)), 0.06, 0.055, 0, 8),
                (x, y, z),
                heading,
                post,
            )
    elif kind == 1:
        row = b.surface(generic_surface(pick(rng, PAINTS), FBM, 40, 0.1, rng, 0.1))
        w, d, h = rng.uniform(0.3, 0.8), rng.uniform(0.25, 0.6), rng.uniform(0.8, 1.8)
        b.add(meshes.box((-w / 2, -d / 2, 0), (w / 2, d / 2, h)), (x, y, z), turn, row)
    elif kind == 2:
        frame = b.surface(generic_surface(pick(rng, PAINTS), PLAIN, 1, 0, rng, 0.3))
        tyre = b.surface(generic_surface((0.015, 0.015, 0.015), PLAIN, 1, 0, rng))
        b.add(meshes.merge(meshes.bicycle(0, 1)), (x, y, z), turn, {0: frame, 1: tyre})
    elif kind == 3:
        row = b.surface(
            generic_surface(
                pick(rng, np.array([[0.04, 0.08, 0.05], [0.05, 0.05, 0.06], [0.3, 0.25, 0.03], [0.03, 0.05, 0.2]])),
                FBM,
                40,
                0.1,
                rng,
                0.1,
            )
        )
        for k in range(int(rng.integers(1, 4))):
            b.add(
                meshes.merge(
                    [
                        meshes.box((k * 0.7 - 0.28, -0.3, 0.05), (k * 0.7 + 0.28, 0.3, 1.0)),
                        meshes.box((k * 0.7 - 0.3, -0.35, 1.0), (k * 0.7 + 0.3, 0.33, 1.1)),
                    ]
                ),
                (x, y, z),
                turn,
                row,
            )
    elif kind == 4:
        row = b.surface([SIGN, 0.1, 0.1, 0.1, 2, *pick(rng, PAINTS), *pick(rng, PAINTS), float(rng.integers(999))])
        plate = meshes.quad([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]])
        _add_scaled(b, plate, (x, y - 1.3, z), turn + math.pi / 2 * (rng.uniform() < 0.5), (0.65, 0.95), row)
        steel = b.surface(generic_surface((0.1, 0.1, 0.1), PLAIN, 1, 0, rng))
        b.add(meshes.tube((0, 0, 0), (0, 0, 0.5), 0.08, 0.08, 0, 6, False), (x, y, z), 0.0, steel)
    elif kind == 5:
        row = b.surface(generic_surface((0.12, 0.09, 0.06), STREAK, 60, 0.4, rng))
        tall = rng.uniform(1.2, 2.0)
        b.add(meshes.tube((0, 0, 0), (0, 0, tall), 0.16, 0.13, 0, 8), (x, y, z), 0.0, row)
    elif kind == 6:
        add_bush(b, rng, x, z, y, rng.uniform(0.4, 1.0))
    else:
        row = b.surface(generic_surface(pick(rng, WALLS), COBBLE, 60, 0.2, rng))
        w, h = rng.uniform(0.35, 0.6), rng.uniform(1.2, 2.1)
        b.add(meshes.box((-w / 2, -w / 2, 0), (w / 2, w / 2, h)), (x, y, z), heading, row)


def add_pole(b: Builder, rng: np.random.Generator, x: float, z: float, y: float, side: float, heading: float) -> None:
    """A post, with or without a lamp."""
    steel = b.surface(
        generic_surface(
            pick(rng, np.array([[0.35, 0.36, 0.37], [0.08, 0.09, 0.09], [0.12, 0.2, 0.16]])),
            STREAK,
            30,
            0.1,
            rng,
            0.2,
        )
    )
    tall = rng.uniform(4.5, 9)
    parts = [meshes.tube((0, 0, -0.1), (0, 0, tall), 0.08, 0.05, 0, 8, False)]
    if rng.uniform() < 0.7:
        reach = rng.uniform(0.8, 2.5)
        parts += [
            meshes.tube((0, 0, tall), (0, side * reach, tall + 0.25), 0.045, 0.04, 0, 6, False),
            meshes.box((-0.15, side * reach - 0.35, tall + 0.18), (0.15, side * reach + 0.35, tall + 0.34)),
        ]
    b.add(meshes.merge(parts), (x, y, z), heading, steel)


def add_fence(
    b: Builder, rng: np.random.Generator, x: float, z: float, y: float, heading: float, length: float
) -> None:
    """A fence or a low wall."""
    if rng.uniform() < 0.5:
        row = b.surface(generic_surface(pick(rng, WALLS), BRICK if rng.uniform() < 0.5 else FBM, 40, 0.2, rng))
        tall = rng.uniform(0.5, 2.2)
        b.add(meshes.box((0, -0.12, -0.3), (length, 0.12, tall)), (x, y, z), heading, row)
        return
    wood = b.surface(
        generic_surface(
            pick(rng, np.array([[0.18, 0.12, 0.07], [0.3, 0.3, 0.28], [0.1, 0.12, 0.08], [0.5, 0.5, 0.48]])),
            STREAK,
            60,
            0.3,
            rng,
        )
    )
    tall, gap = rng.uniform(0.8, 1.6), rng.uniform(0.12, 0.3)
    count = min(160, int(length / gap))
    low = np.stack([np.arange(count) * gap, np.full(count, -0.02), np.zeros(count)], 1)
    high = low + [gap * rng.uniform(0.35, 0.8), 0.04, tall]
    parts = [meshes.box(a, c) for a, c in zip(low, high, strict=True)]
    parts.append(meshes.box((0, 0.02, tall * 0.75), (length, 0.06, tall * 0.85)))
    b.add(meshes.merge(parts), (x, y, z), heading, wood)
