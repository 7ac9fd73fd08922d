# SPDX-License-Identifier: Apache-2.0
"""The labelled objects (cars, trucks, people, trams), exactly at the places of their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sicm_ros.geometry import Object3D
from sicm_ros.render import meshes
from sicm_ros.render.builder import Builder
from sicm_ros.render.materials import (
    CAR_BODY,
    CAR_GLASSHOUSE,
    CAR_SIDE,
    FACADE,
    PAINT_WEIGHTS,
    PAINTS,
    WHEEL,
    Vector,
    generic_surface,
    pick,
)
from sicm_ros.render.meshes import Mesh
from sicm_ros.render.textures import FBM, PLAIN, STREAK

__all__ = ["add_object", "car_material"]

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


def car_material(
    rng: np.random.Generator, body: meshes.BodyType, length: float, width: float, height: float, rgb: Vector
) -> list[float]:
    """The material row of a car, for ``surfaces.paint_car_body``; sizes in metres."""
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
    b: Builder,
    rng: np.random.Generator,
    body: meshes.BodyType,
    length: float,
    width: float,
    height: float,
    rgb: Vector,
) -> dict[int, int]:
    row = car_material(rng, body, length, width, height, rgb)
    kinds = {meshes.BODY: CAR_BODY, meshes.CABIN_SIDE: CAR_SIDE, meshes.CABIN: CAR_GLASSHOUSE}
    surfaces = {part: b.surface([kind, *row[1:]]) for part, kind in kinds.items()}
    surfaces[meshes.DARK] = b.surface(generic_surface((0.02, 0.02, 0.02), PLAIN, 1, 0, rng, 0.2))
    return surfaces


def _wheel_surface(b: Builder, rng: np.random.Generator, radius: float) -> int:
    rim = rng.uniform(0.15, 0.55) if rng.uniform() < 0.85 else 0.03
    return b.surface([WHEEL, rim, 0, 0, radius, rng.integers(4, 9), rng.uniform()])


def _add_car(
    b: Builder,
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
    b: Builder,
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
    rgb = pick(rng, PAINTS, PAINT_WEIGHTS)
    cab = 0.0 if trailer_only else min(2.1, 0.36 * length)
    if cab:
        cab_height = height * rng.uniform(0.72, 0.97)
        fwd = (length - cab) / 2
        out += _add_car(
            b, rng, "cab", (cab, width, cab_height), (at[0] + c * fwd, at[1], at[2] - s * fwd), heading, detail, rgb
        )
    load = rng.uniform()
    panel = b.surface(
        generic_surface(
            pick(
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
            STREAK,
            30,
            0.06,
            rng,
            0.15,
            (rng.uniform(0.3, 1.2), 0.12, 0.0),
        )
    )
    dark = b.surface(generic_surface((0.025, 0.025, 0.027), FBM, 50, 0.2, rng))
    front = length / 2 - cab - (0.12 if cab else 0.0)
    floor = min(0.95, 0.30 * height)
    top = height if load < 0.75 else floor + 0.45 * (height - floor)
    parts = [
        meshes.box((-length / 2, -width / 2, floor), (front, width / 2, top), 0),
        meshes.box((-length / 2 + 0.1, -width * 0.38, floor * 0.55), (front, width * 0.38, floor), 1),
    ]
    if load >= 0.75:
        parts.append(meshes.box((front - 0.1, -width / 2, floor), (front, width / 2, height), 0))
    red = b.surface(generic_surface((0.35, 0.012, 0.012), PLAIN, 1, 0, rng, 0.2))
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
    b: Builder, rng: np.random.Generator, mesh: Mesh, at: Sequence[float], heading: float
) -> list[np.ndarray]:
    skin = np.array([0.42, 0.24, 0.16]) * rng.uniform(0.35, 1.15)
    hair = np.array([[0.02, 0.015, 0.01], [0.08, 0.045, 0.02], [0.25, 0.17, 0.08], [0.3, 0.3, 0.3]])[rng.choice(4)]
    if meshes.RUBBER in mesh.part and rng.uniform() < 0.5:
        hair = pick(rng, _CLOTHES)
    cloth = FBM if rng.uniform() < 0.7 else STREAK
    ribs = (rng.uniform(0.06, 0.14), rng.uniform(0.2, 0.7), 0.0) if rng.uniform() < 0.2 else (0.0, 0.0, 0.0)
    surfaces = {
        meshes.SKIN: b.surface(generic_surface(skin, FBM, 150, 0.10, rng)),
        meshes.HAIR: b.surface(generic_surface(hair, STREAK, 300, 0.25, rng)),
        meshes.SHIRT: b.surface(generic_surface(pick(rng, _CLOTHES), cloth, 90, 0.22, rng, ribs=ribs)),
        meshes.TROUSERS: b.surface(generic_surface(pick(rng, _CLOTHES[[0, 1, 2, 2, 3, 7, 11]]), FBM, 90, 0.22, rng)),
        meshes.SHOES: b.surface(generic_surface(pick(rng, _CLOTHES), FBM, 90, 0.2, rng)),
        meshes.FRAME: b.surface(generic_surface(pick(rng, PAINTS), PLAIN, 1, 0, rng, 0.4)),
        meshes.RUBBER: b.surface(generic_surface((0.015, 0.015, 0.015), PLAIN, 1, 0, rng)),
    }
    return [b.add(mesh, at, heading, surfaces)]


def _add_tram(
    b: Builder, rng: np.random.Generator, size: tuple[float, float, float], at: Sequence[float], heading: float
) -> list[np.ndarray]:
    length, width, height = size
    rgb = pick(rng, np.array([[0.55, 0.45, 0.05], [0.5, 0.03, 0.03], [0.6, 0.6, 0.6], [0.05, 0.15, 0.35]]))
    out = []
    c, s = math.cos(heading), math.sin(heading)
    for side, n in ((1.0, length), (-1.0, length), (0.0, width), (2.0, width)):
        wall = b.surface(
            [
                FACADE,
                *rgb,
                FBM,
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
    dark = b.surface(generic_surface((0.05, 0.05, 0.05), FBM, 30, 0.2, rng))
    roof = meshes.merge(
        [
            meshes.box((-length / 2, -width / 2, height * 0.93), (length / 2, width / 2, height)),
            meshes.box((-length / 2 + 0.4, -width * 0.4, 0), (length / 2 - 0.4, width * 0.4, 0.5)),
        ]
    )
    out.append(b.add(roof, at, heading, dark))
    return out


def _add_misc(
    b: Builder,
    rng: np.random.Generator,
    size: tuple[float, float, float],
    at: Sequence[float],
    heading: float,
    detail: int,
) -> list[np.ndarray]:
    length, width, height = size
    if length > 3.5 and height > 1.8:
        return _add_truck(b, rng, size, at, heading, detail)
    panel = b.surface(generic_surface(pick(rng, PAINTS), STREAK, 40, 0.1, rng, 0.15, (rng.uniform(0.3, 0.9), 0.2, 0.0)))
    dark = b.surface(generic_surface((0.03, 0.03, 0.03), FBM, 40, 0.2, rng))
    parts = [
        meshes.box((-length / 2, -width / 2, 0.3 * height), (length / 2 * 0.8, width / 2, height), 0),
        meshes.box((-length / 2 * 0.9, -width * 0.42, 0.0), (length / 2, width * 0.42, 0.3 * height), 1),
    ]
    return [b.add(meshes.merge(parts), at, heading, {0: panel, 1: dark})]


# Labelled boxes have a margin: shares of length, width and height that a car's body fills.
_BODY_SHARES = ((0.89, 1.0), (0.93, 1.0), (0.95, 1.0))


def _body_in_box(rng: np.random.Generator, o: Object3D) -> tuple[tuple[float, float, float], Sequence[float]]:
    """Length, width and height of a car's body, and its place (x, y, z), metres, inside the labelled box."""
    length, width, height = (
        size * rng.uniform(*share) for size, share in zip((o.length, o.width, o.height), _BODY_SHARES, strict=True)
    )
    forward, left = rng.uniform(-0.25, 0.25) * (o.length - length), rng.uniform(-0.5, 0.5) * (o.width - width)
    c, s = math.cos(o.rotation_y), math.sin(o.rotation_y)
    return (length, width, height), (o.x + c * forward + s * left, o.y, o.z - s * forward + c * left)


def add_object(b: Builder, rng: np.random.Generator, o: Object3D) -> list[np.ndarray]:
    """Place one labelled object; returns the world vertices (N, 3), metres, of each part."""
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
        return _add_car(b, rng, name, size, at, o.rotation_y, detail, pick(rng, PAINTS, PAINT_WEIGHTS))
    if o.label == "Van":
        name = "van" if o.height > 1.9 or rng.uniform() < 0.5 else "compact"
        rgb = (
            np.array([0.68, 0.68, 0.67]) * rng.uniform(0.7, 1.1)
            if rng.uniform() < 0.5
            else pick(rng, PAINTS, PAINT_WEIGHTS)
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
