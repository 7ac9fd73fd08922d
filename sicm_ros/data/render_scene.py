# SPDX-License-Identifier: Apache-2.0
"""A street around given objects: where things stand, what they are made of, and the light.

The scene is built once in the label frame (x right, y down, z forward, metres) and drawn from both cameras.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from sicm_ros.data import render_kernels as kernels
from sicm_ros.data import render_meshes as meshes
from sicm_ros.data.render_meshes import Mesh
from sicm_ros.geometry import Object3D

__all__ = ["Light", "Scene", "build_scene"]

Vector: TypeAlias = "Sequence[float] | np.ndarray"

MATERIAL_SIZE = 40
GROUND_SIZE = 48
CAMERA_HEIGHT = 1.65

# Ground-aligned light maps: origin, cell and size, metres.
MAP_X0, MAP_Z0, MAP_CELL, MAP_COLUMNS, MAP_ROWS = -28.0, 2.0, 0.08, 700, 800


@dataclass(frozen=True)
class Light:
    """Sun, sky and air. Colours are linear RGB; an albedo of 1 under a light of 1 looks like 1."""

    sun: np.ndarray
    sun_colour: np.ndarray
    ambient_up: np.ndarray
    ambient_down: np.ndarray
    environment: np.ndarray
    haze: float


@dataclass
class Scene:
    """Everything to be drawn. ``object_triangles[k]`` is the range of object k's triangles (labelled objects first)."""

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


