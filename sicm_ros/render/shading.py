# SPDX-License-Identifier: Apache-2.0
"""Light, sky and haze: what each pixel shows of the surfaces that the rasteriser found there. Compiled by numba."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from sicm_ros.render.materials import FOLIAGE, GROUND
from sicm_ros.render.rasteriser import SUPER_X, SUPER_Y
from sicm_ros.render.surfaces import LocalPoint, paint, paint_ground
from sicm_ros.render.textures import FBM, texture

__all__ = ["Eye", "LightMaps", "Surfaces", "shade_view"]


class Surfaces(NamedTuple):
    """What is drawn: N vertices, M triangles, and what these belong to and are made of."""

    projected: np.ndarray  # (N, 3) homogeneous sample coordinates (u w, v w, w)
    world: np.ndarray  # (N, 3) metres
    normals: np.ndarray  # (N, 3)
    triangles: np.ndarray  # (M, 3)
    instance: np.ndarray  # (M,) row of ``instances``
    material: np.ndarray  # (M,) row of ``materials``
    instances: np.ndarray  # (., 12) from the world to an object's own coordinates, by rows
    materials: np.ndarray  # (., MATERIAL_SIZE)
    ground: np.ndarray  # (GROUND_SIZE,)


class LightMaps(NamedTuple):
    """Maps of the ground: where the sun's light ends (y, metres), the share of the sky's light; origin and cell, m."""

    height: np.ndarray
    ambient: np.ndarray
    x0: float
    z0: float
    cell: float


class Eye(NamedTuple):
    """The camera: its position (3,) in the world, and (fx, cx, fy, cy) in sample coordinates for the sky's rays."""

    centre: np.ndarray
    ray: np.ndarray


class _Groups(NamedTuple):
    """Samples of a pixel that are shaded together: a triangle, how many samples, sums of their coordinates."""

    triangle: np.ndarray
    size: np.ndarray
    sum_x: np.ndarray
    sum_y: np.ndarray


class _Point(NamedTuple):
    """A point of a surface in the world: place, what a sample covers along u and v, unit normal."""

    x: float
    y: float
    z: float
    ux: float
    uy: float
    uz: float
    vx: float
    vy: float
    vz: float
    nx: float
    ny: float
    nz: float


@njit(cache=True, fastmath=True, error_model="numpy")
def _ambient(maps, x, z):
    """Share of the sky's light at a point of the ground, bilinear; all of it outside the map."""
    grid = maps.ambient
    rows, columns = grid.shape
    u = (x - maps.x0) / maps.cell - 0.5
    v = (z - maps.z0) / maps.cell - 0.5
    if u < 0 or v < 0 or u >= columns - 1 or v >= rows - 1:
        return 1.0
    i, j = int(u), int(v)
    a, b = u - i, v - j
    return (grid[j, i] * (1 - a) + grid[j, i + 1] * a) * (1 - b) + (
        grid[j + 1, i] * (1 - a) + grid[j + 1, i + 1] * a
    ) * b


@njit(cache=True, fastmath=True, error_model="numpy")
def _lit(maps, px, py, pz, sun):
    """Fraction of the sun that reaches a point: four depth tests of a height map, weighted bilinearly."""
    height_map = maps.height
    rows, columns = height_map.shape
    kx, kz = -sun[0] / sun[1], -sun[2] / sun[1]
    u = (px + kx * py - maps.x0) / maps.cell - 0.5
    v = (pz + kz * py - maps.z0) / maps.cell - 0.5
    if u < 0 or v < 0 or u >= columns - 1 or v >= rows - 1:
        return 1.0
    i, j = int(u), int(v)
    a, b = u - i, v - j
    bias = py - 0.06
    s00 = 1.0 if height_map[j, i] >= bias else 0.0
    s01 = 1.0 if height_map[j, i + 1] >= bias else 0.0
    s10 = 1.0 if height_map[j + 1, i] >= bias else 0.0
    s11 = 1.0 if height_map[j + 1, i + 1] >= bias else 0.0
    return (s00 * (1 - a) + s01 * a) * (1 - b) + (s10 * (1 - a) + s11 * a) * b


