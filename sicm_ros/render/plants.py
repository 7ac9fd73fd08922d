# SPDX-License-Identifier: Apache-2.0
"""Trees, woods, hedges and bushes."""

from __future__ import annotations

import math

import numpy as np

from sicm_ros.render import meshes
from sicm_ros.render.builder import Builder
from sicm_ros.render.materials import FOLIAGE, generic_surface, pick
from sicm_ros.render.meshes import Mesh
from sicm_ros.render.textures import STREAK

__all__ = ["LEAF_COLOURS", "LEAF_WEIGHTS", "add_bush", "add_hedge", "add_tree", "add_wood"]

LEAF_COLOURS = np.array(
    [
        [0.035, 0.065, 0.012],
        [0.05, 0.085, 0.018],
        [0.028, 0.05, 0.015],
        [0.075, 0.09, 0.02],
        [0.02, 0.038, 0.014],
        [0.12, 0.085, 0.02],
        [0.07, 0.02, 0.018],
    ]
)
LEAF_WEIGHTS = np.array([5, 5, 5, 3, 4, 1.2, 0.5])


def _foliage_row(rng: np.random.Generator) -> list[float]:
    rgb = pick(rng, LEAF_COLOURS, LEAF_WEIGHTS, 0.25)
    return [
        FOLIAGE,
        *rgb,
        rng.uniform(50, 110),
        rng.uniform(0.35, 0.65),
        rng.uniform(0, 200),
        rng.uniform(0.25, 0.6),
    ]