class _Builder:
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
        """Place a mesh: its x axis along ``heading`` (KITTI's rotation_y). Returns the world vertices."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Surfaces


def _generic(
    rgb: Vector,
    texture: int,
    texels: float,
    contrast: float,
    rng: np.random.Generator,
    gloss: float = 0,
    ribs: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ambient: float = 0.85,
) -> list[float]:
    return [
        kernels.GENERIC,
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


_PAINTS = np.array(
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
_PAINT_WEIGHTS = np.array([18, 14, 12, 19, 12, 6, 5, 3.5, 3, 2, 2, 1, 1, 1.5])
_CLOTHES = np.array(
    [
        [0.02, 0.02, 0.025],
        [0.05, 0.06, 0.09],
        [0.02, 0.03, 0.09],
        [0.30, 0.29, 0.27],
        [0.60, 0.60, 0.60],
        [0.30, 0.03, 0.03],
        [0.06, 0.10, 0.05],
        [0.12, 0.08, 0.05],
        [0.10, 0.18, 0.32],
        [0.40, 0.12, 0.16],
        [0.45, 0.36, 0.10],
        [0.10, 0.10, 0.10],
    ]
)


def _pick(
    rng: np.random.Generator, table: np.ndarray, weights: np.ndarray | None = None, jitter: float = 0.2
) -> np.ndarray:
    p = None if weights is None else weights / weights.sum()
    tint = rng.uniform(1 - jitter, 1 + jitter) * rng.uniform(0.96, 1.04, 3)
    return np.clip(table[rng.choice(len(table), p=p)] * tint, 0.008, 0.85)


def car_material(
    rng: np.random.Generator, body: meshes.BodyType, length: float, width: float, height: float, rgb: Vector
) -> list[float]:
    """The numbers that ``render_kernels`` paints a car by."""
    tall = body.rear[0] > 0.8
    vertical_lamps = tall and rng.uniform() < 0.5
    lamp_low = body.nose - 0.10
    plate = (0.42 if rng.uniform() < 0.5 else 0.28) if tall else (0.46 if rng.uniform() < 0.6 else 0.28)
    blank = body.name == "van" and rng.uniform() < 0.55
    radius = meshes.wheel_radius(body, length, height)
    return [
        0,
        *rgb,
        length,
        width,
        height,
        rng.uniform(0.6, 1.3),
        body.sill,
        body.belt,
        *body.wheels,
        radius,
        body.windscreen[0] + 0.08,
        *body.pillars,
        rng.uniform(0, 0.8) if rng.uniform() < 0.5 else 0.0,
        rng.uniform(0.24, 0.32),
        lamp_low,
        rng.uniform(0.10, 0.24),
        rng.uniform(0.36, 0.42) if vertical_lamps else rng.uniform(0.28, 0.36),
        rng.uniform(0.40, 0.46),
        rng.uniform(0.62, 0.80) if vertical_lamps else rng.uniform(0.55, 0.62),
        0.93 if not vertical_lamps else 0.95,
        rng.uniform(0, 1) if rng.uniform() < 0.5 else 0.0,
        0.36,
        plate,
        rng.uniform(),
        *body.windscreen,
        *body.rear,
        0.05 if tall else 0.03,
        0.40 if blank else 0.0,
        0.0 if blank and rng.uniform() < 0.5 else 1.0,
        0.12,
        rng.uniform(0.008, 0.03),
    ]


def _car_surfaces(
    b: _Builder,
    rng: np.random.Generator,
    body: meshes.BodyType,
    length: float,
    width: float,
    height: float,
    rgb: Vector,
) -> dict[int, int]:
    row = car_material(rng, body, length, width, height, rgb)
    kinds = {meshes.BODY: kernels.CAR_BODY, meshes.CABIN_SIDE: kernels.CAR_SIDE, meshes.CABIN: kernels.CAR_GLASSHOUSE}
    surfaces = {part: b.surface([kind, *row[1:]]) for part, kind in kinds.items()}
    surfaces[meshes.DARK] = b.surface(_generic((0.02, 0.02, 0.02), kernels.PLAIN, 1, 0, rng, 0.2))
    return surfaces


def _wheel_surface(b: _Builder, rng: np.random.Generator, radius: float) -> int:
    rim = rng.uniform(0.15, 0.55) if rng.uniform() < 0.85 else 0.03
    return b.surface([kernels.WHEEL, rim, 0, 0, radius, rng.integers(4, 9), rng.uniform()])


def _add_car(
    b: _Builder,
    rng: np.random.Generator,
    name: str,
    size: tuple[float, float, float],
    at: Sequence[float],
    heading: float,
    detail: int,
    rgb: Vector,
) -> list[np.ndarray]:
    length, width, height = size
    body = meshes.BODY_TYPES[name]
    surfaces = _car_surfaces(b, rng, body, length, width, height, rgb)
    out = [b.add(meshes.car(name, length, width, height), at, heading, surfaces)]
    c, s = math.cos(heading), math.sin(heading)
    radius = meshes.wheel_radius(body, length, height)
    # Each wheel is placed by itself: its surface is drawn about its own axis.
    tyre, rubber = meshes.wheel(radius, 0.2, 0, detail), _wheel_surface(b, rng, radius)
    for station in sorted(set(body.wheels)):
        for side in (-1.0, 1.0):
            fwd, left = (0.5 - station) * length, side * (width / 2 - 0.098)
            centre = (at[0] + c * fwd + s * left, at[1] - radius, at[2] - s * fwd + c * left)
            out.append(b.add(tyre, centre, heading, rubber))
    return out


def _add_truck(
    b: _Builder,
    rng: np.random.Generator,
    size: tuple[float, float, float],
    at: Sequence[float],
    heading: float,
    detail: int,
    trailer_only: bool = False,
) -> list[np.ndarray]:
    length, width, height = size
    out = []
    c, s = math.cos(heading), math.sin(heading)
    rgb = _pick(rng, _PAINTS, _PAINT_WEIGHTS)
    cab = 0.0 if trailer_only else min(2.1, 0.36 * length)
    if cab:
        cab_height = height * rng.uniform(0.72, 0.97)
        fwd = (length - cab) / 2
        out += _add_car(
            b, rng, "cab", (cab, width, cab_height), (at[0] + c * fwd, at[1], at[2] - s * fwd), heading, detail, rgb
        )
    load = rng.uniform()
    panel = b.surface(
        _generic(
            _pick(
                rng,
                np.array(
                    [
                        [0.6, 0.6, 0.6],
                        [0.7, 0.7, 0.68],
                        [0.35, 0.37, 0.4],
                        [0.08, 0.12, 0.3],
                        [0.4, 0.05, 0.04],
                        [0.1, 0.25, 0.12],
                        [0.5, 0.4, 0.1],
                    ]
                ),
            ),
            kernels.STREAK,
            30,
            0.06,
            rng,
            0.15,
            (rng.uniform(0.3, 1.2), 0.12, 0.0),
        )
    )
    dark = b.surface(_generic((0.025, 0.025, 0.027), kernels.FBM, 50, 0.2, rng))
    front = length / 2 - cab - (0.12 if cab else 0.0)
    floor = min(0.95, 0.30 * height)
    top = height if load < 0.75 else floor + 0.45 * (height - floor)
    parts = [
        meshes.box((-length / 2, -width / 2, floor), (front, width / 2, top), 0),
        meshes.box((-length / 2 + 0.1, -width * 0.38, floor * 0.55), (front, width * 0.38, floor), 1),
    ]
    if load >= 0.75:
        parts.append(meshes.box((front - 0.1, -width / 2, floor), (front, width / 2, height), 0))
    red = b.surface(_generic((0.35, 0.012, 0.012), kernels.PLAIN, 1, 0, rng, 0.2))
    for side in (-1.0, 1.0):
        y = side * (width / 2 - 0.25)
        parts.append(
            meshes.box((-length / 2 - 0.001, y - 0.16, floor * 0.72), (-length / 2 + 0.08, y + 0.16, floor * 0.9), 2)
        )
    out.append(b.add(meshes.merge(parts), at, heading, {0: panel, 1: dark, 2: red}))
    radius = min(0.45, 0.42 * floor + 0.08)
    tyre = _wheel_surface(b, rng, radius)
    axles = (
        [-length * 0.30]
        + ([-length * 0.30 + 2.1 * radius] if length > 7 else [])
        + ([length / 2 - cab * 0.55] if cab else [])
    )
    mesh = meshes.wheel(radius, 0.28, 0, detail)
    for fwd in axles:
        for side in (-1.0, 1.0):
            left = side * (width / 2 - 0.141)
            out.append(
                b.add(mesh, (at[0] + c * fwd + s * left, at[1] - radius, at[2] - s * fwd + c * left), heading, tyre)
            )
    return out


def _add_person(
    b: _Builder, rng: np.random.Generator, mesh: Mesh, at: Sequence[float], heading: float
) -> list[np.ndarray]:
    skin = np.array([0.42, 0.24, 0.16]) * rng.uniform(0.35, 1.15)
    hair = np.array([[0.02, 0.015, 0.01], [0.08, 0.045, 0.02], [0.25, 0.17, 0.08], [0.3, 0.3, 0.3]])[rng.choice(4)]
    if meshes.RUBBER in mesh.part and rng.uniform() < 0.5:
        hair = _pick(rng, _CLOTHES)
    cloth = kernels.FBM if rng.uniform() < 0.7 else kernels.STREAK
    ribs = (rng.uniform(0.06, 0.14), rng.uniform(0.2, 0.7), 0.0) if rng.uniform() < 0.2 else (0.0, 0.0, 0.0)
    surfaces = {
        meshes.SKIN: b.surface(_generic(skin, kernels.FBM, 150, 0.10, rng)),
        meshes.HAIR: b.surface(_generic(hair, kernels.STREAK, 300, 0.25, rng)),
        meshes.SHIRT: b.surface(_generic(_pick(rng, _CLOTHES), cloth, 90, 0.22, rng, ribs=ribs)),
        meshes.TROUSERS: b.surface(_generic(_pick(rng, _CLOTHES[[0, 1, 2, 2, 3, 7, 11]]), kernels.FBM, 90, 0.22, rng)),
        meshes.SHOES: b.surface(_generic(_pick(rng, _CLOTHES), kernels.FBM, 90, 0.2, rng)),
        meshes.FRAME: b.surface(_generic(_pick(rng, _PAINTS), kernels.PLAIN, 1, 0, rng, 0.4)),
        meshes.RUBBER: b.surface(_generic((0.015, 0.015, 0.015), kernels.PLAIN, 1, 0, rng)),
    }
    return [b.add(mesh, at, heading, surfaces)]


def _add_tram(
    b: _Builder, rng: np.random.Generator, size: tuple[float, float, float], at: Sequence[float], heading: float
) -> list[np.ndarray]:
    length, width, height = size
    rgb = _pick(rng, np.array([[0.55, 0.45, 0.05], [0.5, 0.03, 0.03], [0.6, 0.6, 0.6], [0.05, 0.15, 0.35]]))
    out = []
    c, s = math.cos(heading), math.sin(heading)
    for side, n in ((1.0, length), (-1.0, length), (0.0, width), (2.0, width)):
        wall = b.surface(
            [
                kernels.FACADE,
                *rgb,
                kernels.FBM,
                20,
                0.03,
                height,
                max(1.2, n / max(1, round(n / 1.5))),
                0.05,
                height,
                1.15,
                0.30 * height,
                0.75 * height,
                0,
                0.02,
                rng.integers(1000),
                *(0.03, 0.03, 0.03),
                0.3,
            ]
        )
        p = [[0, 0, 0.25], [n, 0, 0.25], [n, 0, height], [0, 0, height]]
        if side in (1.0, -1.0):
            fwd, left, turn = -length / 2, side * width / 2, heading
        else:
            fwd, left, turn = (length / 2 if side == 0 else -length / 2), -width / 2, heading - math.pi / 2
        origin = (at[0] + c * fwd + s * left, at[1], at[2] - s * fwd + c * left)
        out.append(b.add(meshes.quad(p), origin, turn, wall))
    dark = b.surface(_generic((0.05, 0.05, 0.05), kernels.FBM, 30, 0.2, rng))
    roof = meshes.merge(
        [
            meshes.box((-length / 2, -width / 2, height * 0.93), (length / 2, width / 2, height)),
            meshes.box((-length / 2 + 0.4, -width * 0.4, 0), (length / 2 - 0.4, width * 0.4, 0.5)),
        ]
    )
    out.append(b.add(roof, at, heading, dark))
    return out


def _add_misc(
    b: _Builder,
    rng: np.random.Generator,
    size: tuple[float, float, float],
    at: Sequence[float],
    heading: float,
    detail: int,
) -> list[np.ndarray]:
    length, width, height = size
    if length > 3.5 and height > 1.8:
        return _add_truck(b, rng, size, at, heading, detail)
    panel = b.surface(
        _generic(_pick(rng, _PAINTS), kernels.STREAK, 40, 0.1, rng, 0.15, (rng.uniform(0.3, 0.9), 0.2, 0.0))
    )
    dark = b.surface(_generic((0.03, 0.03, 0.03), kernels.FBM, 40, 0.2, rng))
    parts = [
        meshes.box((-length / 2, -width / 2, 0.3 * height), (length / 2 * 0.8, width / 2, height), 0),
        meshes.box((-length / 2 * 0.9, -width * 0.42, 0.0), (length / 2, width * 0.42, 0.3 * height), 1),
    ]
    return [b.add(meshes.merge(parts), at, heading, {0: panel, 1: dark})]


# Labelled boxes have a margin: shares of length, width and height that a car's body fills.
_BODY_SHARES = ((0.89, 1.0), (0.93, 1.0), (0.95, 1.0))


def _body_in_box(rng: np.random.Generator, o: Object3D) -> tuple[tuple[float, float, float], Sequence[float]]:
    """Length, width and height of a car's body, and where it stands, somewhere inside the labelled box."""
    length, width, height = (
        size * rng.uniform(*share) for size, share in zip((o.length, o.width, o.height), _BODY_SHARES, strict=True)
    )
    forward, left = rng.uniform(-0.25, 0.25) * (o.length - length), rng.uniform(-0.5, 0.5) * (o.width - width)
    c, s = math.cos(o.rotation_y), math.sin(o.rotation_y)
    return (length, width, height), (o.x + c * forward + s * left, o.y, o.z - s * forward + c * left)


