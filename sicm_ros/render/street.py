# SPDX-License-Identifier: Apache-2.0
"""The street: its course, its ground, and what stands along it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sicm_ros.geometry import Object3D
from sicm_ros.render import meshes
from sicm_ros.render.builder import Builder
from sicm_ros.render.buildings import add_building
from sicm_ros.render.furniture import add_clutter, add_fence, add_pole, add_sign
from sicm_ros.render.materials import FOLIAGE, GROUND_SIZE, SHEEN, pick
from sicm_ros.render.meshes import Mesh
from sicm_ros.render.plants import LEAF_COLOURS, LEAF_WEIGHTS, add_bush, add_hedge, add_tree, add_wood

__all__ = ["Street", "ground_mesh", "ground_parameters", "surround"]

CAMERA_HEIGHT = 1.65


class Street:
    """Road coordinates, the height of the ground, and free places. All lengths are in metres."""

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
        """Coordinates of points across and along the road, from x and z: arrays of one shape."""
        along = self.s * x + self.c * z
        return self.c * x - self.s * z - self.offset - 0.5 * self.bend * along**2, along

    def world(self, lateral: np.ndarray | float, along: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """x and z from road coordinates: arrays of one shape, float64."""
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
        """y of the ground at points x, z: arrays of one shape."""
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
        """Whether a disc fits at (x, z): apart from every object and, unless ``hide``, not in front of one."""
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
        """Whether a row of discs at x, z, (N,) each, fits (a wall or a hedge)."""
        return all(self.free(float(a), float(b), radius) for a, b in zip(x, z, strict=True))


def ground_parameters(rng: np.random.Generator, street: Street) -> np.ndarray:
    """The parameters of the ground for ``surfaces.paint_ground``."""
    g = np.zeros(GROUND_SIZE)
    g[0], g[1], g[2], g[3], g[4], g[5] = street.c, street.s, street.offset, street.bend, street.left, street.right
    g[6] = rng.uniform(0.10, 0.34)
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
    g[SHEEN] = rng.uniform(0.0, 3.0)
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


def ground_mesh(street: Street) -> Mesh:
    """The ground as a mesh whose vertices are in world axes, not in those of an object."""
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


def _houses(b: Builder, rng: np.random.Generator, street: Street, side: float, edge: float) -> None:
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
                add_building(b, rng, start, turn, length, rng.uniform(7, 12), wall, ground)
                break
        along += length + rng.choice([0.0, 0.0, rng.uniform(2, 10)])


def _woods(b: Builder, rng: np.random.Generator, street: Street, side: float, edge: float) -> None:
    """The edge of a wood along one side, with gaps where somebody stands behind it."""
    back = edge + side * rng.choice([rng.uniform(7, 16), rng.uniform(14, 45)])
    a = np.arange(rng.uniform(-5, 25), rng.uniform(60, 140), 2.0)
    x, z = street.world(back + rng.normal(0, 0.5, len(a)), a)
    clear = np.array([street.free(float(p), float(q), 2.0) for p, q in zip(x, z, strict=True)])
    inwards = (-side * street.c, side * street.s)
    for stretch in np.split(np.arange(len(a)), np.nonzero(~clear)[0]):
        run = stretch[clear[stretch]]
        if len(run) > 3:
            add_wood(b, rng, x[run], z[run], street.height(x[run], z[run]), rng.uniform(4, 14), inwards)


def _greenery(b: Builder, rng: np.random.Generator, street: Street, side: float, edge: float, built: bool) -> None:
    """Trees, bushes, hedges and fences on one side."""
    road_heading = street.heading - math.pi / 2
    green = rng.uniform(0, 1.2) if built else rng.uniform(0.5, 1.6)
    for _ in range(int(rng.poisson(9 * green))):
        lateral = edge + side * rng.choice([rng.uniform(1.0, 6), rng.uniform(4, 35)])
        x, z = street.point(lateral, rng.uniform(4, 110))
        height = rng.uniform(4, 14)
        radius = height * rng.uniform(0.22, 0.4)
        if z > 3 and street.free(x, z, 0.4) and (street.free(x, z, radius * 0.8) or height > 7):
            add_tree(b, rng, x, z, street.height_at(x, z), height, radius, z)
    for _ in range(int(rng.poisson(3 if built else 6))):
        along, lateral = rng.uniform(4, 60), edge + side * rng.uniform(1.0, 12)
        x, z = street.point(lateral, along)
        y = street.height_at(x, z)
        if rng.uniform() < 0.5:
            radius = rng.uniform(0.4, 1.6)
            if street.free(x, z, radius):
                add_bush(b, rng, x, z, y, radius)
            continue
        length = rng.uniform(2, 12)
        a = np.arange(along - length / 2, along + length / 2 + 0.1, 1.0)
        xs, zs = street.world(np.full(len(a), lateral), a)
        if not street.wall_free(xs, zs, 0.6) or zs.min() < 2:
            continue
        if rng.uniform() < 0.6:
            add_hedge(b, rng, x, z, y, road_heading, length, rng.uniform(0.5, 1.1), rng.uniform(0.6, 2.2))
        else:
            add_fence(b, rng, float(xs[0]), float(zs[0]), y, road_heading, length)


def _furniture(b: Builder, rng: np.random.Generator, street: Street, side: float, edge: float) -> None:
    """Lamps, signs and unlabelled things of a person's size on one side; a few may stand before a labelled object."""
    road_heading = street.heading - math.pi / 2
    for _ in range(int(rng.poisson(2.5))):
        x, z = street.point(edge + side * rng.uniform(0.4, 1.5), rng.uniform(6, 60))
        if street.free(x, z, 0.15, hide=rng.uniform() < 0.15) and z > 3:
            if rng.uniform() < 0.5:
                add_pole(b, rng, x, z, street.height_at(x, z), -side, road_heading)
            else:
                add_sign(b, rng, x, z, street.height_at(x, z), rng.normal(0, 0.2))
    for _ in range(int(rng.poisson(5))):
        x, z = street.point(edge + side * rng.uniform(0.3, 7), rng.uniform(4, 40))
        if z > 3 and street.free(x, z, 0.9, hide=rng.uniform() < 0.08):
            add_clutter(b, rng, x, z, street.height_at(x, z), road_heading)