def add_tree(
    b: Builder, rng: np.random.Generator, x: float, z: float, y: float, height: float, radius: float, near: float
) -> None:
    """A tree at (x, z) on the ground ``y``, metres: trunk, branches, and a crown of clumps of leaves."""
    trunk_height = height * rng.uniform(0.25, 0.45)
    bark = b.surface(
        generic_surface(
            pick(rng, np.array([[0.09, 0.07, 0.05], [0.12, 0.11, 0.09], [0.05, 0.04, 0.03]])),
            STREAK,
            60,
            0.45,
            rng,
        )
    )
    lean = rng.normal(0, 0.2, 2)
    thick = rng.uniform(0.014, 0.028) * height
    branches = [meshes.tube((0, 0, -0.2), (lean[0], lean[1], trunk_height * 1.5), thick, thick * 0.5, 0, 8, False)]
    for _ in range(3 if near < 40 else 0):
        a = rng.uniform(0, 2 * math.pi)
        r = radius * 0.7
        branches.append(
            meshes.tube(
                (lean[0] * 0.7, lean[1] * 0.7, trunk_height),
                (r * math.cos(a), r * math.sin(a), trunk_height * 1.1 + 0.45 * (height - trunk_height)),
                thick * 0.45,
                thick * 0.15,
                0,
                5,
                False,
            )
        )
    b.add(meshes.merge(branches), (x, y, z), 0.0, bark)
    crown = np.array([0.0, 0.0, (height + trunk_height) / 2])
    half = np.array([radius, radius, (height - trunk_height) / 2 + 0.2])
    clumps = int(rng.integers(5, 10))
    direction = rng.standard_normal((clumps, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    clump_centre = crown + direction * half * 0.62
    clump_size = half * rng.uniform(0.35, 0.6, (clumps, 1))
    n = int(np.clip(9000 / max(near, 10), 90, 420))
    owner = rng.integers(clumps, size=n)
    d = rng.standard_normal((n, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    centres = clump_centre[owner] + d * clump_size[owner] * rng.uniform(0.55, 1.05, (n, 1))
    size = rng.uniform(0.7, 1.3, n) * radius * 0.33 * math.sqrt(420 / n)
    leaves = b.surface(_foliage_row(rng))
    # The dense inside is drawn first: what it hides need not be cut out.
    inner = [meshes.ball(6, 8).stretched(clump_size[k] * 0.72, clump_centre[k]) for k in range(clumps)]
    dark = list(b.materials[leaves])
    dark[1:4] = [v * 0.55 for v in dark[1:4]]
    b.add(meshes.merge(inner), (x, y, z), 0.0, b.surface(dark), 0.001)
    b.add(
        meshes.cards(rng, centres, size, crown - [0, 0, 0.25 * height], 0),
        (x, y, z),
        0.0,
        leaves,
        rng.uniform(0.0, 0.5) + 0.001,
    )


def add_wood(
    b: Builder,
    rng: np.random.Generator,
    x: np.ndarray,
    z: np.ndarray,
    y: np.ndarray,
    height: float,
    towards: tuple[float, float],
) -> None:
    """The edge of a wood along points x, z on the ground y, (N,) each, metres: an uneven wall of leaves."""
    n = len(x)
    rows = 7
    share = np.linspace(0, 1, rows)[:, None]
    tops = height * (0.78 + 0.16 * np.sin(np.cumsum(rng.uniform(0.1, 0.9, n))) + rng.uniform(-0.05, 0.05, n))
    tops *= np.sqrt(np.clip(np.minimum(np.arange(n), np.arange(n)[::-1]) / 4 + 0.12, 0, 1))
    bulge = rng.uniform(-1, 1, (rows, n)) * 0.05 * height + 0.12 * height * np.sin(math.pi * np.clip(share, 0.05, 0.97))
    px = x + towards[0] * bulge
    pz = z + towards[1] * bulge
    py = y + 0.3 - share * (tops + 0.3)
    # Builder axes for heading 0: (x, z, -y).
    mesh = meshes.grid_surface(np.stack([px, pz, -py], -1))
    normals = mesh.normals
    flip = normals[:, 0] * towards[0] + normals[:, 1] * towards[1] < 0
    normals = np.where(flip[:, None], -normals, normals) + np.array([0.6 * towards[0], 0.6 * towards[1], 0.5])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    leaves = b.surface(_foliage_row(rng))
    if b.materials[leaves][1] > b.materials[leaves][2]:
        b.materials[leaves][1:4] = pick(rng, LEAF_COLOURS[:5], jitter=0.25)  # single trees turn red, woods hardly
    b.materials[leaves][4] = rng.uniform(25, 50)
    b.materials[leaves][5] = rng.uniform(0.5, 0.8)
    b.add(Mesh(mesh.vertices, normals, mesh.triangles, mesh.part), (0, 0, 0), 0.0, leaves)
    count = min(700, 14 * n)
    k = rng.integers(n, size=count)
    up = rng.uniform(0.15, 1.1, count) ** 0.5
    out = 0.14 * height * np.sin(math.pi * np.clip(up, 0.05, 0.97)) + rng.uniform(-0.3, 0.6, count)
    spread = rng.normal(0, 0.8, (2, count))
    # Cards in front of the wall break its outline and its facets.
    centres = np.stack(
        [x[k] + towards[0] * out + spread[0], z[k] + towards[1] * out + spread[1], tops[k] * up - y[k]], 1
    )
    b.add(
        meshes.cards(
            rng,
            centres,
            rng.uniform(0.10, 0.24, count) * height,
            centres.mean(0) - np.array([towards[0] * 20, towards[1] * 20, 8.0]),
            0,
        ),
        (0, 0, 0),
        0.0,
        leaves,
        0.15,
    )


def add_hedge(
    b: Builder,
    rng: np.random.Generator,
    x: float,
    z: float,
    y: float,
    heading: float,
    length: float,
    width: float,
    height: float,
) -> None:
    """A trimmed hedge; metres, ``heading`` in radians."""
    leaves = b.surface(_foliage_row(rng))
    n = int(np.clip(length * height * 14, 40, 400))
    p = rng.uniform([-length / 2, -width / 2, 0.05], [length / 2, width / 2, height], (n, 3))
    face = rng.integers(3, size=n)
    p[face == 0, 1] = np.sign(p[face == 0, 1]) * width / 2
    p[face == 1, 2] = height
    p[face == 2, 0] = np.sign(p[face == 2, 0]) * length / 2
    b.add(
        meshes.cards(rng, p, rng.uniform(0.25, 0.5, n), (0, 0, height * 0.3), 0),
        (x, y, z),
        heading,
        leaves,
        rng.uniform(-0.2, 0.3) + 0.001,
    )
    core = meshes.box((-length / 2 + 0.05, -width / 2 + 0.05, 0), (length / 2 - 0.05, width / 2 - 0.05, height - 0.08))
    b.add(core, (x, y, z), heading, leaves)


def add_bush(b: Builder, rng: np.random.Generator, x: float, z: float, y: float, radius: float) -> None:
    """A round bush; metres."""
    leaves = b.surface(_foliage_row(rng))
    n = int(np.clip(60 * radius * radius, 40, 200))
    d = rng.standard_normal((n, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    d[:, 2] = np.abs(d[:, 2])
    b.add(
        meshes.cards(rng, d * radius * rng.uniform(0.7, 1.05, (n, 1)), rng.uniform(0.25, 0.6, n), (0, 0, 0), 0),
        (x, y, z),
        0.0,
        leaves,
        0.001,
    )
    b.add(meshes.ball(6, 8).stretched((radius * 0.8, radius * 0.8, radius * 0.85)), (x, y, z), 0.0, leaves)
