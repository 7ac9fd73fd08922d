# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes of what stands beside a road, in the object's own axes: x forward, y left, z up, metres.

A mesh carries for each triangle a part number; the scene gives each part a surface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = [
    "BODY_TYPES",
    "BodyType",
    "Mesh",
    "ball",
    "box",
    "car",
    "cards",
    "cylinder",
    "cyclist",
    "merge",
    "pedestrian",
    "quad",
    "tube",
    "wheel",
]


@dataclass(frozen=True)
class Mesh:
    """``vertices`` (N, 3) metres, unit ``normals`` (N, 3), ``triangles`` (M, 3) vertex numbers, ``part`` (M,)."""

    vertices: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray
    part: np.ndarray

    def with_part(self, part: int) -> Mesh:
        """The same surface as one part."""
        return Mesh(self.vertices, self.normals, self.triangles, np.full(len(self.triangles), part, np.int32))

    def stretched(self, scale: Sequence[float], shift: Sequence[float] = (0.0, 0.0, 0.0)) -> Mesh:
        """Scaled along its axes, then moved."""
        s = np.asarray(scale, np.float64)
        normals = self.normals / s
        normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        return Mesh(self.vertices * s + np.asarray(shift), normals, self.triangles, self.part)

    def turned(self, angle: float) -> Mesh:
        """Turned by ``angle`` radians about the z axis (x towards y)."""
        c, s = math.cos(angle), math.sin(angle)
        r = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        return Mesh(self.vertices @ r.T, self.normals @ r.T, self.triangles, self.part)

    def filling(self, length: float, width: float, height: float) -> Mesh:
        """Stretched so that it exactly fills a box that is centred in x and y and stands on z = 0."""
        low, high = self.vertices.min(0), self.vertices.max(0)
        scale = np.array([length, width, height]) / np.maximum(high - low, 1e-6)
        shift = np.array([-length / 2, -width / 2, 0.0]) - low * scale
        return self.stretched(scale, shift)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """Several meshes as one."""
    offsets = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.triangles + o for m, o in zip(meshes, offsets, strict=True)]).astype(np.int32),
        np.concatenate([m.part for m in meshes]),
    )


def _grid_triangles(rows: int, columns: int) -> np.ndarray:
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = (r * columns + c).ravel()
    return np.concatenate(
        [np.stack([a, a + 1, a + columns], 1), np.stack([a + 1, a + columns + 1, a + columns], 1)]
    ).astype(np.int32)


def grid_surface(points: np.ndarray, part: int = 0) -> Mesh:
    """A smooth surface through a grid of points (rows, columns, 3), metres."""
    rows, columns = points.shape[:2]
    du = np.gradient(points, axis=1)
    dv = np.gradient(points, axis=0)
    normals = np.cross(du, dv).reshape(-1, 3)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    triangles = _grid_triangles(rows, columns)
    return Mesh(points.reshape(-1, 3).astype(np.float64), normals, triangles, np.full(len(triangles), part, np.int32))


_BOX_FACES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
_BOX_NORMALS = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]], np.float64)
_BOX_TRIANGLES = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * f for f in range(6)]).astype(np.int32)


_UNIT_CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
_QUAD_TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]], np.int32)


def box(low: Sequence[float], high: Sequence[float], part: int = 0) -> Mesh:
    """An axis-aligned box."""
    corners = _UNIT_CORNERS * (np.asarray(high, np.float64) - np.asarray(low, np.float64)) + np.asarray(low, np.float64)
    return Mesh(
        corners[_BOX_FACES].reshape(-1, 3), np.repeat(_BOX_NORMALS, 4, 0), _BOX_TRIANGLES, np.full(12, part, np.int32)
    )


def quad(points: Sequence[Sequence[float]], part: int = 0) -> Mesh:
    """A flat face with four corners, (4, 3), metres."""
    p = np.asarray(points, np.float64)
    (ax, ay, az), (bx, by, bz) = p[1] - p[0], p[3] - p[0]
    n = np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
    n /= max(math.sqrt(float(n @ n)), 1e-9)
    return Mesh(p, np.repeat(n[None], 4, 0), _QUAD_TRIANGLES, np.full(2, part, np.int32))