@njit(cache=True, fastmath=True, error_model="numpy")
def _sky(tex, dx, dy, dz, env, out):
    """Radiance of the sky in a direction (unit vector, y down); ``env``: ``Light.environment``."""
    up = max(-dy, 0.0)
    t = 1 - math.exp(-3.5 * up)
    for c in range(3):
        out[c] = env[c] * (1 - t) + env[3 + c] * t
    cover = env[6]
    if cover > 0:
        k = 60.0 / (up + 0.12)
        n = 0.6 * texture(tex, FBM, dx * k + env[7], dz * k, 1.0) + 0.3 * texture(
            tex, FBM, dx * k * 3.1, dz * k * 3.1 + env[7], 1.0
        )
        a = min(1.0, max(0.0, (n + (cover - 0.5) * 3.0) * 0.7 + 0.2)) * min(1.0, cover * 2)
        bright = env[8] * (1 - 0.12 * max(n, 0.0))
        for c in range(3):
            out[c] = out[c] * (1 - a) + bright * a


# The sky is drawn brighter than the light that it gives, as an overexposed one looks; reflections are not.
MIRRORED_SKY = 0.5


@njit(cache=True, fastmath=True, error_model="numpy")
def _mirror(tex, dx, dy, dz, env, out):
    """What a glossy surface reflects: sky, a ragged dark horizon, ground."""
    azimuth = math.atan2(dx, dz) * 90
    skyline = 0.38 + 0.16 * texture(tex, FBM, azimuth, 31.0, 1.0)
    a = min(1.0, max(0.0, (-dy - skyline) / 0.06 + 0.5))
    _sky(tex, dx, min(dy, -0.02), dz, env, out)
    b = min(1.0, max(0.0, (dy + 0.02) / 0.06 + 0.5))
    shade = 0.10 + 0.06 * texture(tex, FBM, azimuth * 2.3, dy * 90, 1.0)
    for c in range(3):
        dark = env[9 + c] * b + (1 - b) * env[8] * max(shade, 0.02)
        out[c] = MIRRORED_SKY * out[c] * a + dark * (1 - a)


@njit(cache=True, fastmath=True, error_model="numpy")
def _same_surface(surfaces, a, b):
    """Whether two triangles belong to one smooth surface, or to one tree."""
    if a == b:
        return True
    if a < 0 or b < 0:
        return False
    if surfaces.material[a] != surfaces.material[b] or surfaces.instance[a] != surfaces.instance[b]:
        return False
    normals = surfaces.normals
    i, j = surfaces.triangles[a, 0], surfaces.triangles[b, 0]
    turn = normals[i, 0] * normals[j, 0] + normals[i, 1] * normals[j, 1] + normals[i, 2] * normals[j, 2]
    return turn > 0.8 or surfaces.materials[surfaces.material[b], 0] == FOLIAGE