def _far_end(b: Builder, rng: np.random.Generator, street: Street) -> None:
    """What closes the view: trees where the road disappears, and a ragged skyline of far trees or hills."""
    if rng.uniform() < 0.7:
        lateral = np.arange(-90, 90, 3.0)
        gap = rng.uniform(-15, 15) if rng.uniform() < 0.7 else 1e3
        x, z = street.world(lateral, rng.uniform(75, 140) + rng.normal(0, 2, len(lateral)))
        for run in (np.nonzero(lateral < gap - 5)[0], np.nonzero(lateral > gap + 5)[0]):
            if len(run) > 3 and street.wall_free(x[run], z[run], 1.5):
                ground = street.height(x[run], z[run])
                add_wood(b, rng, x[run], z[run], ground, rng.uniform(6, 16), (-street.s, -street.c))
    count = 90
    angle = np.linspace(-1.2, 1.2, count)
    for distance, low, high in ((rng.uniform(130, 170), 1.0, 10.0), (rng.uniform(230, 300), 6.0, 26.0)):
        tops = low + (high - low) * np.abs(np.cumsum(rng.normal(0, 0.16, count)) + rng.uniform(0, 1)) % 1.0
        x, z = distance * np.sin(angle), distance * np.cos(angle)
        y = street.height(x, z) + 3
        # The builder's axes for heading 0 are (x, z, -y).
        mesh = meshes.grid_surface(np.stack([np.stack([x, z, -y], -1), np.stack([x, z, tops + 3 - y], -1)]))
        normals = np.tile([0.0, -0.8, 0.6], (len(mesh.vertices), 1))
        row = b.surface([FOLIAGE, *pick(rng, LEAF_COLOURS, LEAF_WEIGHTS), 6.0, 0.4, 3.0, 0.5])
        b.add(Mesh(mesh.vertices, normals, mesh.triangles, mesh.part), (0, 0, 0), 0.0, row, casts=False)


def surround(b: Builder, rng: np.random.Generator, street: Street) -> None:
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