@lru_cache(maxsize=8)
def ball(rows: int = 8, columns: int = 12) -> Mesh:
    """The sphere of radius 1."""
    a = np.linspace(0, math.pi, rows + 1)[:, None]
    b = np.linspace(0, 2 * math.pi, columns + 1)[None]
    p = np.stack(np.broadcast_arrays(np.sin(a) * np.cos(b), np.sin(a) * np.sin(b), np.cos(a)), -1).reshape(-1, 3)
    triangles = _grid_triangles(rows + 1, columns + 1)
    return Mesh(p, p.copy(), triangles, np.zeros(len(triangles), np.int32))


@lru_cache(maxsize=32)
def _tube_parts(sides: int, caps: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ring (cos, sin), stations (share of the length, share of r0, share of r1, offset in radii) and triangles."""
    angle = np.linspace(0, 2 * math.pi, sides + 1)
    rows = [(0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0)]
    if caps:
        rows = [(0.0, 0.02, 0.0, -0.9), (0.0, 0.75, 0.0, -0.6), *rows, (1.0, 0.0, 0.75, 0.6), (1.0, 0.0, 0.02, 0.9)]
    return np.stack([np.cos(angle), np.sin(angle)], 1), np.array(rows), _grid_triangles(len(rows), sides + 1)


def tube(
    start: Sequence[float], end: Sequence[float], r0: float, r1: float, part: int = 0, sides: int = 8, caps: bool = True
) -> Mesh:
    """A round rod from ``start`` to ``end`` with radii ``r0`` and ``r1``, metres; ``caps`` adds rounded ends."""
    ring, rows, triangles = _tube_parts(sides, caps)
    ax, ay, az = end[0] - start[0], end[1] - start[1], end[2] - start[2]
    length = math.sqrt(ax * ax + ay * ay + az * az) + 1e-9
    ax, ay, az = ax / length, ay / length, az / length
    if abs(az) < 0.9:
        flat = math.hypot(ax, ay)
        side = (ay / flat, -ax / flat, 0.0)
    else:
        flat = math.hypot(ay, az)
        side = (0.0, az / flat, -ay / flat)
    other = (ay * side[2] - az * side[1], az * side[0] - ax * side[2], ax * side[1] - ay * side[0])
    radial = ring @ np.array([side, other])
    axis = np.array([ax, ay, az])
    reach = rows[:, 0] * length + rows[:, 3] * np.where(rows[:, 0] > 0, r1, r0)
    radius = rows[:, 1] * r0 + rows[:, 2] * r1
    vertices = np.asarray(start, np.float64) + reach[:, None, None] * axis + radius[:, None, None] * radial
    normals = radial * np.sqrt(1 - rows[:, 3] ** 2)[:, None, None] + rows[:, 3][:, None, None] * axis
    return Mesh(vertices.reshape(-1, 3), normals.reshape(-1, 3), triangles, np.full(len(triangles), part, np.int32))


def cylinder(radius: float, half: float, part: int = 0, sides: int = 16, bevel: float = 0.12) -> Mesh:
    """A short cylinder about the y axis with bevelled edges (a wheel's tyre and disc)."""
    angle = np.linspace(0, 2 * math.pi, sides + 1)
    c, s = np.cos(angle), np.sin(angle)
    parts = []
    inner = radius * (1 - bevel)
    profile = [(-half, inner), (-half * 0.7, radius), (half * 0.7, radius), (half, inner)]
    points = np.stack([np.stack([r * c, np.full_like(c, y), r * s], -1) for y, r in profile])
    tread = grid_surface(points, part)
    radial = np.tile(np.stack([c, np.zeros_like(c), s], -1), (len(profile), 1))
    parts.append(Mesh(tread.vertices, radial, tread.triangles, tread.part))
    for sign in (-1.0, 1.0):
        rim = np.stack([inner * c[:-1], np.full(sides, sign * half), inner * s[:-1]], -1)
        vertices = np.concatenate([[[0.0, sign * half * 0.9, 0.0]], rim])
        index = np.arange(sides)
        triangles = np.stack([np.zeros(sides, int), 1 + index, 1 + (index + 1) % sides], 1).astype(np.int32)
        parts.append(
            Mesh(vertices, np.tile([0.0, sign, 0.0], (sides + 1, 1)), triangles, np.full(sides, part, np.int32))
        )
    return merge(parts)


@lru_cache(maxsize=4)
def _unit_wheel(sides: int) -> Mesh:
    return cylinder(1.0, 1.0, 0, sides)


def wheel(radius: float, width: float, part: int, sides: int = 16) -> Mesh:
    """A wheel about the y axis, centred at the origin."""
    return _unit_wheel(sides).stretched((radius, width / 2, radius)).with_part(part)


@dataclass(frozen=True)
class BodyType:
    """Side profile of a car, as fractions of its length from the front (s) and of its height (h)."""

    name: str
    windscreen: tuple[float, float]  # s of its base and of its top
    rear: tuple[float, float]  # s of the rear window's top and of its base
    nose: float  # h of the bonnet's leading edge
    bonnet: float  # h at the windscreen's base
    belt: float  # h of the windows' lower edge
    deck: float  # h of the boot lid (or of the belt)
    sill: float
    wheels: tuple[float, float]
    radius: float  # of the wheels, metres
    pillars: tuple[float, float]
    round_front: float
    round_rear: float


BODY_TYPES: dict[str, BodyType] = {
    "hatch": BodyType(
        "hatch", (0.25, 0.43), (0.86, 0.965), 0.46, 0.60, 0.62, 0.64, 0.17, (0.18, 0.80), 0.30, (0.56, 0.78), 0.16, 0.09
    ),
    "sedan": BodyType(
        "sedan", (0.27, 0.43), (0.70, 0.84), 0.46, 0.60, 0.63, 0.66, 0.16, (0.18, 0.79), 0.31, (0.53, 0.70), 0.16, 0.13
    ),
    "estate": BodyType(
        "estate",
        (0.26, 0.40),
        (0.91, 0.975),
        0.46,
        0.60,
        0.62,
        0.64,
        0.16,
        (0.18, 0.78),
        0.31,
        (0.51, 0.70),
        0.16,
        0.10,
    ),
    "suv": BodyType(
        "suv", (0.26, 0.38), (0.89, 0.975), 0.52, 0.62, 0.63, 0.64, 0.20, (0.18, 0.79), 0.36, (0.52, 0.74), 0.14, 0.09
    ),
    "compact": BodyType(
        "compact",
        (0.19, 0.41),
        (0.85, 0.965),
        0.47,
        0.58,
        0.61,
        0.62,
        0.17,
        (0.17, 0.83),
        0.28,
        (0.60, 0.84),
        0.20,
        0.12,
    ),
    "van": BodyType(
        "van", (0.14, 0.27), (0.965, 0.99), 0.40, 0.52, 0.55, 0.56, 0.15, (0.17, 0.79), 0.33, (0.36, 0.64), 0.12, 0.05
    ),
    "cab": BodyType(
        "cab", (0.02, 0.10), (0.96, 0.99), 0.30, 0.45, 0.48, 0.48, 0.12, (0.5, 0.5), 0.45, (0.75, 0.9), 0.12, 0.05
    ),
}

# Parts of a car.
BODY, CABIN_SIDE, CABIN, DARK = range(4)


def _interp(x: np.ndarray, points: Sequence[tuple[float, float]]) -> np.ndarray:
    return np.interp(x, [p[0] for p in points], [p[1] for p in points])


@lru_cache(maxsize=32)
def _unit_car(name: str) -> Mesh:
    """Body and cabin in a unit box: x in [-0.5, 0.5] (front +), y in [-0.5, 0.5], z in [0, 1]."""
    b = BODY_TYPES[name]
    s = np.unique(
        np.round(
            np.concatenate(
                [
                    [0, 0.006, 0.02, 0.045, 0.08, 0.12],
                    np.linspace(0.16, 0.86, 13),
                    [*b.windscreen, *b.rear],
                    [0.9, 0.94, 0.97, 0.988, 1.0],
                ]
            ),
            4,
        )
    )
    rear_low = min(b.rear[1], 0.985)
    top = _interp(
        s,
        [
            (0, b.nose - 0.10),
            (0.006, b.nose - 0.05),
            (0.02, b.nose),
            (0.08, b.nose + 0.05),
            (b.windscreen[0], b.bonnet),
            (b.windscreen[0] + 0.05, b.belt),
            (b.rear[0], b.belt),
            (rear_low, b.deck),
            (0.988, b.deck - 0.02),
            (1.0, b.deck - 0.10),
        ],
    )
    bottom = _interp(s, [(0, 0.19), (0.02, 0.14), (0.10, 0.13), (0.88, 0.13), (0.98, 0.16), (1.0, 0.22)])
    half = np.full_like(s, 0.5)
    front = np.clip((b.round_front - s) / b.round_front, 0, 1)
    back = np.clip((s - 1 + b.round_rear) / b.round_rear, 0, 1)
    half = 0.5 * (1 - 0.26 * front**2.4 - 0.14 * back**2.4)
    # Cross-section from the middle of the floor to the middle of the bonnet: (share of half width, share of height).
    section = [
        (0.0, 0.0),
        (0.80, 0.0),
        (0.93, 0.06),
        (0.985, 0.22),
        (1.0, 0.45),
        (0.99, 0.68),
        (0.955, 0.88),
        (0.88, 0.97),
        (0.72, 1.0),
        (0.0, 1.018),
    ]
    rings = []
    for side in (1.0, -1.0):
        grid = np.stack([np.stack([0.5 - s, side * half * w, bottom + (top - bottom) * h], -1) for w, h in section], 1)
        rings.append(grid_surface(grid, BODY))
    parts = rings
    # Nose and tail caps.
    for end, nx in ((0, 1.0), (-1, -1.0)):
        for ring in (0, 1):
            sign = 1.0 if ring == 0 else -1.0
            pts = np.array(
                [[0.5 - s[end], sign * half[end] * w, bottom[end] + (top[end] - bottom[end]) * h] for w, h in section]
            )
            cap = grid_surface(np.stack([pts * [1, across, 1] for across in (1.0, 0.8, 0.5, 0.0)]), BODY)
            parts.append(Mesh(cap.vertices, np.tile([nx, 0.0, 0.0], (len(cap.vertices), 1)), cap.triangles, cap.part))
    # Cabin: sides lean inwards; its top is windscreen, roof and rear window in one.
    t = np.unique(
        np.round(
            np.concatenate(
                [
                    np.linspace(b.windscreen[0], b.windscreen[1], 5),
                    np.linspace(b.windscreen[1], b.rear[0], 9),
                    np.linspace(b.rear[0], b.rear[1], 5),
                ]
            ),
            4,
        )
    )
    crown = (b.windscreen[1] + b.rear[0]) / 2
    roof = _interp(
        t,
        [
            (b.windscreen[0], b.belt - 0.03),
            (b.windscreen[1], 0.955),
            (b.windscreen[1] + 0.05, 0.985),
            (crown, 1.0),
            (b.rear[0] - 0.04, 0.975),
            (b.rear[0], 0.95),
            (b.rear[1], b.belt - 0.02),
        ],
    )
    floor = np.full_like(t, b.belt - 0.03)
    plan = np.interp(t, s, half)
    lean = 0.30 if name != "van" and name != "cab" else 0.15

    def width_at(h: np.ndarray) -> np.ndarray:
        return plan * (0.955 - lean * (h - b.belt) / (1 - b.belt))

    edge = floor + (roof - floor) * 0.93
    for side in (1.0, -1.0):
        rows = [floor, floor + (edge - floor) * 0.5, edge]
        grid = np.stack([np.stack([0.5 - t, side * width_at(h), h], -1) for h in rows], 1)
        parts.append(grid_surface(grid, CABIN_SIDE))
        across = [(1.0, edge), (0.94, floor + (roof - floor) * 0.985), (0.75, roof), (0.0, roof + 0.0)]
        grid = np.stack([np.stack([0.5 - t, side * width_at(edge) * w, h], -1) for w, h in across], 1)
        parts.append(grid_surface(grid, CABIN))
    mesh = merge(parts)
    # Normals outwards: away from the car's axis.
    outward = mesh.vertices - np.array([0.0, 0.0, 0.42]) * [1, 1, 1]
    outward[:, 0] *= 0.3
    flip = np.sum(outward * mesh.normals, 1) < 0
    normals = np.where(flip[:, None], -mesh.normals, mesh.normals)
    return _rounded_ends(Mesh(mesh.vertices, normals, mesh.triangles, mesh.part))


# How far a car's ends draw back from the box, as shares of its length: at the sides, above the bumper, below it.
_END_REACH, _END_SIDES, _END_ABOVE, _END_BELOW = 0.2, 0.05, (0.045, 0.03), 0.02


def _end_pull(p: np.ndarray) -> np.ndarray:
    """The distance (N,) by which points (N, 3) of the unit car are moved towards its middle along x."""
    x, y, z = p.T
    near = np.clip((np.abs(x) - 0.5 + _END_REACH) / _END_REACH, 0, 1) ** 1.5
    above = np.where(x > 0, *_END_ABOVE) * np.clip((z - 0.36) / 0.3, 0, 1)
    below = _END_BELOW * np.clip((0.24 - z) / 0.12, 0, 1)
    return np.sign(x) * near * (_END_SIDES * np.abs(2 * y) ** 2.2 + above + below)


def _rounded_ends(car: Mesh) -> Mesh:
    """Rounded nose and tail: a real car reaches the ends of its box in the middle of the bumpers only."""
    p, step = car.vertices, 1e-4
    pull = _end_pull(p)
    slope = np.stack([(_end_pull(p + step * axis) - pull) / step for axis in np.eye(3)], 1)
    # Normals go with the inverse transpose of the map's Jacobian.
    along = car.normals[:, 0] / np.maximum(1 - slope[:, 0], 0.2)
    normals = np.stack([along, car.normals[:, 1] + along * slope[:, 1], car.normals[:, 2] + along * slope[:, 2]], 1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return Mesh(p - pull[:, None] * [1.0, 0.0, 0.0], normals, car.triangles, car.part)


def wheel_radius(body: BodyType, length: float, height: float) -> float:
    """Radius of a car's wheels, metres."""
    grown = body.radius * (height / 1.5 if body.name not in ("van", "cab") else 1.0)
    return min(grown, 0.27 * height, 0.14 * length)


def car(name: str, length: float, width: float, height: float) -> Mesh:
    """A car without wheels that fills (length, width, height), metres, except for its mirrors; parts BODY .. DARK."""
    b = BODY_TYPES[name]
    parts = [_unit_car(name).stretched((length, width, height))]
    if name in ("estate", "suv") and width * 10 % 2 < 1:
        # Roof rails, inside the box: just below the crown of the roof.
        for side in (-1.0, 1.0):
            parts.append(
                tube(
                    ((0.5 - b.windscreen[1] - 0.05) * length, side * width * 0.33, height * 0.985),
                    ((0.5 - b.rear[0] + 0.02) * length, side * width * 0.33, height * 0.985),
                    0.02,
                    0.02,
                    DARK,
                    5,
                )
            )
    s = b.windscreen[0] + 0.06
    for side in (-1.0, 1.0):
        y0, y1 = side * width * 0.47, side * (width * 0.5 + 0.10)
        z = (b.belt + 0.04) * height
        low = ((0.5 - s) * length - 0.05, min(y0, y1), z - 0.05)
        high = ((0.5 - s) * length + 0.05, max(y0, y1), z + 0.07)
        parts.append(box(low, high, DARK if width > 1.8 else BODY))
    return merge(parts)


# Parts of a person.
SKIN, HAIR, SHIRT, TROUSERS, SHOES, FRAME, RUBBER = range(7)


def _ellipsoid(centre: Sequence[float], radii: Sequence[float], part: int) -> Mesh:
    return ball(7, 10).stretched(radii, centre).with_part(part)


def pedestrian(rng: np.random.Generator, length: float, width: float, height: float, sitting: bool = False) -> Mesh:
    """A walking or standing person that fills the box, metres."""
    h = height if not sitting else height * 1.35
    # A long box is a long stride, a wide one arms that stand off, rather than a stretched body.
    stride = float(np.clip(math.asin(np.clip((length - 0.30) / (0.92 * h), 0.02, 0.6)), 0.04, 0.62))
    swing = stride * rng.uniform(0.6, 1.1)
    spread = float(np.clip((width - 0.50) / 2, 0.0, 0.22))
    hip, shoulder, neck = 0.50 * h, 0.80 * h, 0.85 * h
    hips, shoulders = 0.085, 0.165 * rng.uniform(0.9, 1.1)
    build = rng.uniform(0.85, 1.2)
    parts: list[Mesh] = []
    for side, phase in ((1.0, 1.0), (-1.0, -1.0)):
        leg = stride * phase
        knee_bend = 0.12 if phase < 0 else 0.03
        top = (0.0, side * hips, hip)
        if sitting:
            knee, ankle = (0.38, side * hips, hip - 0.02), (0.36, side * hips, hip - 0.40 * h + 0.1)
        else:
            knee = (math.sin(leg * 0.9) * 0.25 * h + 0.04, side * hips, hip - 0.25 * h * math.cos(leg))
            ankle = (math.sin(leg) * 0.46 * h - knee_bend, side * hips, 0.05 * h)
        parts.append(tube(top, knee, 0.085 * build, 0.062 * build, TROUSERS))
        parts.append(tube(knee, ankle, 0.062 * build, 0.045, TROUSERS))
        parts.append(_ellipsoid((ankle[0] + 0.06, ankle[1], ankle[2] - 0.03), (0.13, 0.048, 0.045), SHOES))
        arm = -swing * phase
        joint = (0.0, side * shoulders, shoulder)
        elbow = (math.sin(arm) * 0.17 * h, side * (shoulders + 0.04 + spread), shoulder - 0.17 * h * math.cos(arm))
        hand = (
            elbow[0] + math.sin(arm + 0.5) * 0.15 * h,
            elbow[1] - side * 0.02,
            elbow[2] - 0.15 * h * math.cos(arm + 0.5),
        )
        parts.append(tube(joint, elbow, 0.055 * build, 0.045 * build, SHIRT))
        bare = SKIN if rng.uniform() < 0.4 else SHIRT
        parts.append(tube(elbow, hand, 0.042, 0.034, bare))
        parts.append(_ellipsoid(hand, (0.05, 0.035, 0.06), SKIN))
    parts.append(_ellipsoid((0, 0, (hip + shoulder) / 2 + 0.02), (0.125 * build, 0.175 * build, 0.20 * h), SHIRT))
    parts.append(_ellipsoid((0, 0, shoulder - 0.03), (0.10, shoulders + 0.02, 0.07 * h), SHIRT))
    parts.append(_ellipsoid((0, 0, hip + 0.01), (0.12 * build, 0.15 * build, 0.085 * h), TROUSERS))
    if sitting:
        parts.append(box((-0.25, -0.24, hip - 0.14), (0.25, 0.24, hip - 0.07), SHOES))
        parts.append(box((-0.28, -0.22, hip - 0.42 * h), (-0.22, 0.22, hip + 0.25 * h), SHOES))
    elif rng.uniform() < 0.25:  # a coat or skirt
        parts.append(tube((0, 0, hip + 0.05), (0, 0, hip - 0.2 * h), 0.15 * build, 0.19 * build, SHIRT, caps=False))
    parts.append(tube((0, 0, shoulder), (0.01, 0, neck + 0.02), 0.06, 0.055, SKIN))
    parts.append(_ellipsoid((0.02, 0, 0.927 * h), (0.10, 0.078, 0.073 * h), SKIN))
    parts.append(_ellipsoid((-0.008, 0, 0.937 * h), (0.098, 0.086, 0.063 * h), HAIR))
    if rng.uniform() < 0.3 and not sitting:  # a bag
        x = -0.19 if rng.uniform() < 0.6 else 0.05
        parts.append(box((x - 0.09, -0.15, 0.58 * h), (x + 0.09, 0.15, 0.80 * h), SHOES))
    mesh = merge(parts)
    return mesh.filling(length, width, height)


@lru_cache(maxsize=4)
def bicycle(part_frame: int = FRAME, part_tyre: int = RUBBER) -> list[Mesh]:
    """A bicycle 1.75 m long that stands on z = 0, heading +x."""
    parts = []
    r = 0.34
    angle = np.linspace(0, 2 * math.pi, 17)
    for x in (-0.53, 0.53):
        for y, inner in ((0.018, r - 0.045), (-0.018, r - 0.045)):
            outer = np.stack([x + r * np.cos(angle), np.full(17, y * 0.4), r + r * np.sin(angle)], -1)
            ring = np.stack([x + inner * np.cos(angle), np.full(17, y), r + inner * np.sin(angle)], -1)
            parts.append(grid_surface(np.stack([outer, ring]), part_tyre))
        parts.append(tube((x, 0, r), (x, 0, 2 * r - 0.02), 0.006, 0.006, part_frame, 4, False))
        parts.append(tube((x - r + 0.02, 0, r), (x + r - 0.02, 0, r), 0.006, 0.006, part_frame, 4, False))
    for a, b in (
        ((-0.53, 0, r), (-0.08, 0, 0.30)),
        ((-0.53, 0, r), (-0.18, 0, 0.78)),
        ((-0.08, 0, 0.30), (-0.20, 0, 0.92)),
        ((-0.08, 0, 0.30), (0.38, 0, 0.75)),
        ((-0.17, 0, 0.78), (0.36, 0, 0.82)),
        ((0.53, 0, r), (0.34, 0, 0.98)),
    ):
        parts.append(tube(a, b, 0.022, 0.022, part_frame, 5, False))
    parts.append(tube((0.30, -0.27, 1.0), (0.30, 0.27, 1.0), 0.018, 0.018, part_tyre, 5, False))
    parts.append(box((-0.33, -0.07, 0.92), (-0.08, 0.07, 0.98), part_tyre))
    return parts


def cyclist(rng: np.random.Generator, length: float, width: float, height: float) -> Mesh:
    """A person on a bicycle that fills the box, metres."""
    parts = list(bicycle())
    lean = rng.uniform(0.1, 0.35)
    hip = (-0.2, 0.0, 1.0)
    shoulder = (-0.2 + math.sin(lean) * 0.5, 0.0, 1.0 + math.cos(lean) * 0.48)
    pedal = rng.uniform(0, 2 * math.pi)
    for side in (1.0, -1.0):
        a = pedal if side > 0 else pedal + math.pi
        foot = (-0.08 + 0.17 * math.cos(a), side * 0.11, 0.30 + 0.17 * math.sin(a))
        knee = ((hip[0] + foot[0]) / 2 + 0.24, side * 0.12, (hip[2] + foot[2]) / 2 + 0.08)
        parts.append(tube((hip[0], side * 0.09, hip[2]), knee, 0.08, 0.06, TROUSERS))
        parts.append(tube(knee, foot, 0.058, 0.042, TROUSERS))
        parts.append(_ellipsoid((foot[0] + 0.05, foot[1], foot[2] - 0.02), (0.13, 0.045, 0.045), SHOES))
        elbow = (shoulder[0] + 0.16, side * 0.25, shoulder[2] - 0.24)
        parts.append(tube((shoulder[0], side * 0.17, shoulder[2]), elbow, 0.05, 0.042, SHIRT))
        parts.append(tube(elbow, (0.29, side * 0.24, 1.02), 0.04, 0.034, SKIN if rng.uniform() < 0.5 else SHIRT))
    middle = tuple((np.array(hip) + np.array(shoulder)) / 2)
    parts.append(tube(hip, shoulder, 0.14, 0.155, SHIRT, 10))
    parts.append(_ellipsoid(middle, (0.13, 0.165, 0.2), SHIRT))
    head = (shoulder[0] + 0.09, 0.0, shoulder[2] + 0.22)
    parts.append(tube(shoulder, head, 0.06, 0.055, SKIN))
    parts.append(_ellipsoid(head, (0.10, 0.08, 0.125), SKIN))
    parts.append(_ellipsoid((head[0] - 0.015, 0, head[2] + 0.04), (0.115, 0.093, 0.095), HAIR))
    return merge(parts).filling(length, width, height)


def cards(
    rng: np.random.Generator, centres: np.ndarray, sizes: np.ndarray, origin: Sequence[float] | np.ndarray, part: int
) -> Mesh:
    """Leafy faces: a randomly turned quad at each of ``centres`` (N, 3) with side ``sizes`` (N,), metres.

    Normals point away from ``origin``.
    """
    n = len(centres)
    a = rng.standard_normal((n, 3))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b = np.cross(a, rng.standard_normal((n, 3)))
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    h = sizes[:, None] / 2
    corners = np.stack(
        [centres - a * h - b * h, centres + a * h - b * h, centres + a * h + b * h, centres - a * h + b * h], 1
    )
    normals = (
        corners - np.asarray(origin, np.float64) + rng.standard_normal(corners.shape) * sizes[:, None, None] * 0.25
    )
    normals /= np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-9)
    base = 4 * np.arange(n)[:, None]
    triangles = np.concatenate([base + [0, 1, 2], base + [0, 2, 3]], 1).reshape(-1, 3).astype(np.int32)
    return Mesh(corners.reshape(-1, 3), normals.reshape(-1, 3), triangles, np.full(2 * n, part, np.int32))
