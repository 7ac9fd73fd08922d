# SPDX-License-Identifier: Apache-2.0
"""A street around given objects: where things stand, what they are made of, and the light.

The scene is built once in the label frame (x right, y down, z forward, metres) and drawn from both cameras.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sicm_ros.geometry import Object3D
from sicm_ros.render.builder import Builder
from sicm_ros.render.materials import GROUND
from sicm_ros.render.objects import add_object
from sicm_ros.render.street import Street, ground_mesh, ground_parameters, surround

__all__ = ["Light", "Scene", "build_scene"]


# Ground-aligned light maps: origin, cell and size, metres.
MAP_X0, MAP_Z0, MAP_CELL, MAP_COLUMNS, MAP_ROWS = -28.0, 2.0, 0.08, 700, 800


class Light(NamedTuple):
    """Sun, sky and air. Colours are linear RGB; an albedo of 1 under a light of 1 gives a radiance of 1."""

    sun: np.ndarray  # (3,) unit vector to the sun
    sun_colour: np.ndarray  # (3,)
    ambient_up: np.ndarray  # (3,) of what faces up
    ambient_down: np.ndarray  # (3,)
    environment: np.ndarray  # (12,) horizon rgb, zenith rgb, cloud cover, offset and brightness, ground rgb
    haze: float  # per metre


@dataclass
class Scene:
    """Everything to be drawn, in the label frame, metres.

    ``vertices``, ``normals`` (N, 3); ``triangles`` (M, 3) vertex numbers. For each triangle (M,): ``instance`` and
    ``material``, rows of ``instances`` (world to object axes, 12 numbers each) and ``materials``; ``cutout``, the
    fraction that is missing (leaves); ``casts``, whether it casts a shadow. ``object_triangles[k]`` is the range of
    object k's triangles (labelled objects first), ``object_vertices[k]`` (n, 3) its points.
    """

    vertices: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray
    instance: np.ndarray
    material: np.ndarray
    cutout: np.ndarray
    casts: np.ndarray
    instances: np.ndarray
    materials: np.ndarray
    ground: np.ndarray
    light: Light
    object_triangles: list[tuple[int, int]]
    object_vertices: list[np.ndarray]
    shadow_boxes: list[tuple[float, float, float, float, float, float]] = field(default_factory=list)


def _light(rng: np.random.Generator) -> Light:
    overcast = rng.uniform() < 0.3
    elevation = math.radians(rng.uniform(18, 62))
    azimuth = rng.uniform(0, 2 * math.pi)
    sun = np.array(
        [math.cos(elevation) * math.sin(azimuth), -math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    )
    warm = rng.uniform(0, 0.12) * (1.6 - elevation)
    environment = np.zeros(12)
    if overcast:
        sun_colour = rng.uniform(0.0, 0.6) * np.array([1.0, 0.98, 0.95])
        ambient_up = rng.uniform(0.9, 1.4) * np.array([0.97, 1.0, 1.03])
        environment[0:3] = rng.uniform(1.6, 3.0) * np.array([0.99, 1, 1.02])
        environment[3:6] = environment[0:3] * rng.uniform(0.7, 1.0)
        environment[6], environment[8] = rng.uniform(0.4, 1.0), rng.uniform(1.6, 3.0)
    else:
        sun_colour = rng.uniform(2.2, 3.6) * np.array([1 + warm, 1.0, 1 - 1.3 * warm])
        ambient_up = rng.uniform(0.15, 0.5) * np.array([0.84, 0.98, 1.22])
        pale = rng.uniform()
        environment[0:3] = rng.uniform(1.2, 2.6) * (pale + (1 - pale) * np.array([0.84, 0.96, 1.1]))
        environment[3:6] = rng.uniform(0.5, 1.3) * (0.6 * pale + (1 - 0.6 * pale) * np.array([0.36, 0.62, 1.15]))
        environment[6], environment[8] = rng.choice([0.0, rng.uniform(0.1, 0.9)]), rng.uniform(1.8, 3.0)
    environment[7] = rng.uniform(0, 256)
    # What the sunlit and shaded ground throws back.
    ambient_down = 0.25 * ambient_up + 0.07 * sun_colour
    environment[9:12] = 0.16 * (sun_colour * 0.7 + ambient_up)
    return Light(sun, sun_colour, ambient_up, ambient_down, environment, float(np.exp(rng.uniform(-9.5, -6.2))))


def build_scene(objects: Sequence[Object3D], rng: np.random.Generator) -> Scene:
    """A scene with ``objects`` exactly where their labels say, and a random street around them."""
    b = Builder()
    light = _light(rng)
    street = Street(rng, objects)
    ranges, outlines, shadows = [], [], []
    for o in objects:
        start = b.triangle_count
        outlines.append(np.concatenate(add_object(b, rng, o)))
        ranges.append((start, b.triangle_count))
        tall = o.label in ("Car", "Van", "Truck", "Tram", "Misc")
        shadows.append(
            (
                o.x,
                o.z,
                o.rotation_y,
                o.length / 2 - (0.1 if tall else 0.2),
                o.width / 2 - (0.05 if tall else 0.15),
                0.92 if tall else 0.6,
            )
        )
    ground = b.surface([GROUND])
    mesh = ground_mesh(street)
    b.vertices.append(mesh.vertices)
    b.normals.append(mesh.normals)
    b.triangles.append(mesh.triangles + b.vertex_count)
    b.vertex_count += len(mesh.vertices)
    n = len(mesh.triangles)
    b.instance.append(np.zeros(n, np.int32))
    b.instances.append(np.zeros(12))
    b.instance[-1][:] = len(b.instances) - 1
    b.material.append(np.full(n, ground, np.int32))
    b.cutout.append(np.zeros(n))
    b.casts.append(np.zeros(n, bool))
    b.triangle_count += n
    surround(b, rng, street)
    vertices, triangles = np.concatenate(b.vertices), np.concatenate(b.triangles).astype(np.int32)
    # Labelled objects first, in their order; the rest from near to far, so that most of what is hidden is never drawn.
    labelled = ranges[-1][1] if ranges else 0
    depth = vertices[triangles[labelled:, 0], 2]
    order = np.concatenate([np.arange(labelled), labelled + np.argsort(depth, kind="stable")])
    instance, material = np.concatenate(b.instance)[order], np.concatenate(b.material)[order]
    return Scene(
        vertices,
        np.concatenate(b.normals),
        np.ascontiguousarray(triangles[order]),
        instance,
        material,
        np.concatenate(b.cutout)[order],
        np.concatenate(b.casts)[order],
        np.stack(b.instances),
        np.stack(b.materials),
        ground_parameters(rng, street),
        light,
        ranges,
        outlines,
        shadows,
    )