def _add_object(b: _Builder, rng: np.random.Generator, o: Object3D) -> list[np.ndarray]:
    at: Sequence[float] = (o.x, o.y, o.z)
    size = (o.length, o.width, o.height)
    if o.label in ("Car", "Van"):
        size, at = _body_in_box(rng, o)
    detail = 20 if o.z < 12 else (14 if o.z < 30 else 8)
    if o.label == "Car":
        if o.height > 1.75:
            name = ["suv", "suv", "compact"][rng.integers(3)]
        elif o.length < 3.7:
            name = ["compact", "hatch", "hatch"][rng.integers(3)]
        elif o.length > 4.3:
            name = ["sedan", "estate", "sedan"][rng.integers(3)]
        else:
            name = ["hatch", "sedan", "estate", "suv" if o.height > 1.55 else "hatch"][rng.integers(4)]
        return _add_car(b, rng, name, size, at, o.rotation_y, detail, _pick(rng, _PAINTS, _PAINT_WEIGHTS))
    if o.label == "Van":
        name = "van" if o.height > 1.9 or rng.uniform() < 0.5 else "compact"
        rgb = (
            np.array([0.68, 0.68, 0.67]) * rng.uniform(0.7, 1.1)
            if rng.uniform() < 0.5
            else _pick(rng, _PAINTS, _PAINT_WEIGHTS)
        )
        return _add_car(b, rng, name, size, at, o.rotation_y, detail, np.minimum(rgb, 0.8))
    if o.label == "Truck":
        return _add_truck(b, rng, size, at, o.rotation_y, detail)
    if o.label == "Tram":
        return _add_tram(b, rng, size, at, o.rotation_y)
    if o.label in ("Pedestrian", "Person_sitting"):
        mesh = meshes.pedestrian(rng, *size, sitting=o.label == "Person_sitting")
        return _add_person(b, rng, mesh, at, o.rotation_y)
    if o.label == "Cyclist":
        return _add_person(b, rng, meshes.cyclist(rng, *size), at, o.rotation_y)
    return _add_misc(b, rng, size, at, o.rotation_y, detail)