@njit(cache=True, fastmath=True, error_model="numpy")
def _group_samples(id_buffer, bx, by, surfaces, groups):
    """Fill ``groups`` with the samples of the pixel whose first one is (bx, by).

    Returns how many groups there are, and how many samples each of them is filtered to in x and in y.
    """
    first = id_buffer[by, bx]
    uniform = True
    for j in range(SUPER_Y):
        for i in range(SUPER_X):
            if id_buffer[by + j, bx + i] != first:
                uniform = False
    if uniform:
        # One flat surface: shaded once, filtered to the whole pixel.
        count = SUPER_X * SUPER_Y
        groups.triangle[0] = first
        groups.size[0] = count
        groups.sum_x[0] = (bx + 0.5 * (SUPER_X - 1)) * count
        groups.sum_y[0] = (by + 0.5 * (SUPER_Y - 1)) * count
        return 1, float(SUPER_X), float(SUPER_Y)
    # Else once for each surface in each half. Triangles of one smooth surface share.
    found = 0
    for half in range(SUPER_X // 2):
        start = found
        for j in range(SUPER_Y):
            for i in range(2):
                sx, sy = bx + half * 2 + i, by + j
                t = id_buffer[sy, sx]
                k = start
                while k < found and not _same_surface(surfaces, groups.triangle[k], t):
                    k += 1
                if k == found:
                    groups.triangle[k] = t
                    groups.size[k] = 0
                    groups.sum_x[k] = 0
                    groups.sum_y[k] = 0
                    found += 1
                groups.size[k] += 1
                groups.sum_x[k] += sx
                groups.sum_y[k] += sy
    return found, 2.0, 2.0


@njit(cache=True, fastmath=True, error_model="numpy")
def _between(values, i0, i1, i2, l0, l1, l2):
    """Rows of ``values`` (., 3) at the corners of a triangle, added up with the weights l0, l1, l2."""
    return (
        l0 * values[i0, 0] + l1 * values[i1, 0] + l2 * values[i2, 0],
        l0 * values[i0, 1] + l1 * values[i1, 1] + l2 * values[i2, 1],
        l0 * values[i0, 2] + l1 * values[i1, 2] + l2 * values[i2, 2],
    )


@njit(cache=True, fastmath=True, error_model="numpy")
def _locate(surfaces, t, sx, sy, span_x, span_y):
    """The point of triangle ``t`` that sample (sx, sy) shows, filtered to ``span_x`` by ``span_y`` samples."""
    v, world = surfaces.projected, surfaces.world
    i0, i1, i2 = surfaces.triangles[t, 0], surfaces.triangles[t, 1], surfaces.triangles[t, 2]
    x0, y0, w0 = v[i0, 0], v[i0, 1], v[i0, 2]
    x1, y1, w1 = v[i1, 0], v[i1, 1], v[i1, 2]
    x2, y2, w2 = v[i2, 0], v[i2, 1], v[i2, 2]
    a0, b0, c0 = y1 * w2 - w1 * y2, w1 * x2 - x1 * w2, x1 * y2 - y1 * x2
    a1, b1, c1 = y2 * w0 - w2 * y0, w2 * x0 - x2 * w0, x2 * y0 - y2 * x0
    a2, b2, c2 = y0 * w1 - w0 * y1, w0 * x1 - x0 * w1, x0 * y1 - y0 * x1
    e0 = a0 * sx + b0 * sy + c0
    e1 = a1 * sx + b1 * sy + c1
    e2 = a2 * sx + b2 * sy + c2
    inv = 1.0 / (e0 + e1 + e2)
    l0, l1, l2 = e0 * inv, e1 * inv, e2 * inv
    px, py, pz = _between(world, i0, i1, i2, l0, l1, l2)
    # Footprint of what is shaded on the surface.
    d0, d1 = (a0 - l0 * (a0 + a1 + a2)) * span_x * inv, (a1 - l1 * (a0 + a1 + a2)) * span_x * inv
    ux, uy, uz = _between(world, i0, i1, i2, d0, d1, -d0 - d1)
    d0, d1 = (b0 - l0 * (b0 + b1 + b2)) * span_y * inv, (b1 - l1 * (b0 + b1 + b2)) * span_y * inv
    vx, vy, vz = _between(world, i0, i1, i2, d0, d1, -d0 - d1)
    nx, ny, nz = _between(surfaces.normals, i0, i1, i2, l0, l1, l2)
    inv = 1 / math.sqrt(max(nx * nx + ny * ny + nz * nz, 1e-12))
    return _Point(px, py, pz, ux, uy, uz, vx, vy, vz, nx * inv, ny * inv, nz * inv)


@njit(cache=True, fastmath=True, error_model="numpy")
def _local(w, p, nx, ny, nz):
    """A point in an object's own coordinates; ``w`` (12,) leads there, the normal is turned to the camera already."""
    return LocalPoint(
        w[0] * p.x + w[1] * p.y + w[2] * p.z + w[3],
        w[4] * p.x + w[5] * p.y + w[6] * p.z + w[7],
        w[8] * p.x + w[9] * p.y + w[10] * p.z + w[11],
        abs(w[0] * p.ux + w[1] * p.uy + w[2] * p.uz) + abs(w[0] * p.vx + w[1] * p.vy + w[2] * p.vz),
        abs(w[4] * p.ux + w[5] * p.uy + w[6] * p.uz) + abs(w[4] * p.vx + w[5] * p.vy + w[6] * p.vz),
        abs(w[8] * p.ux + w[9] * p.uy + w[10] * p.uz) + abs(w[8] * p.vx + w[9] * p.vy + w[10] * p.vz),
        w[0] * nx + w[1] * ny + w[2] * nz,
        w[4] * nx + w[5] * ny + w[6] * nz,
        w[8] * nx + w[9] * ny + w[10] * nz,
    )


@njit(cache=True, fastmath=True, error_model="numpy")
def _shade(surfaces, t, p, tex, light, maps, eye, albedo, mirror, colour):
    """Radiance of point ``p`` of triangle ``t`` as the camera sees it through the haze; ``colour`` (3,) gets it."""
    ex, ey, ez = eye.centre[0] - p.x, eye.centre[1] - p.y, eye.centre[2] - p.z
    distance = math.sqrt(ex * ex + ey * ey + ez * ez)
    ex, ey, ez = ex / distance, ey / distance, ez / distance
    nx, ny, nz = p.nx, p.ny, p.nz
    facing = nx * ex + ny * ey + nz * ez
    m = surfaces.materials[surfaces.material[t]]
    kind = int(m[0])
    if facing < 0 and kind != FOLIAGE:
        nx, ny, nz, facing = -nx, -ny, -nz, -facing
    if kind == GROUND:
        paint_ground(tex, p.x, p.z, abs(p.ux) + abs(p.vx), abs(p.uz) + abs(p.vz), surfaces.ground, albedo)
        gloss, ambient, translucent = 0.0, _ambient(maps, p.x, p.z), 0.0
    else:
        local = _local(surfaces.instances[surfaces.instance[t]], p, nx, ny, nz)
        gloss, ambient, translucent = paint(tex, kind, local, ny, m, albedo)
    sun = light.sun
    sunny = nx * sun[0] + ny * sun[1] + nz * sun[2]
    if translucent > 0:
        sunny = max(0.0, 0.35 + 0.65 * sunny)
    direct = 0.0
    if sunny > 0 and light.sun_colour[0] > 0.02:
        offset = 0.25 if translucent > 0 else 0.04
        direct = sunny * _lit(maps, p.x + nx * offset, p.y + ny * offset, p.z + nz * offset, sun)
    up = 0.5 - 0.5 * ny
    for c in range(3):
        sky = ambient * (light.ambient_up[c] * up + light.ambient_down[c] * (1 - up))
        colour[c] = albedo[c] * (direct * light.sun_colour[c] + sky)
    if gloss > 0.01:
        rx, ry, rz = 2 * facing * nx - ex, 2 * facing * ny - ey, 2 * facing * nz - ez
        _reflect(tex, rx, ry, rz, facing, gloss, direct, light, mirror, colour)
    fog = math.exp(-distance * light.haze)
    for c in range(3):
        colour[c] = colour[c] * fog + MIRRORED_SKY * light.environment[c] * (1 - fog)


@njit(cache=True, fastmath=True, error_model="numpy")
def _reflect(tex, rx, ry, rz, facing, gloss, direct, light, mirror, colour):
    """Add to ``colour`` what a glossy surface mirrors in direction r, and the sun's glint where its light gets."""
    sun = light.sun
    fresnel = 0.04 + 0.96 * (1 - facing) ** 5
    _mirror(tex, rx, ry, rz, light.environment, mirror)
    share = min(1.0, gloss * (fresnel + 0.01))
    spot = rx * sun[0] + ry * sun[1] + rz * sun[2]
    glint = 0.0
    if spot > 0.9 and direct > 0:
        glint = min(8.0, 1.2 * gloss * math.exp((spot - 1) * 350) * 6 + 0.04 * gloss * math.exp((spot - 1) * 30))
    for c in range(3):
        colour[c] = colour[c] * (1 - share) + share * mirror[c] + glint * light.sun_colour[c]


@njit(cache=True, fastmath=True, error_model="numpy")
def shade_view(id_buffer, surfaces, tex, light, maps, eye, out):
    """Light each surface in each pixel once or twice and average into ``out`` (H, W, 3), linear.

    ``id_buffer``: the triangle at each sample, as ``rasterise`` gives it; ``tex``: ``texture_pyramids``; ``light``:
    ``scene.Light``; ``maps``: LightMaps; ``eye``: Eye.
    """
    samples = SUPER_X * SUPER_Y
    albedo = np.zeros(3)
    colour = np.zeros(3)
    mirror = np.zeros(3)
    groups = _Groups(np.zeros(samples, np.int32), np.zeros(samples, np.int32), np.zeros(samples), np.zeros(samples))
    ray = eye.ray
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for c in range(3):
                out[y, x, c] = 0
            found, span_x, span_y = _group_samples(id_buffer, x * SUPER_X, y * SUPER_Y, surfaces, groups)
            for k in range(found):
                weight = groups.size[k] / float(samples)
                sx = groups.sum_x[k] / groups.size[k]
                sy = groups.sum_y[k] / groups.size[k]
                t = groups.triangle[k]
                if t < 0:
                    dx, dy = (sx - ray[1]) / ray[0], (sy - ray[3]) / ray[2]
                    inv = 1 / math.sqrt(dx * dx + dy * dy + 1)
                    _sky(tex, dx * inv, dy * inv, inv, light.environment, colour)
                else:
                    point = _locate(surfaces, t, sx, sy, span_x, span_y)
                    _shade(surfaces, t, point, tex, light, maps, eye, albedo, mirror, colour)
                for c in range(3):
                    out[y, x, c] += weight * colour[c]
