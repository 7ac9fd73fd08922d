# SPDX-License-Identifier: Apache-2.0
"""The camera: one view of a scene, and the effects of lens, sensor and noise."""

from __future__ import annotations

import math

import numpy as np

from sicm_ros.geometry import StereoRig
from sicm_ros.render.rasteriser import SUPER_X, SUPER_Y, rasterise
from sicm_ros.render.scene import Scene
from sicm_ros.render.shading import Eye, LightMaps, Surfaces, shade_view

__all__ = ["draw_view", "photograph"]


def _camera(rig: StereoRig, translation: tuple[float, float, float]) -> np.ndarray:
    """Position (3,) of a camera in the label frame, metres; ``translation`` is the fourth column of its P."""
    tz = translation[2]
    return -np.array([(translation[0] - rig.cx * tz) / rig.fx, (translation[1] - rig.cy * tz) / rig.fy, tz])


def draw_view(
    scene: Scene,
    fine: StereoRig,
    p: np.ndarray,
    translation: tuple[float, float, float],
    width: int,
    height: int,
    tex: np.ndarray,
    maps: LightMaps,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One view: linear RGB (height, width, 3), inverse depth and triangle at each sample, projected vertices (N, 3).

    ``fine``: the rig in sample coordinates; ``p`` (3, 4) and ``translation``: those of the view's camera.
    """
    # Not a matrix product: that would wake as many threads as there are cores.
    v = np.einsum("ij,kj->ik", scene.vertices, p[:, :3]) + p[:, 3]
    q = np.zeros((height * SUPER_Y, width * SUPER_X), np.float32)
    ids = np.full(q.shape, -1, np.int32)
    rasterise(v, scene.vertices, scene.triangles, scene.cutout, tex, q, ids)
    image = np.empty((height, width, 3), np.float32)
    surfaces = Surfaces(
        v,
        scene.vertices,
        scene.normals,
        scene.triangles,
        scene.instance,
        scene.material,
        scene.instances,
        scene.materials,
        scene.ground,
    )
    eye = Eye(_camera(fine, translation), np.array([fine.fx, fine.cx, fine.fy, fine.cy]))
    shade_view(ids, surfaces, tex, scene.light, maps, eye, image)
    return image, q, ids, v


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    if sigma < 0.15:
        return image
    # Three taps are enough for the small blurs of a lens in focus.
    side = math.exp(-0.5 / sigma**2)
    a, b = side / (1 + 2 * side), 1 / (1 + 2 * side)
    for axis in (0, 1):
        pad = np.concatenate([image.take([0], axis), image, image.take([-1], axis)], axis)
        n = image.shape[axis]
        cut = [slice(None)] * 3
        parts = []
        for k in range(3):
            cut[axis] = slice(k, k + n)
            parts.append(pad[tuple(cut)])
        image = a * (parts[0] + parts[2]) + b * parts[1]
    return image


def photograph(
    image: np.ndarray,
    rng: np.random.Generator,
    exposure: np.ndarray,
    gamma: float,
    black: float,
    noise: float,
    blur: float,
) -> np.ndarray:
    """The (H, W, 3) uint8 image that a camera makes of linear RGB (H, W, 3): blur, exposure, noise, black level, gamma.

    ``exposure`` is a factor for each channel (3,), ``blur`` a standard deviation in pixels; ``noise`` and ``black`` are
    fractions of full scale.
    """
    image = np.asarray(_blur(image, blur) * exposure, np.float32)
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    grain *= np.sqrt(np.float32(noise * noise) * (np.float32(0.08) + np.minimum(image, 1)))
    image += grain
    # A linear sensor that clips, with a short shoulder.
    image -= np.float32(black)
    np.maximum(image, 0, out=image)
    bright = image > 0.85
    image[bright] = 1.15 - 0.3 * np.exp((0.85 - image[bright]) / 0.3)
    np.minimum(image, 1, out=image)
    curve = (np.linspace(0, 1, 4097) ** (1 / gamma) * 255 + 0.5).astype(np.uint8)
    return curve[(image * 4096 + 0.5).astype(np.int16)]
