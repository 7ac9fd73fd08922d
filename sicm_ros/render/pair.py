# SPDX-License-Identifier: Apache-2.0
"""One rendered stereo pair with its labels and its disparity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sicm_ros.geometry import Object3D, StereoRig, project, rotation_y_to_alpha
from sicm_ros.render.camera import draw_view, photograph
from sicm_ros.render.layouts import KITTI_RIG
from sicm_ros.render.rasteriser import (
    SUPER_X,
    SUPER_Y,
    count_silhouettes,
    darken_under_box,
    disparity_at_centres,
    light_height_map,
)
from sicm_ros.render.scene import MAP_CELL, MAP_COLUMNS, MAP_ROWS, MAP_X0, MAP_Z0, Scene, build_scene
from sicm_ros.render.shading import LightMaps
from sicm_ros.render.textures import texture_pyramids

__all__ = ["RenderedPair", "render_pair"]

# Shares of an object's silhouette that others hide, up to which KITTI's occlusion states 0 and 1 reach; beyond the last
# one almost nothing is seen.
OCCLUSION_STATES = (0.12, 0.5, 0.9)

# An object with fewer visible pixels (of a 1242-pixel-wide image), or less of its silhouette, becomes DontCare.
LEAST_PIXELS = 30.0
LEAST_SHARE = 0.03


@dataclass(frozen=True)
class RenderedPair:
    """``left``, ``right`` (H, W, 3) uint8 RGB; ``disparity`` (H, W) float32 of the left view in pixels of that image, 0
    for the sky; ``labels`` with occlusion, truncation and 2D boxes that agree with the pixels; the ``rig`` it shows."""

    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray
    labels: list[Object3D]
    rig: StereoRig


def render_pair(layout: Sequence[Object3D], rig: StereoRig, width: int, height: int, seed: int) -> RenderedPair:
    """Render a stereo pair of a street with the objects of ``layout`` at their places.

    ``layout``: KITTI labels; DontCare is ignored. ``rig`` belongs to images of ``width`` x ``height`` pixels, at any
    resolution (``InputTransform.rig`` gives that of a network's input). Same arguments, same pixels.
    """
    if width < 8 or height < 8:
        raise ValueError(f"width, height: expected at least 8 pixels each, got {width} x {height}")
    objects = [o for o in layout if o.label != "DontCare" and o.z > -5 and min(o.height, o.width, o.length) > 0.05]
    scene_rng, camera_rng, noise_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    scene = build_scene(objects, scene_rng)
    tex = texture_pyramids()

    height_map = np.full((MAP_ROWS, MAP_COLUMNS), 1e6, np.float32)
    if scene.light.sun_colour[0] > 0.05:
        light_height_map(
            scene.vertices,
            scene.triangles,
            scene.casts,
            scene.cutout,
            tex,
            scene.light.sun,
            MAP_X0,
            MAP_Z0,
            MAP_CELL,
            height_map,
        )
    ambient = np.ones((MAP_ROWS, MAP_COLUMNS), np.float32)
    for x, z, ry, half_length, half_width, strength in scene.shadow_boxes:
        darken_under_box(ambient, MAP_X0, MAP_Z0, MAP_CELL, x, z, ry, half_length, half_width, strength, 0.16)

    fine = rig.scaled(SUPER_X, SUPER_Y)
    scale = rig.fx / KITTI_RIG.fx
    # Rectification error: the right camera looks a trace too high or low.
    tilt = camera_rng.normal(0, 0.12) * scale
    tilt = float(np.clip(tilt, -0.3 * scale, 0.3 * scale))
    p_right = fine.p_right
    p_right[1] += tilt * SUPER_Y * p_right[2]
    maps = LightMaps(height_map, ambient, MAP_X0, MAP_Z0, MAP_CELL)
    left, q, ids, v = draw_view(scene, fine, fine.p_left, fine.left_translation, width, height, tex, maps)
    right, _, _, _ = draw_view(scene, fine, p_right, fine.right_translation, width, height, tex, maps)

    disparity = np.zeros((height, width), np.float32)
    disparity_at_centres(q, rig.fx, rig.cx, np.array(rig.left_translation), np.array(rig.right_translation), disparity)

    # Auto-exposure on the lower image, then a wide random error.
    level = float(np.percentile(left[height // 3 :].mean(2), 70)) + 1e-3
    exposure = 0.5 * 2.0 ** camera_rng.normal(0.0, 0.5) / level**0.8 / 0.5**0.2
    balance = camera_rng.normal(1, 0.03, 3)
    # Cameras in the sun give black shadows and clipped highlights.
    gamma = camera_rng.uniform(0.7, 1.45)
    black = camera_rng.uniform(0.0, 0.008)
    noise = camera_rng.uniform(0.004, 0.028) * min(1.0, scale)
    blur = camera_rng.uniform(0.4, 0.85) * min(1.0, scale**0.4)
    gain = camera_rng.normal(1, 0.025) * camera_rng.normal(1, 0.008, 3)
    warp = camera_rng.normal(1, 0.012)
    left_image = photograph(left, noise_rng, exposure * balance, gamma, black, noise, blur)
    right_image = photograph(right, noise_rng, exposure * balance * gain, gamma * warp, black, noise, blur)
    labels = _labels(objects, scene, rig, width, height, ids, v)
    return RenderedPair(left_image, right_image, disparity, labels, rig)


def _labels(
    objects: Sequence[Object3D], scene: Scene, rig: StereoRig, width: int, height: int, ids: np.ndarray, v: np.ndarray
) -> list[Object3D]:
    if not objects:
        return []
    ranges = np.array(scene.object_triangles, np.int64)
    totals = np.zeros(len(objects), np.int64)
    stamp = np.full(ids.shape, -1, np.int32)
    count_silhouettes(v, scene.triangles, ranges[:, 0].copy(), ranges[:, 1].copy(), stamp, totals)
    owner = np.searchsorted(ranges[:, 1], np.arange(ranges[-1, 1]), side="right")
    labelled = ids[(ids >= 0) & (ids < ranges[-1, 1])]
    visible = np.bincount(owner[labelled], minlength=len(objects))
    pixel = SUPER_X * SUPER_Y * (rig.fx / KITTI_RIG.fx) ** 2
    labels = []
    for k, o in enumerate(objects):
        # KITTI draws boxes around the whole object, clipped to the image; wing mirrors do not count.
        outline = _inside_box(scene.object_vertices[k], o)
        uv, depth = project(rig.p_left, outline)
        if not (depth > 0.3).any():
            continue
        uv = uv[depth > 0.3]
        low, high = uv.min(0), uv.max(0)
        if (depth <= 0.3).any():
            # Part of it is beside or behind the camera: it leaves the image at that side.
            beside = outline[depth <= 0.3, 0].mean()
            if beside < 0:
                low[0] = min(low[0], -width)
            else:
                high[0] = max(high[0], 2 * width)
            high[1] = max(high[1], height)
        box = (max(low[0], 0.0), max(low[1], 0.0), min(high[0], width - 1.0), min(high[1], height - 1.0))
        if box[2] - box[0] < 0.5 or box[3] - box[1] < 0.5:
            continue
        area = (box[2] - box[0]) * (box[3] - box[1])
        truncated = float(np.clip(1 - area / max((high[0] - low[0]) * (high[1] - low[1]), 1e-6), 0, 1))
        if truncated < 0.005:
            truncated = 0.0
        hidden = 1 - visible[k] / max(totals[k], 1)
        seen = visible[k] / pixel
        state = int(np.searchsorted(OCCLUSION_STATES, hidden, side="right"))
        rounded = (round(float(box[0]), 2), round(float(box[1]), 2), round(float(box[2]), 2), round(float(box[3]), 2))
        if seen < LEAST_PIXELS or hidden > 1 - LEAST_SHARE:
            labels.append(
                Object3D("DontCare", rounded, -1.0, -1.0, -1.0, -1000.0, -1000.0, -1000.0, -10.0, -10.0, -1.0, -1)
            )
            continue
        labels.append(
            replace(
                o,
                bbox=rounded,
                truncated=round(truncated, 2),
                occluded=state,
                score=None,
                alpha=float(rotation_y_to_alpha(o.rotation_y, o.x, o.z)),
            )
        )
    return labels


def _inside_box(points: np.ndarray, o: Object3D) -> np.ndarray:
    c, s = math.cos(o.rotation_y), math.sin(o.rotation_y)
    axes = np.array([[c, 0.0, -s], [s, 0.0, c]])
    local = (points - np.array([o.x, o.y, o.z])) @ axes.T
    return points[(np.abs(local[:, 0]) < o.length / 2 + 0.02) & (np.abs(local[:, 1]) < o.width / 2 + 0.02)]
