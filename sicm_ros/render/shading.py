# SPDX-License-Identifier: Apache-2.0
"""Light, sky and haze: what each pixel shows of the surfaces that the rasteriser found there. Compiled by numba."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from sicm_ros.compiled import compiled
from sicm_ros.render.materials import CAR_BODY, CAR_GLASSHOUSE, CAR_SIDE, FACADE, FOLIAGE, GROUND, SHEEN, SIGN, WHEEL
from sicm_ros.render.rasteriser import SUPER_X, SUPER_Y
from sicm_ros.render.surfaces import (
    paint_car_body,
    paint_facade,
    paint_foliage,
    paint_generic,
    paint_glasshouse,
    paint_ground,
    paint_sign,
    paint_wheel,
)
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


@compiled(fastmath=True, error_model="numpy")
def _map(grid, x, z, x0, z0, cell, outside):
    rows, columns = grid.shape
    u = (x - x0) / cell - 0.5
    v = (z - z0) / cell - 0.5
    if u < 0 or v < 0 or u >= columns - 1 or v >= rows - 1:
        return outside
    i, j = int(u), int(v)
    a, b = u - i, v - j
    return (grid[j, i] * (1 - a) + grid[j, i + 1] * a) * (1 - b) + (
        grid[j + 1, i] * (1 - a) + grid[j + 1, i + 1] * a
    ) * b


@compiled(fastmath=True, error_model="numpy")
def _lit(height_map, px, py, pz, sun, x0, z0, cell):
    """Fraction of the sun that reaches a point: four depth tests of a height map, weighted bilinearly."""
    rows, columns = height_map.shape
    kx, kz = -sun[0] / sun[1], -sun[2] / sun[1]
    u = (px + kx * py - x0) / cell - 0.5
    v = (pz + kz * py - z0) / cell - 0.5
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


@compiled(fastmath=True, error_model="numpy")
def _sky(tex, dx, dy, dz, env, out):
    """Radiance of the sky in a direction (unit vector, y down)."""
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


@compiled(fastmath=True, error_model="numpy")
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


@compiled(fastmath=True, error_model="numpy")
def shade_view(id_buffer, surfaces, tex, light, maps, eye, out):
    """Light each surface in each pixel once or twice and average into ``out`` (H, W, 3), linear.

    ``id_buffer``: the triangle at each sample, as ``rasterise`` gives it; ``surfaces``: Surfaces; ``tex``:
    ``texture_pyramids``; ``light``: ``scene.Light``; ``maps``: LightMaps; ``eye``: Eye.

    One loop, and only what takes few arrays in functions of its own: numba counts references to each array that a call
    or a tuple hands on, which for a pixel takes longer than to shade it.
    """
    v, world, normals, tris, tri_instance, tri_material, instances, materials, ground = surfaces
    sun, sun_colour, ambient_up, ambient_down, env, haze = light
    height_map, ambient_map, map_x0, map_z0, map_cell = maps
    centre, ray = eye
    height, width = out.shape[0], out.shape[1]
    albedo = np.zeros(3)
    colour = np.zeros(3)
    mirror = np.zeros(3)
    ids = np.zeros(SUPER_X * SUPER_Y, np.int32)
    counts = np.zeros(SUPER_X * SUPER_Y, np.int32)
    mean_x = np.zeros(SUPER_X * SUPER_Y)
    mean_y = np.zeros(SUPER_X * SUPER_Y)
    for y in range(height):
        for x in range(width):
            out[y, x, 0] = 0
            out[y, x, 1] = 0
            out[y, x, 2] = 0
            bx, by = x * SUPER_X, y * SUPER_Y
            first = id_buffer[by, bx]
            uniform = True
            for j in range(SUPER_Y):
                for i in range(SUPER_X):
                    if id_buffer[by + j, bx + i] != first:
                        uniform = False
            if uniform:
                # One flat surface: shaded once, filtered to the whole pixel.
                ids[0] = first
                counts[0] = SUPER_X * SUPER_Y
                mean_x[0] = (bx + 0.5 * (SUPER_X - 1)) * counts[0]
                mean_y[0] = (by + 0.5 * (SUPER_Y - 1)) * counts[0]
                found = 1
                span_x, span_y = float(SUPER_X), float(SUPER_Y)
            else:
                # Else once for each surface in each half. Triangles of one smooth surface share.
                found = 0
                span_x, span_y = 2.0, 2.0
                for half in range(SUPER_X // 2):
                    start = found
                    for j in range(SUPER_Y):
                        for i in range(2):
                            sx, sy = bx + half * 2 + i, by + j
                            t = id_buffer[sy, sx]
                            k = start
                            while k < found:
                                o = ids[k]
                                if o == t:
                                    break
                                if (
                                    o >= 0
                                    and t >= 0
                                    and tri_material[o] == tri_material[t]
                                    and (tri_instance[o] == tri_instance[t])
                                ):
                                    a, b = tris[o, 0], tris[t, 0]
                                    turn = (
                                        normals[a, 0] * normals[b, 0]
                                        + normals[a, 1] * normals[b, 1]
                                        + normals[a, 2] * normals[b, 2]
                                    )
                                    if turn > 0.8 or materials[tri_material[t], 0] == FOLIAGE:
                                        break
                                k += 1
                            if k == found:
                                ids[k] = t
                                counts[k] = 0
                                mean_x[k] = 0
                                mean_y[k] = 0
                                found += 1
                            counts[k] += 1
                            mean_x[k] += sx
                            mean_y[k] += sy
            for k in range(found):
                weight = counts[k] / float(SUPER_X * SUPER_Y)
                sx = mean_x[k] / counts[k]
                sy = mean_y[k] / counts[k]
                t = ids[k]
                if t < 0:
                    dx, dy = (sx - ray[1]) / ray[0], (sy - ray[3]) / ray[2]
                    inv = 1 / math.sqrt(dx * dx + dy * dy + 1)
                    _sky(tex, dx * inv, dy * inv, inv, env, colour)
                    for c in range(3):
                        out[y, x, c] += weight * colour[c]
                    continue
                i0, i1, i2 = tris[t, 0], tris[t, 1], tris[t, 2]
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
                px = l0 * world[i0, 0] + l1 * world[i1, 0] + l2 * world[i2, 0]
                py = l0 * world[i0, 1] + l1 * world[i1, 1] + l2 * world[i2, 1]
                pz = l0 * world[i0, 2] + l1 * world[i1, 2] + l2 * world[i2, 2]
                # Footprint of what is shaded on the surface.
                d0, d1 = (a0 - l0 * (a0 + a1 + a2)) * span_x * inv, (a1 - l1 * (a0 + a1 + a2)) * span_x * inv
                d2 = -d0 - d1
                ux = d0 * world[i0, 0] + d1 * world[i1, 0] + d2 * world[i2, 0]
                uy = d0 * world[i0, 1] + d1 * world[i1, 1] + d2 * world[i2, 1]
                uz = d0 * world[i0, 2] + d1 * world[i1, 2] + d2 * world[i2, 2]
                d0, d1 = (b0 - l0 * (b0 + b1 + b2)) * span_y * inv, (b1 - l1 * (b0 + b1 + b2)) * span_y * inv
                d2 = -d0 - d1
                vx = d0 * world[i0, 0] + d1 * world[i1, 0] + d2 * world[i2, 0]
                vy = d0 * world[i0, 1] + d1 * world[i1, 1] + d2 * world[i2, 1]
                vz = d0 * world[i0, 2] + d1 * world[i1, 2] + d2 * world[i2, 2]
                nx = l0 * normals[i0, 0] + l1 * normals[i1, 0] + l2 * normals[i2, 0]
                ny = l0 * normals[i0, 1] + l1 * normals[i1, 1] + l2 * normals[i2, 1]
                nz = l0 * normals[i0, 2] + l1 * normals[i1, 2] + l2 * normals[i2, 2]
                inv = 1 / math.sqrt(max(nx * nx + ny * ny + nz * nz, 1e-12))
                nx, ny, nz = nx * inv, ny * inv, nz * inv
                ex, ey, ez = centre[0] - px, centre[1] - py, centre[2] - pz
                distance = math.sqrt(ex * ex + ey * ey + ez * ez)
                ex, ey, ez = ex / distance, ey / distance, ez / distance
                facing = nx * ex + ny * ey + nz * ez
                row = tri_material[t]
                m = materials[row]
                kind = int(m[0])
                if facing < 0 and kind != FOLIAGE:
                    nx, ny, nz, facing = -nx, -ny, -nz, -facing
                gloss = 0.0
                sheen = 0.0
                ambient = 1.0
                translucent = 0.0
                if kind == GROUND:
                    paint_ground(tex, px, pz, abs(ux) + abs(vx), abs(uz) + abs(vz), ground, albedo)
                    ambient = _map(ambient_map, px, pz, map_x0, map_z0, map_cell, 1.0)
                    sheen = ground[SHEEN]
                else:
                    w = instances[tri_instance[t]]
                    lx = w[0] * px + w[1] * py + w[2] * pz + w[3]
                    ly = w[4] * px + w[5] * py + w[6] * pz + w[7]
                    lz = w[8] * px + w[9] * py + w[10] * pz + w[11]
                    fx = abs(w[0] * ux + w[1] * uy + w[2] * uz) + abs(w[0] * vx + w[1] * vy + w[2] * vz)
                    fy = abs(w[4] * ux + w[5] * uy + w[6] * uz) + abs(w[4] * vx + w[5] * vy + w[6] * vz)
                    fz = abs(w[8] * ux + w[9] * uy + w[10] * uz) + abs(w[8] * vx + w[9] * vy + w[10] * vz)
                    mx = w[0] * nx + w[1] * ny + w[2] * nz
                    my = w[4] * nx + w[5] * ny + w[6] * nz
                    mz = w[8] * nx + w[9] * ny + w[10] * nz
                    if kind == CAR_BODY or kind == CAR_GLASSHOUSE or kind == CAR_SIDE:
                        length, breadth, tall = m[4], m[5], m[6]
                        s, fs = 0.5 - lx / length, fx / length
                        if kind == CAR_BODY:
                            gloss = paint_car_body(
                                tex, s, ly / breadth, lz / tall, mx, my, mz, fs, fy / breadth, fz / tall, m, albedo, 0.0
                            )
                        else:
                            gloss = paint_glasshouse(
                                tex,
                                s,
                                ly / breadth,
                                lz / tall,
                                fs,
                                fy / breadth,
                                fz / tall,
                                m,
                                albedo,
                                1.0 if kind == CAR_SIDE else 0.0,
                            )
                        ambient = 0.45 + 0.55 * min(1.0, lz / tall * 2)
                    elif kind == WHEEL:
                        paint_wheel(lx, lz, fx, fz, my, m, albedo)
                        ambient = 0.55
                    elif kind == FACADE:
                        gloss = paint_facade(tex, lx, lz, fx, fz, m, albedo)
                        ambient = 0.6 + 0.4 * min(1.0, max(0.0, lz / 2.5))
                    elif kind == SIGN:
                        paint_sign(lx, lz, fx, fz, m, albedo)
                    elif kind == FOLIAGE:
                        ambient = paint_foliage(tex, lx, ly, lz, (fx + fy + fz) * 0.5, ny, m, albedo)
                        translucent = 0.35
                    else:
                        # GENERIC: one texture mapped along the two axes that the surface faces least.
                        ax, ay2, az = abs(mx), abs(my), abs(mz)
                        if az >= ax and az >= ay2:
                            u2, v2, fu, fv = lx, ly, fx, fy
                        elif ax >= ay2:
                            u2, v2, fu, fv = ly, lz, fy, fz
                        else:
                            u2, v2, fu, fv = lx, lz, fx, fz
                        paint_generic(tex, u2, v2, fu, fv, m, albedo)
                        gloss = m[7]
                        ambient = m[13]
                sunny = nx * sun[0] + ny * sun[1] + nz * sun[2]
                if translucent > 0:
                    sunny = max(0.0, 0.35 + 0.65 * sunny)
                direct = 0.0
                if sunny > 0 and sun_colour[0] > 0.02:
                    offset = 0.25 if translucent > 0 else 0.04
                    direct = sunny * _lit(
                        height_map, px + nx * offset, py + ny * offset, pz + nz * offset, sun, map_x0, map_z0, map_cell
                    )
                up = 0.5 - 0.5 * ny
                for c in range(3):
                    light = direct * sun_colour[c] + ambient * (ambient_up[c] * up + ambient_down[c] * (1 - up))
                    colour[c] = albedo[c] * light
                if sheen > 0 and direct > 0:
                    # Against the sun a road is as bright as the sky: its grains mirror at grazing angles.
                    rx, ry, rz = 2 * facing * nx - ex, 2 * facing * ny - ey, 2 * facing * nz - ez
                    spot = rx * sun[0] + ry * sun[1] + rz * sun[2]
                    scattered = sheen * (albedo[0] + albedo[1]) * (1 - facing) ** 2 * math.exp((spot - 1) * 4)
                    for c in range(3):
                        colour[c] += scattered * direct * sun_colour[c]
                if gloss > 0.01:
                    rx, ry, rz = 2 * facing * nx - ex, 2 * facing * ny - ey, 2 * facing * nz - ez
                    fresnel = 0.04 + 0.96 * (1 - facing) ** 5
                    _mirror(tex, rx, ry, rz, env, mirror)
                    share = min(1.0, gloss * (fresnel + 0.01))
                    spot = rx * sun[0] + ry * sun[1] + rz * sun[2]
                    glint = 0.0
                    if spot > 0.9 and direct > 0:
                        glint = min(
                            8.0, 1.2 * gloss * math.exp((spot - 1) * 350) * 6 + 0.04 * gloss * math.exp((spot - 1) * 30)
                        )
                    for c in range(3):
                        colour[c] = colour[c] * (1 - share) + share * mirror[c] + glint * sun_colour[c]
                fog = math.exp(-distance * haze)
                for c in range(3):
                    out[y, x, c] += weight * (colour[c] * fog + MIRRORED_SKY * env[c] * (1 - fog))
