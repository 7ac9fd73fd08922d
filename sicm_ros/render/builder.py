# SPDX-License-Identifier: Apache-2.0
"""Collects meshes, placed and with their materials, into the arrays of a scene."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sicm_ros.render.materials import MATERIAL_SIZE
from sicm_ros.render.meshes import Mesh

__all__ = ["Builder"]


class Builder:
    """The meshes placed so far. ``surface`` takes the row of a material and returns its number."""

    def __init__(self) -> None:
        self.vertices: list[np.ndarray] = []
        self.normals: list[np.ndarray] = []
        self.triangles: list[np.ndarray] = []
        self.instance: list[np.ndarray] = []
        self.material: list[np.ndarray] = []
        self.cutout: list[np.ndarray] = []
        self.casts: list[np.ndarray] = []
        self.instances: list[np.ndarray] = []
        self.materials: list[np.ndarray] = []
        self.vertex_count = 0
        self.triangle_count = 0

    def surface(self, row: Sequence[float]) -> int:
        full = np.zeros(MATERIAL_SIZE)
        full[: len(row)] = row
        self.materials.append(full)
        return len(self.materials) - 1

    def add(
        self,
        mesh: Mesh,
        origin: Sequence[float],
        heading: float,
        surfaces: Mapping[int, int] | int,
        cutout: Mapping[int, float] | float = 0.0,
        casts: bool = True,
    ) -> np.ndarray:
        """Place a mesh at ``origin`` (x, y, z), metres, its x axis along ``heading`` (KITTI's rotation_y, radians).

        ``surfaces`` and ``cutout`` are for all parts, or by part number. Returns the world vertices (N, 3), metres.
        """
        c, s = math.cos(heading), math.sin(heading)
        axes = np.array([[c, 0.0, -s], [s, 0.0, c], [0.0, -1.0, 0.0]])
        place = np.asarray(origin, np.float64)
        world = mesh.vertices @ axes + place
        self.vertices.append(world)
        self.normals.append(mesh.normals @ axes)
        self.triangles.append(mesh.triangles + self.vertex_count)
        self.vertex_count += len(world)
        n = len(mesh.triangles)
        self.instance.append(np.full(n, len(self.instances), np.int32))
        self.instances.append(np.concatenate([axes, -(axes @ place)[:, None]], 1).ravel())
        if isinstance(surfaces, int):
            self.material.append(np.full(n, surfaces, np.int32))
        else:
            table = np.zeros(max(surfaces) + 1, np.int32)
            for part, row in surfaces.items():
                table[part] = row
            self.material.append(table[mesh.part])
        if isinstance(cutout, float):
            self.cutout.append(np.full(n, cutout))
        else:
            holes = np.zeros(max(cutout) + 1)
            for part, value in cutout.items():
                holes[part] = value
            self.cutout.append(holes[mesh.part])
        self.casts.append(np.full(n, casts))
        self.triangle_count += n
        return world