# ---------------------------------------------------------------------------------------------------------------------
# Ground and surroundings


class _Street:
    """Road coordinates, the height of the ground, and which places are free."""

    def __init__(self, rng: np.random.Generator, objects: Sequence[Object3D]) -> None:
        self.objects = objects
        vehicles = [o for o in objects if o.label in ("Car", "Van", "Truck") and abs(o.x) < 12]
        headings = [((o.rotation_y + math.pi / 2 + math.pi / 2) % math.pi) - math.pi / 2 for o in vehicles]
        headings = [h for h in headings if abs(h) < 0.45]
        heading = float(np.median(headings)) if headings else float(rng.normal(0, 0.04))
        self.heading = float(np.clip(heading, -0.3, 0.3))
        self.c, self.s = math.cos(self.heading), math.sin(self.heading)
        self.offset = rng.normal(0, 0.2)
        self.bend = 0.0 if rng.uniform() < 0.5 else rng.normal(0, 0.0015)
        lane = rng.uniform(2.8, 3.6)
        self.lane = lane
        self.lanes_left = int(rng.choice([0, 1, 1, 1, 2]))
        self.left = -(lane / 2 + self.lanes_left * lane + rng.uniform(0.1, 0.8))
        self.right = lane / 2 + rng.choice([0, 0, 1], p=[0.4, 0.35, 0.25]) * lane + rng.uniform(0.1, 2.4)
        self.kerb = rng.choice([0.0, 0.13, 0.16])
        self.step = 0.0 if self.kerb == 0 else rng.uniform(0.04, 0.14)
        # Ground height: a plane through the labels' bottoms, drawn towards the usual camera height, and soft rests.
        rows, rhs = (
            [[1.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 40.0]],
            [CAMERA_HEIGHT + rng.normal(0, 0.03), 20 * rng.normal(0, 0.008), 40 * rng.normal(0, 0.006)],
        )
        standing = [o for o in objects if o.z > 0]
        rows += [[1.0, o.x, o.z] for o in standing]
        rhs += [o.y for o in standing]
        self.plane = np.linalg.lstsq(np.array(rows, float), np.array(rhs, float), rcond=None)[0]
        self.spots = np.array([[o.x, o.z] for o in standing]).reshape(-1, 2)
        self.spot_rise = np.zeros(len(standing))
        if len(standing):
            self.spot_rise = np.array([o.y for o in standing]) - self._base(self.spots[:, 0], self.spots[:, 1])

    def road(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lateral and along coordinates of points."""
        along = self.s * x + self.c * z
        return self.c * x - self.s * z - self.offset - 0.5 * self.bend * along**2, along

    def world(self, lateral: np.ndarray | float, along: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """x and z of road coordinates."""
        lateral, along = np.asarray(lateral, np.float64), np.asarray(along, np.float64)
        across = lateral + self.offset + 0.5 * self.bend * along**2
        return self.c * across + self.s * along, -self.s * across + self.c * along

    def _base(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        lateral, _ = self.road(x, z)
        raised = (lateral < self.left - 0.01) | (lateral > self.right + 0.01)
        return (
            self.plane[0]
            + self.plane[1] * np.clip(x, -60, 60)
            + self.plane[2] * np.clip(z, 0, 120)
            - self.step * raised
        )

    def height(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """y of the ground at points."""
        x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
        y = self._base(x, z)
        if len(self.spots):
            d2 = (x[..., None] - self.spots[:, 0]) ** 2 + (z[..., None] - self.spots[:, 1]) ** 2
            w = np.exp(-d2 / (2 * 3.0**2))
            near = np.exp(-d2 / (2 * 1.2**2)) * 30 + w
            y = y + (near * self.spot_rise).sum(-1) / (near.sum(-1) + 0.05)
        return y

    def height_at(self, x: float, z: float) -> float:
        """y of the ground at one point."""
        return float(self.height(np.array([x]), np.array([z]))[0])

    def point(self, lateral: float, along: float) -> tuple[float, float]:
        """x and z of one point in road coordinates."""
        x, z = self.world(lateral, along)
        return float(x), float(z)

    def free(self, x: float, z: float, radius: float, hide: bool = False) -> bool:
        """Whether something round fits at (x, z): clear of every object and, unless ``hide``, not in front of one."""
        for o in self.objects:
            reach = 0.5 * math.hypot(o.length, o.width)
            if math.hypot(o.x - x, o.z - z) < reach + radius + 0.3:
                return False
            if not hide and o.z > 0 and z > 0:
                far = math.hypot(o.x, o.z) + reach
                if math.hypot(x, z) - radius < far:
                    gap = abs(math.atan2(o.x, o.z) - math.atan2(x, z))
                    if gap < (reach + 0.2) / max(math.hypot(o.x, o.z), 1) + radius / max(math.hypot(x, z), 1):
                        return False
        return True

    def wall_free(self, x: np.ndarray, z: np.ndarray, radius: float) -> bool:
        """Whether a row of points fits (a wall or a hedge)."""
        return all(self.free(float(a), float(b), radius) for a, b in zip(x, z, strict=True))


def ground_parameters(rng: np.random.Generator, street: _Street) -> np.ndarray:
    """The numbers that ``render_kernels`` paints the ground by."""
    g = np.zeros(GROUND_SIZE)
    g[0], g[1], g[2], g[3], g[4], g[5] = street.c, street.s, street.offset, street.bend, street.left, street.right
    g[6] = rng.uniform(0.10, 0.28)
    g[7] = rng.uniform(0.35, 1.2)
    g[8] = rng.normal(0.0, 0.025)
    g[9] = rng.uniform(-1, 1)
    g[10] = rng.choice([0, 0.3, 0.6])
    g[11] = rng.uniform(street.left, street.right)
    g[12] = rng.uniform(0.5, 1.0)
    marked = rng.uniform() < 0.65
    lines = [
        (-street.lane / 2, 2 if rng.uniform() < 0.75 else 1),
        (street.lane / 2, 1 + (rng.uniform() < 0.4)),
        (street.left + 0.25, rng.choice([0, 1])),
        (street.right - 0.25, rng.choice([0, 1])),
    ]
    if not marked:
        lines = [(0.0, 0)] * 4
    for k, (lateral, kind) in enumerate(lines):
        g[13 + 3 * k], g[14 + 3 * k], g[15 + 3 * k] = lateral, kind, rng.choice([6.0, 9.0, 12.0])
    g[25] = street.kerb
    g[26] = rng.uniform(0, 200)
    g[27:30] = np.array([0.20, 0.17, 0.08]) * rng.uniform(0.6, 1.2)
    if rng.uniform() < 0.18:
        g[30], g[31] = rng.uniform(8, 30), rng.choice([0.4, 3.0])
    for base in (32, 40):
        g[base] = rng.choice([0.0, 2.0, 3.0, 6.0, 30.0], p=[0.15, 0.25, 0.25, 0.2, 0.15])
        side = -1.0 if base == 32 else 1.0
        edge = street.left if base == 32 else street.right
        beyond = [
            side * (float(street.road(np.array(o.x), np.array(o.z))[0]) - edge)
            for o in street.objects
            if o.label in ("Car", "Van", "Truck") and 0 < o.z < 60
        ]
        beyond = [d for d in beyond if d > 0]
        if beyond and rng.uniform() < 0.85:
            # Where vehicles stand beside the road there is something to stand on.
            g[base] = max(g[base], max(beyond) + 3.0)
        g[base + 1] = rng.choice([0, 1, 2])
        g[base + 2] = rng.uniform(0.10, 0.34)
        g[base + 3] = rng.normal(0.04, 0.04)
        g[base + 4 : base + 7] = np.array([0.07, 0.11, 0.03]) * rng.uniform(0.6, 1.4) * rng.uniform(0.85, 1.15, 3)
    return g


def _ground_mesh(street: _Street) -> Mesh:
    """Vertices in world axes directly (not in an object's)."""
    edge = 0.02
    side = np.array([0.7, 1.6, 3, 5, 8, 13, 22, 40, 80, 150])
    lateral = np.concatenate(
        [
            street.left - edge - side[::-1],
            [street.left - edge, street.left],
            np.linspace(street.left, street.right, 8)[1:-1],
            [street.right, street.right + edge],
            street.right + edge + side,
        ]
    )
    along = np.concatenate([[-12.0, -4.0], 1.2 * 1.075 ** np.arange(72), [260.0, 330.0]])
    p, q = np.meshgrid(lateral, along)
    bend = np.clip(q, -20, 150)
    x, z = street.world(p, bend)
    x, z = x + street.s * (q - bend), z + street.c * (q - bend)
    y = street.height(x, z)
    points = np.stack([x, y, z], -1)
    surface = meshes.grid_surface(points)
    normals = surface.normals.copy()
    normals[normals[:, 1] > 0] *= -1
    # The kerb's own face would bend the normals of its neighbours.
    normals = normals * [0.5, 1, 1]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Mesh(surface.vertices, normals, surface.triangles, surface.part)


_WALLS = np.array(
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


def _facade_row(rng: np.random.Generator, blank: bool = False) -> list[float]:
    rgb = _pick(rng, _WALLS, jitter=0.15)
    texture = kernels.BRICK if rng.uniform() < 0.35 else kernels.FBM
    storey = rng.uniform(2.8, 3.5)
    pitch = rng.uniform(1.9, 4.0)
    frame = (0.6, 0.6, 0.58) if rng.uniform() < 0.6 else tuple(_pick(rng, _WALLS) * 0.4)
    low = rng.uniform(0.75, 1.1)
    return [
        kernels.FACADE,
        *rgb,
        texture,
        rng.uniform(25, 60) if texture == kernels.BRICK else rng.uniform(10, 40),
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


def _add_building(
    b: _Builder,
    rng: np.random.Generator,
    corner: tuple[float, float],
    heading: float,
    length: float,
    depth: float,
    wall: float,
    ground: float,
) -> None:
    """A house: ``corner`` (x, z) of the front wall's start, the wall runs along ``heading``, ``depth`` to its left."""
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
            _generic(
                _pick(rng, np.array([[0.28, 0.09, 0.05], [0.20, 0.08, 0.05], [0.09, 0.08, 0.08], [0.14, 0.07, 0.05]])),
                kernels.BRICK,
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
        flat = b.surface(_generic((0.2, 0.2, 0.2), kernels.FBM, 10, 0.2, rng))
        b.add(meshes.box((-0.2, -0.2, total), (length + 0.2, depth + 0.2, total + 0.35)), at(0, 0), heading, flat)


_LEAVES = np.array(
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
_LEAF_WEIGHTS = np.array([5, 5, 5, 3, 4, 1.2, 0.5])


def _foliage_row(rng: np.random.Generator) -> list[float]:
    rgb = _pick(rng, _LEAVES, _LEAF_WEIGHTS, 0.25)
    return [
        kernels.FOLIAGE,
        *rgb,
        rng.uniform(50, 110),
        rng.uniform(0.35, 0.65),
        rng.uniform(0, 200),
        rng.uniform(0.25, 0.6),
    ]


def _add_tree(
    b: _Builder, rng: np.random.Generator, x: float, z: float, y: float, height: float, radius: float, near: float
) -> None:
    trunk_height = height * rng.uniform(0.25, 0.45)
    bark = b.surface(
        _generic(
            _pick(rng, np.array([[0.09, 0.07, 0.05], [0.12, 0.11, 0.09], [0.05, 0.04, 0.03]])),
            kernels.STREAK,
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


def _add_wood(
    b: _Builder,
    rng: np.random.Generator,
    x: np.ndarray,
    z: np.ndarray,
    y: np.ndarray,
    height: float,
    towards: tuple[float, float],
) -> None:
    """The edge of a wood along the points (x, z) on the ground y: a bulging wall of leaves with a ragged top."""
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
        b.materials[leaves][1:4] = _pick(rng, _LEAVES[:5], jitter=0.25)  # single trees turn red, woods hardly
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


def _add_hedge(
    b: _Builder,
    rng: np.random.Generator,
    x: float,
    z: float,
    y: float,
    heading: float,
    length: float,
    width: float,
    height: float,
) -> None:
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


def _add_bush(b: _Builder, rng: np.random.Generator, x: float, z: float, y: float, radius: float) -> None:
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


def _add_sign(b: _Builder, rng: np.random.Generator, x: float, z: float, y: float, heading: float) -> None:
    steel = b.surface(_generic((0.35, 0.36, 0.37), kernels.STREAK, 40, 0.1, rng, 0.3))
    tall = rng.uniform(2.0, 3.0)
    b.add(meshes.tube((0, 0, -0.1), (0, 0, tall + 0.3), 0.035, 0.035, 0, 6, False), (x, y, z), 0.0, steel)
    kind = int(rng.integers(3))
    border, inside, ink = [
        ((0.5, 0.02, 0.02), (0.65, 0.65, 0.63), (0.02, 0.02, 0.02)),
        ((0.5, 0.02, 0.02), (0.02, 0.06, 0.35), (0.5, 0.02, 0.02)),
        ((0.02, 0.08, 0.4), (0.02, 0.08, 0.4), (0.65, 0.65, 0.65)),
        ((0.6, 0.45, 0.02), (0.65, 0.65, 0.6), (0.05, 0.05, 0.05)),
    ][rng.integers(4)]
    row = b.surface([kernels.SIGN, *border, kind, *inside, *ink, float(rng.integers(999))])
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
    b: _Builder, mesh: Mesh, at: Sequence[float], heading: float, size: float | tuple[float, float], row: int
) -> None:
    """Place a flat plate whose local coordinates stay in [-1, 1] while it is ``size`` metres large."""
    sx, sz = (size, size) if isinstance(size, float) else size
    b.add(mesh.stretched((sx, 1, sz)), at, heading, row)
    rows = b.instances[-1].reshape(3, 4)
    rows[0] /= sx
    rows[2] /= sz
    b.instances[-1] = rows.ravel()


def _add_clutter(b: _Builder, rng: np.random.Generator, x: float, z: float, y: float, heading: float) -> None:
    """Something of a person's size, or thinner, that is not a labelled object."""
    kind = int(rng.integers(8))
    turn = heading + rng.normal(0, 0.3)
    if kind == 0:
        post = b.surface(
            _generic(
                _pick(rng, np.array([[0.4, 0.4, 0.4], [0.05, 0.05, 0.05], [0.5, 0.05, 0.04], [0.6, 0.6, 0.6]])),
                kernels.PLAIN,
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
        row = b.surface(_generic(_pick(rng, _PAINTS), kernels.FBM, 40, 0.1, rng, 0.1))
        w, d, h = rng.uniform(0.3, 0.8), rng.uniform(0.25, 0.6), rng.uniform(0.8, 1.8)
        b.add(meshes.box((-w / 2, -d / 2, 0), (w / 2, d / 2, h)), (x, y, z), turn, row)
    elif kind == 2:
        frame = b.surface(_generic(_pick(rng, _PAINTS), kernels.PLAIN, 1, 0, rng, 0.3))
        tyre = b.surface(_generic((0.015, 0.015, 0.015), kernels.PLAIN, 1, 0, rng))
        b.add(meshes.merge(meshes.bicycle(0, 1)), (x, y, z), turn, {0: frame, 1: tyre})
    elif kind == 3:
        row = b.surface(
            _generic(
                _pick(rng, np.array([[0.04, 0.08, 0.05], [0.05, 0.05, 0.06], [0.3, 0.25, 0.03], [0.03, 0.05, 0.2]])),
                kernels.FBM,
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
        row = b.surface(
            [kernels.SIGN, 0.1, 0.1, 0.1, 2, *_pick(rng, _PAINTS), *_pick(rng, _PAINTS), float(rng.integers(999))]
        )
        plate = meshes.quad([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]])
        _add_scaled(b, plate, (x, y - 1.3, z), turn + math.pi / 2 * (rng.uniform() < 0.5), (0.65, 0.95), row)
        steel = b.surface(_generic((0.1, 0.1, 0.1), kernels.PLAIN, 1, 0, rng))
        b.add(meshes.tube((0, 0, 0), (0, 0, 0.5), 0.08, 0.08, 0, 6, False), (x, y, z), 0.0, steel)
    elif kind == 5:
        row = b.surface(_generic((0.12, 0.09, 0.06), kernels.STREAK, 60, 0.4, rng))
        tall = rng.uniform(1.2, 2.0)
        b.add(meshes.tube((0, 0, 0), (0, 0, tall), 0.16, 0.13, 0, 8), (x, y, z), 0.0, row)
    elif kind == 6:
        _add_bush(b, rng, x, z, y, rng.uniform(0.4, 1.0))
    else:
        row = b.surface(_generic(_pick(rng, _WALLS), kernels.COBBLE, 60, 0.2, rng))
        w, h = rng.uniform(0.35, 0.6), rng.uniform(1.2, 2.1)
        b.add(meshes.box((-w / 2, -w / 2, 0), (w / 2, w / 2, h)), (x, y, z), heading, row)


def _add_pole(b: _Builder, rng: np.random.Generator, x: float, z: float, y: float, side: float, heading: float) -> None:
    steel = b.surface(
        _generic(
            _pick(rng, np.array([[0.35, 0.36, 0.37], [0.08, 0.09, 0.09], [0.12, 0.2, 0.16]])),
            kernels.STREAK,
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


def _add_fence(
    b: _Builder, rng: np.random.Generator, x: float, z: float, y: float, heading: float, length: float
) -> None:
    if rng.uniform() < 0.5:
        row = b.surface(
            _generic(_pick(rng, _WALLS), kernels.BRICK if rng.uniform() < 0.5 else kernels.FBM, 40, 0.2, rng)
        )
        tall = rng.uniform(0.5, 2.2)
        b.add(meshes.box((0, -0.12, -0.3), (length, 0.12, tall)), (x, y, z), heading, row)
        return
    wood = b.surface(
        _generic(
            _pick(rng, np.array([[0.18, 0.12, 0.07], [0.3, 0.3, 0.28], [0.1, 0.12, 0.08], [0.5, 0.5, 0.48]])),
            kernels.STREAK,
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


def _houses(b: _Builder, rng: np.random.Generator, street: _Street, side: float, edge: float) -> None:
    """A row of houses along one side, each as near to the road as the labelled objects allow."""
    setback = rng.uniform(2.5, 12.0)
    along = rng.uniform(-6, 12)
    while along < 130:
        length = rng.uniform(7, 24)
        for extra in (0.0, 4.0, 10.0, 20.0) if rng.uniform() < 0.85 else ():
            lateral = edge + side * (setback + extra + rng.uniform(0, 1.5))
            a = np.arange(along, along + length + 0.1, 3.0)
            x, z = street.world(np.full_like(a, lateral), a)
            if street.wall_free(x, z, 1.2):
                slope = street.heading - math.pi / 2 + math.atan(street.bend * (along + length / 2))
                wall = rng.uniform(2.4, 3.2) if rng.uniform() < 0.15 else rng.uniform(4, 14)
                # A house lies to the left of its front wall: walk it along +z on the left side, back on the right.
                start = street.point(lateral, along if side < 0 else along + length)
                turn = slope if side < 0 else slope + math.pi
                ground = street.height_at(float(x[0]), float(z[0]))
                _add_building(b, rng, start, turn, length, rng.uniform(7, 12), wall, ground)
                break
        along += length + rng.choice([0.0, 0.0, rng.uniform(2, 10)])


def _woods(b: _Builder, rng: np.random.Generator, street: _Street, side: float, edge: float) -> None:
    """The edge of a wood along one side, with gaps where somebody stands behind it."""
    back = edge + side * rng.choice([rng.uniform(7, 16), rng.uniform(14, 45)])
    a = np.arange(rng.uniform(-5, 25), rng.uniform(60, 140), 2.0)
    x, z = street.world(back + rng.normal(0, 0.5, len(a)), a)
    clear = np.array([street.free(float(p), float(q), 2.0) for p, q in zip(x, z, strict=True)])
    inwards = (-side * street.c, side * street.s)
    for stretch in np.split(np.arange(len(a)), np.nonzero(~clear)[0]):
        run = stretch[clear[stretch]]
        if len(run) > 3:
            _add_wood(b, rng, x[run], z[run], street.height(x[run], z[run]), rng.uniform(4, 14), inwards)


def _greenery(b: _Builder, rng: np.random.Generator, street: _Street, side: float, edge: float, built: bool) -> None:
    """Trees, bushes, hedges and fences on one side."""
    road_heading = street.heading - math.pi / 2
    green = rng.uniform(0, 1.2) if built else rng.uniform(0.5, 1.6)
    for _ in range(int(rng.poisson(9 * green))):
        lateral = edge + side * rng.choice([rng.uniform(1.0, 6), rng.uniform(4, 35)])
        x, z = street.point(lateral, rng.uniform(4, 110))
        height = rng.uniform(4, 14)
        radius = height * rng.uniform(0.22, 0.4)
        if z > 3 and street.free(x, z, 0.4) and (street.free(x, z, radius * 0.8) or height > 7):
            _add_tree(b, rng, x, z, street.height_at(x, z), height, radius, z)
    for _ in range(int(rng.poisson(3 if built else 6))):
        along, lateral = rng.uniform(4, 60), edge + side * rng.uniform(1.0, 12)
        x, z = street.point(lateral, along)
        y = street.height_at(x, z)
        if rng.uniform() < 0.5:
            radius = rng.uniform(0.4, 1.6)
            if street.free(x, z, radius):
                _add_bush(b, rng, x, z, y, radius)
            continue
        length = rng.uniform(2, 12)
        a = np.arange(along - length / 2, along + length / 2 + 0.1, 1.0)
        xs, zs = street.world(np.full(len(a), lateral), a)
        if not street.wall_free(xs, zs, 0.6) or zs.min() < 2:
            continue
        if rng.uniform() < 0.6:
            _add_hedge(b, rng, x, z, y, road_heading, length, rng.uniform(0.5, 1.1), rng.uniform(0.6, 2.2))
        else:
            _add_fence(b, rng, float(xs[0]), float(zs[0]), y, road_heading, length)


def _furniture(b: _Builder, rng: np.random.Generator, street: _Street, side: float, edge: float) -> None:
    """Lamps, signs and unlabelled things of a person's size on one side; a few may stand before a labelled object."""
    road_heading = street.heading - math.pi / 2
    for _ in range(int(rng.poisson(2.5))):
        x, z = street.point(edge + side * rng.uniform(0.4, 1.5), rng.uniform(6, 60))
        if street.free(x, z, 0.15, hide=rng.uniform() < 0.15) and z > 3:
            if rng.uniform() < 0.5:
                _add_pole(b, rng, x, z, street.height_at(x, z), -side, road_heading)
            else:
                _add_sign(b, rng, x, z, street.height_at(x, z), rng.normal(0, 0.2))
    for _ in range(int(rng.poisson(5))):
        x, z = street.point(edge + side * rng.uniform(0.3, 7), rng.uniform(4, 40))
        if z > 3 and street.free(x, z, 0.9, hide=rng.uniform() < 0.08):
            _add_clutter(b, rng, x, z, street.height_at(x, z), road_heading)


def _far_end(b: _Builder, rng: np.random.Generator, street: _Street) -> None:
    """What closes the view: trees where the road disappears, and a ragged skyline of far trees or hills."""
    if rng.uniform() < 0.7:
        lateral = np.arange(-90, 90, 3.0)
        gap = rng.uniform(-15, 15) if rng.uniform() < 0.7 else 1e3
        x, z = street.world(lateral, rng.uniform(75, 140) + rng.normal(0, 2, len(lateral)))
        for run in (np.nonzero(lateral < gap - 5)[0], np.nonzero(lateral > gap + 5)[0]):
            if len(run) > 3 and street.wall_free(x[run], z[run], 1.5):
                ground = street.height(x[run], z[run])
                _add_wood(b, rng, x[run], z[run], ground, rng.uniform(6, 16), (-street.s, -street.c))
    count = 90
    angle = np.linspace(-1.2, 1.2, count)
    for distance, low, high in ((rng.uniform(130, 170), 1.0, 10.0), (rng.uniform(230, 300), 6.0, 26.0)):
        tops = low + (high - low) * np.abs(np.cumsum(rng.normal(0, 0.16, count)) + rng.uniform(0, 1)) % 1.0
        x, z = distance * np.sin(angle), distance * np.cos(angle)
        y = street.height(x, z) + 3
        # The builder's axes for heading 0 are (x, z, -y).
        mesh = meshes.grid_surface(np.stack([np.stack([x, z, -y], -1), np.stack([x, z, tops + 3 - y], -1)]))
        normals = np.tile([0.0, -0.8, 0.6], (len(mesh.vertices), 1))
        row = b.surface([kernels.FOLIAGE, *_pick(rng, _LEAVES, _LEAF_WEIGHTS), 6.0, 0.4, 3.0, 0.5])
        b.add(Mesh(mesh.vertices, normals, mesh.triangles, mesh.part), (0, 0, 0), 0.0, row, casts=False)


def _surround(b: _Builder, rng: np.random.Generator, street: _Street) -> None:
    """Buildings, trees and everything else on both sides, clear of the labelled objects."""
    town = rng.uniform() < 0.7
    for side, edge in ((-1.0, street.left), (1.0, street.right)):
        built = rng.uniform() < (0.75 if town else 0.3)
        if built:
            _houses(b, rng, street, side, edge)
        if rng.uniform() < (0.25 if built else 0.65):
            _woods(b, rng, street, side, edge)
        _greenery(b, rng, street, side, edge, built)
        _furniture(b, rng, street, side, edge)
    _far_end(b, rng, street)


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
        ambient_up = rng.uniform(0.2, 0.55) * np.array([0.84, 0.98, 1.22])
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
    b = _Builder()
    light = _light(rng)
    street = _Street(rng, objects)
    ranges, outlines, shadows = [], [], []
    for o in objects:
        start = b.triangle_count
        outlines.append(np.concatenate(_add_object(b, rng, o)))
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
    ground = b.surface([kernels.GROUND])
    mesh = _ground_mesh(street)
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
    _surround(b, rng, street)
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
