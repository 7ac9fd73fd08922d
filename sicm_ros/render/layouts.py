# SPDX-License-Identifier: Apache-2.0
"""Layouts: where objects stand around a car in KITTI, and the camera that sees them."""

from __future__ import annotations

import math

import numpy as np

from sicm_ros.geometry import Object3D, StereoRig, box_corners, project, rotation_y_to_alpha

__all__ = ["KITTI_RIG", "KITTI_SIZE", "random_layout"]

KITTI_SIZE = (1242, 375)
KITTI_RIG = StereoRig(
    721.5377, 721.5377, 609.5593, 172.854, (44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905)
)

# Mean and standard deviation of (height, width, length) per class in KITTI's training labels.
_SIZES = {
    "Car": ((1.53, 1.63, 3.88), (0.14, 0.10, 0.43)),
    "Van": ((2.21, 1.90, 5.08), (0.32, 0.17, 0.83)),
    "Truck": ((3.25, 2.59, 10.1), (0.45, 0.22, 2.5)),
    "Pedestrian": ((1.76, 0.66, 0.84), (0.11, 0.14, 0.23)),
    "Cyclist": ((1.74, 0.60, 1.76), (0.09, 0.12, 0.18)),
}


def random_layout(rng: np.random.Generator, rig: StereoRig, width: int, height: int) -> list[Object3D]:
    """Objects as they stand around a car in KITTI: traffic, parked cars, pedestrians, cyclists; no boxes overlap.

    ``rig`` and the image size in pixels decide what is in view. The 2D boxes are the projections of the 3D ones.
    """
    layout = _Layout(rng, rig, width, height)
    layout.park()
    layout.drive()
    layout.walk_and_cycle()
    return layout.objects


class _Layout:
    """Objects along a road that is turned, tilted and at a height of its own; ``rng`` draws those first."""

    def __init__(self, rng: np.random.Generator, rig: StereoRig, width: int, height: int) -> None:
        self.rng, self.rig, self.width, self.height = rng, rig, width, height
        self.objects: list[Object3D] = []
        self.heading = float(np.clip(rng.normal(0, 0.06), -0.25, 0.25))
        self.pitch = rng.normal(0, 0.006)
        self.ground = 1.65 + rng.normal(0, 0.06)
        self.lane = rng.uniform(2.8, 3.6)

    def place(self, label: str, lateral: float, along: float, turn: float) -> None:
        """Add an object, metres to the side and along the road, unless it meets another or is hardly in view."""
        rng, heading = self.rng, self.heading
        x = math.cos(heading) * lateral + math.sin(heading) * along
        z = -math.sin(heading) * lateral + math.cos(heading) * along
        if not 2.5 < z < 75:
            return
        mean, deviation = _SIZES[label]
        hwl = np.array(mean) + np.array(deviation) * np.clip(rng.standard_normal(3), -2.2, 2.2)
        ry = float((heading - math.pi / 2 + turn + math.pi) % (2 * math.pi) - math.pi)
        y = self.ground + self.pitch * z + rng.normal(0, 0.03)
        reach = 0.5 * math.hypot(hwl[1], hwl[2])
        for other in self.objects:
            if math.hypot(other.x - x, other.z - z) < reach + 0.5 * math.hypot(other.length, other.width):
                if _footprints_meet(np.array([x, z]), hwl, ry, other):
                    return
        corners = box_corners(hwl, np.array([x, y, z]), ry)
        uv, depth = project(self.rig.p_left, corners)
        if depth.min() < 0.8:
            return
        low, high = uv.min(0).tolist(), uv.max(0).tolist()
        shown = (max(0.0, low[0]), max(0.0, low[1]), min(self.width - 1.0, high[0]), min(self.height - 1.0, high[1]))
        if shown[2] - shown[0] < 0.3 * (high[0] - low[0]) or shown[3] <= shown[1]:
            return
        self.objects.append(
            Object3D(
                label,
                (round(shown[0], 2), round(shown[1], 2), round(shown[2], 2), round(shown[3], 2)),
                round(float(hwl[0]), 2),
                round(float(hwl[1]), 2),
                round(float(hwl[2]), 2),
                round(x, 2),
                round(float(y), 2),
                round(z, 2),
                round(ry, 2),
                round(float(rotation_y_to_alpha(ry, x, z)), 2),
                0.0,
                0,
            )
        )

    def vehicle(self) -> str:
        """A vehicle's label."""
        return str(self.rng.choice(["Car", "Van", "Truck"], p=[0.88, 0.085, 0.035]))

    def park(self) -> None:
        """Rows at the roadside."""
        rng, lane = self.rng, self.lane
        for side in (-1.0, 1.0):
            if rng.uniform() < 0.5:
                across = side * (lane * (0.5 if side > 0 else 1.5) + rng.uniform(0.9, 2.6))
                angled = rng.uniform() < 0.2
                turn = (
                    (math.pi / 2 if rng.uniform() < 0.6 else rng.uniform(0.6, 1.2)) * rng.choice([-1, 1])
                    if angled
                    else 0.0
                )
                along = rng.uniform(2, 15)
                for _ in range(int(rng.integers(1, 9))):
                    flip = math.pi if rng.uniform() < (0.75 if side < 0 else 0.1) else 0.0
                    shift = side * 1.2 if angled else 0.0
                    self.place(
                        "Car" if angled else self.vehicle(),
                        across + shift + rng.normal(0, 0.15),
                        along,
                        turn + flip + rng.normal(0, 0.03),
                    )
                    along += (rng.uniform(2.4, 3.4) if angled else rng.uniform(5.0, 7.5)) + rng.choice(
                        [0, 0, rng.uniform(3, 15)]
                    )

    def drive(self) -> None:
        """Vehicles in both lanes, and some elsewhere."""
        rng, lane = self.rng, self.lane
        for _ in range(int(rng.poisson(1.2))):
            self.place(self.vehicle(), rng.normal(0, 0.35), rng.uniform(6, 60), rng.normal(0, 0.04))
        for _ in range(int(rng.poisson(1.2))):
            self.place(self.vehicle(), -lane + rng.normal(0, 0.35), rng.uniform(5, 65), math.pi + rng.normal(0, 0.04))
        for _ in range(int(rng.poisson(0.7))):
            self.place(
                self.vehicle(),
                rng.choice([-1, 1]) * rng.uniform(4, 22),
                rng.uniform(8, 55),
                rng.uniform(-math.pi, math.pi),
            )

    def walk_and_cycle(self) -> None:
        """Pedestrians, alone or in groups, and cyclists."""
        rng = self.rng
        for _ in range(int(rng.poisson(1.3)) if rng.uniform() < 0.55 else 0):
            lateral, along = rng.choice([-1, 1]) * rng.uniform(2.0, 9.0), rng.uniform(4, 40)
            if rng.uniform() < 0.15:
                lateral = rng.uniform(-2, 2)
            for _ in range(int(rng.choice([1, 1, 2, 3]))):
                self.place(
                    "Pedestrian",
                    lateral + rng.normal(0, 0.9),
                    along + rng.normal(0, 0.9),
                    rng.choice([0.0, math.pi]) + rng.normal(0, 0.4)
                    if rng.uniform() < 0.7
                    else rng.uniform(-math.pi, math.pi),
                )
        for _ in range(int(rng.poisson(0.45))):
            self.place(
                "Cyclist",
                rng.choice([-1, 1]) * rng.uniform(1.2, 6.0),
                rng.uniform(4, 40),
                rng.choice([0.0, math.pi]) + rng.normal(0, 0.15),
            )


def _footprints_meet(centre: np.ndarray, hwl: np.ndarray, ry: float, other: Object3D) -> bool:
    """Whether two boxes, with a small margin, overlap in bird's-eye view (separating axes).

    ``centre`` and ``hwl`` (3,) in metres, ``ry`` in radians.
    """

    def rectangle(c: np.ndarray, width: float, length: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
        axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * [length / 2 + 0.1, width / 2 + 0.1]
        return c + signs @ axes, axes

    a, axes_a = rectangle(centre, hwl[1], hwl[2], ry)
    b, axes_b = rectangle(np.array([other.x, other.z]), other.width, other.length, other.rotation_y)
    for axis in np.concatenate([axes_a, axes_b]):
        pa, pb = a @ axis, b @ axis
        if pa.max() < pb.min() or pb.max() < pa.min():
            return False
    return True
