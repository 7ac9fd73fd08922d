# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels of the renderer: rasterisers with z-buffers, procedural surfaces, light and camera.

Everything is single-threaded. Textures are functions of world or object coordinates, filtered to the footprint of the
sample on the surface, so that both views of a rig see the same surface and nothing aliases.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numba import njit

__all__ = [
    "CAR_BODY",
    "CAR_GLASSHOUSE",
    "CAR_SIDE",
    "FACADE",
    "FOLIAGE",
    "GENERIC",
    "GROUND",
    "SIGN",
    "SUPER_X",
    "SUPER_Y",
    "WHEEL",
    "count_silhouettes",
    "darken_under_box",
    "disparity_at_centres",
    "light_height_map",
    "rasterise",
    "shade_view",
    "texture_pyramids",
]

# Samples per pixel.
SUPER_X, SUPER_Y = 4, 2
NEAR = 0.25

# Kinds of surface (first entry of a material row).
GENERIC, GROUND, CAR_BODY, CAR_SIDE, CAR_GLASSHOUSE, WHEEL, FACADE, FOLIAGE, SIGN = range(9)

# Textures (mean 0, standard deviation 1 at the finest level).
FBM, GRAIN, LEAVES, COBBLE, BRICK, STREAK, PLAIN, HOLES = range(8)
TEXTURE_SIZE = 256
TEXTURE_LEVELS = 9

_LEVEL_START = np.cumsum([0] + [(TEXTURE_SIZE >> k) ** 2 for k in range(TEXTURE_LEVELS)]).astype(np.int64)


@lru_cache(maxsize=1)
def texture_pyramids() -> np.ndarray:
    """Periodic textures with all their averaged levels, (8, sum of level sizes) float32, always the same."""
    rng = np.random.default_rng(20)
    n = TEXTURE_SIZE
    fy, fx = np.meshgrid(np.fft.fftfreq(n) * n, np.fft.fftfreq(n) * n, indexing="ij")

    def spectrum(power: float, sx: float = 1.0, sy: float = 1.0) -> np.ndarray:
        radius = np.hypot(fx * sx, fy * sy)
        radius[0, 0] = 1.0
        gain = radius**-power
        gain[0, 0] = 0.0
        return np.fft.ifft2(np.fft.fft2(rng.standard_normal((n, n))) * gain).real

    def cells(count: int, jitter: float, scale_x: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        step = n / count
        cy, cx = np.meshgrid(np.arange(count), np.arange(count), indexing="ij")
        px = ((cx + 0.5 + jitter * rng.uniform(-0.5, 0.5, cx.shape)) * step).ravel()
        py = ((cy + 0.5 + jitter * rng.uniform(-0.5, 0.5, cy.shape)) * step).ravel()
        y, x = np.mgrid[0:n, 0:n].astype(np.float32)
        first = np.full((n, n), 1e9, np.float32)
        second = first.copy()
        owner = np.zeros((n, n), np.int64)
        for i in range(len(px)):
            dx = (x - px[i] + n / 2) % n - n / 2
            dy = (y - py[i] + n / 2) % n - n / 2
            d = np.hypot(dx * scale_x, dy)
            nearer = d < first
            second = np.where(nearer, first, np.minimum(second, d))
            owner = np.where(nearer, i, owner)
            first = np.where(nearer, d, first)
        return (second - first) / step, owner

    gap, owner = cells(24, 1.0)
    shade = rng.standard_normal(24 * 24)
    leaves = 1.1 * shade[owner] + 1.2 * np.clip(gap, 0, 0.6) + 0.25 * spectrum(1.0)
    gap, owner = cells(20, 0.35)
    shade = rng.standard_normal(20 * 20)
    cobble = 0.45 * shade[owner] + 2.2 * np.clip(gap / 0.22, 0, 1) + 0.3 * rng.standard_normal((n, n))
    y, x = np.mgrid[0:n, 0:n]
    row = y // 16
    brick_x = (x + 16 * (row % 2)) % n
    shade = rng.standard_normal((16, 8))
    brick = (
        0.6 * shade[row, brick_x // 32] + 1.6 * ((y % 16 > 1) & (brick_x % 32 > 1)) + 0.3 * rng.standard_normal((n, n))
    )
    grain = rng.standard_normal((n, n))
    grain = grain + 0.35 * np.roll(grain, 1, 0) + 0.35 * np.roll(grain, 1, 1)
    grain = grain + 0.5 * np.maximum(grain, 0) ** 2
    streak = spectrum(1.0, 1.0, 7.0)
    rows = []
    for image in (spectrum(1.25), grain, leaves, cobble, brick, streak, np.zeros((n, n))):
        image = (image - image.mean()) / max(image.std(), 1e-6)
        image = np.clip(image, -3, 3)
        levels = []
        for _ in range(TEXTURE_LEVELS):
            levels.append(image.ravel())
            if image.shape[0] > 1:
                image = (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4
        rows.append(np.concatenate(levels))
    rows.append(0.7 * rows[FBM] + 0.7 * rows[LEAVES])
    return np.ascontiguousarray(np.stack(rows).astype(np.float32))


@njit(cache=True, fastmath=True, error_model="numpy")
def _texel(tex, kind, level, u, v):
    """Bilinear look-up in one level; ``u, v`` in texels of the finest level."""
    n = TEXTURE_SIZE >> level
    offset = _LEVEL_START[level]
    scale = 1.0 / (1 << level)
    x = u * scale - 0.5
    y = v * scale - 0.5
    xf = math.floor(x)
    yf = math.floor(y)
    ax = x - xf
    ay = y - yf
    mask = n - 1
    x0 = int(xf) & mask
    y0 = offset + (int(yf) & mask) * n
    x1 = (x0 + 1) & mask
    y1 = offset + ((int(yf) + 1) & mask) * n
    top = tex[kind, y0 + x0] * (1 - ax) + tex[kind, y0 + x1] * ax
    bottom = tex[kind, y1 + x0] * (1 - ax) + tex[kind, y1 + x1] * ax
    return top * (1 - ay) + bottom * ay


@njit(cache=True, fastmath=True, error_model="numpy")
def _texture(tex, kind, u, v, footprint):
    """Texture at (u, v) texels, averaged over about ``footprint`` texels."""
    if kind == PLAIN or footprint > 90 or (kind == GRAIN and footprint > 14):
        return 0.0
    # Levels blend linearly in the footprint itself, which spares a logarithm.
    low = 0
    while footprint > 2:
        footprint *= 0.5
        low += 1
    f = footprint - 1
    if f <= 0:
        return _texel(tex, kind, low, u, v)
    return _texel(tex, kind, low, u, v) * (1 - f) + _texel(tex, kind, low + 1, u, v) * f


@njit(cache=True, fastmath=True, error_model="numpy")
def _texture_long(tex, kind, u, v, fu, fv):
    """The same with different footprints along both axes: up to four look-ups along the longer one."""
    if fv > fu:
        taps = min(4, max(1, int(fv / fu)))
        total = 0.0
        for k in range(taps):
            total += _texture(tex, kind, u, v + fv * ((k + 0.5) / taps - 0.5), max(fu, fv / taps))
        return total / taps
    taps = min(4, max(1, int(fu / fv)))
    total = 0.0
    for k in range(taps):
        total += _texture(tex, kind, u + fu * ((k + 0.5) / taps - 0.5), v, max(fv, fu / taps))
    return total / taps


@njit(cache=True, fastmath=True, error_model="numpy")
def _step(x, edge, footprint):
    """A unit step averaged over the footprint."""
    return min(1.0, max(0.0, (x - edge) / max(footprint, 1e-6) + 0.5))


@njit(cache=True, fastmath=True, error_model="numpy")
def _band(x, low, high, footprint):
    """1 between ``low`` and ``high``, averaged over the footprint."""
    f = max(footprint, 1e-6)
    a = max(low, x - 0.5 * f)
    b = min(high, x + 0.5 * f)
    return min(1.0, max(0.0, (b - a) / f))


@njit(cache=True, fastmath=True, error_model="numpy")
def _comb(x, period, duty, footprint):
    """A square wave (1 on the first ``duty`` of each period), averaged over the footprint."""
    f = max(footprint, 1e-6) / period
    if f > 4:
        return duty
    a = x / period - 0.5 * f
    b = a + f
    fa = math.floor(a)
    fb = math.floor(b)
    return (fb * duty + min(b - fb, duty) - fa * duty - min(a - fa, duty)) / f


@njit(cache=True, fastmath=True, error_model="numpy")
def _hash(a, b, c):
    """A number in [0, 1) from three integers."""
    h = (a * 374761393 + b * 668265263 + c * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 2246822519) & 0xFFFFFFFF
    return ((h ^ (h >> 15)) & 0xFFFFFF) / 16777216.0


@njit(cache=True, fastmath=True, error_model="numpy")
def rasterise(v, world, tris, cutout, tex, q_buffer, id_buffer):
    """Draw triangles into an inverse-depth buffer.

    ``v`` (N, 3): homogeneous sample coordinates (u w, v w, w), w the depth in metres; ``world`` (N, 3) metres, for
    cut-out surfaces; ``tris`` (M, 3); ``cutout`` (M,) fraction of a surface that is missing (leaves), 0 for solid ones.
    ``q_buffer`` (H, W) float32 starts at 0 (infinitely far), ``id_buffer`` (H, W) int32 at -1. Homogeneous edge
    functions: no clipping is needed, triangles may reach behind the camera.
    """
    height, width = q_buffer.shape
    q_near = 1.0 / NEAR
    for t in range(tris.shape[0]):
        i0, i1, i2 = tris[t, 0], tris[t, 1], tris[t, 2]
        x0, y0, w0 = v[i0, 0], v[i0, 1], v[i0, 2]
        x1, y1, w1 = v[i1, 0], v[i1, 1], v[i1, 2]
        x2, y2, w2 = v[i2, 0], v[i2, 1], v[i2, 2]
        if w0 < NEAR and w1 < NEAR and w2 < NEAR:
            continue
        ylow, yhigh, xlow, xhigh = 0, height - 1, 0.0, width - 1.0
        if w0 > NEAR and w1 > NEAR and w2 > NEAR:
            sy0, sy1, sy2 = y0 / w0, y1 / w1, y2 / w2
            ya, yb = min(sy0, sy1, sy2), max(sy0, sy1, sy2)
            if yb < 0 or ya > height - 1:
                continue
            ylow = int(math.ceil(max(ya, 0.0)))
            yhigh = int(math.floor(min(yb, height - 1.0)))
            sx0, sx1, sx2 = x0 / w0, x1 / w1, x2 / w2
            xa, xb = min(sx0, sx1, sx2), max(sx0, sx1, sx2)
            if xb < 0 or xa > width - 1 or yhigh < ylow:
                continue
            xlow = max(xa, 0.0)
            xhigh = min(xb, width - 1.0)
            if math.floor(xhigh) < math.ceil(xlow):
                continue
        a0, b0, c0 = y1 * w2 - w1 * y2, w1 * x2 - x1 * w2, x1 * y2 - y1 * x2
        a1, b1, c1 = y2 * w0 - w2 * y0, w2 * x0 - x2 * w0, x2 * y0 - y2 * x0
        a2, b2, c2 = y0 * w1 - w0 * y1, w0 * x1 - x0 * w1, x0 * y1 - y0 * x1
        det = x0 * a0 + y0 * b0 + w0 * c0
        if abs(det) < 1e-12:
            continue
        if det < 0:
            a0, b0, c0, a1, b1, c1, a2, b2, c2, det = -a0, -b0, -c0, -a1, -b1, -c1, -a2, -b2, -c2, -det
        qa, qb, qc = (a0 + a1 + a2) / det, (b0 + b1 + b2) / det, (c0 + c1 + c2) / det
        hole = cutout[t]
        ua, ub, uc, va, vb, vc = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        if hole > 0:
            # Texture coordinates times the depth are affine in the image, too.
            leaf = _leaf_scale(world[i0, 2])
            u0 = _leaf_u(world[i0, 0], world[i0, 1], world[i0, 2], leaf)
            u1 = _leaf_u(world[i1, 0], world[i1, 1], world[i1, 2], leaf)
            u2 = _leaf_u(world[i2, 0], world[i2, 1], world[i2, 2], leaf)
            ua, ub, uc = a0 * u0 + a1 * u1 + a2 * u2, b0 * u0 + b1 * u1 + b2 * u2, c0 * u0 + c1 * u1 + c2 * u2
            u0 = _leaf_v(world[i0, 0], world[i0, 1], world[i0, 2], leaf)
            u1 = _leaf_v(world[i1, 0], world[i1, 1], world[i1, 2], leaf)
            u2 = _leaf_v(world[i2, 0], world[i2, 1], world[i2, 2], leaf)
            va, vb, vc = a0 * u0 + a1 * u1 + a2 * u2, b0 * u0 + b1 * u1 + b2 * u2, c0 * u0 + c1 * u1 + c2 * u2
        for y in range(ylow, yhigh + 1):
            lo, hi = xlow, xhigh
            e = b0 * y + c0
            if a0 > 0:
                lo = max(lo, -e / a0)
            elif a0 < 0:
                hi = min(hi, -e / a0)
            elif e < 0:
                continue
            e = b1 * y + c1
            if a1 > 0:
                lo = max(lo, -e / a1)
            elif a1 < 0:
                hi = min(hi, -e / a1)
            elif e < 0:
                continue
            e = b2 * y + c2
            if a2 > 0:
                lo = max(lo, -e / a2)
            elif a2 < 0:
                hi = min(hi, -e / a2)
            elif e < 0:
                continue
            if hi < lo:
                continue
            base = qb * y + qc
            u_row, v_row = ub * y + uc, vb * y + vc
            for x in range(int(math.ceil(lo)), int(math.floor(hi)) + 1):
                q = qa * x + base
                if q > q_buffer[y, x] and q < q_near:
                    if hole > 0:
                        inv = 1.0 / (q * det)
                        if _leaf_hole(tex, (ua * x + u_row) * inv, (va * x + v_row) * inv, hole):
                            continue
                    q_buffer[y, x] = q
                    id_buffer[y, x] = t


@njit(cache=True, fastmath=True, error_model="numpy")
def _leaf_u(px, py, pz, scale):
    return (px * 0.83 + pz * 0.55 + py * 0.27) * scale


@njit(cache=True, fastmath=True, error_model="numpy")
def _leaf_v(px, py, pz, scale):
    return (py * 0.9 + pz * 0.35 - px * 0.25) * scale


@njit(cache=True, fastmath=True, error_model="numpy")
def _leaf_hole(tex, u, v, hole):
    """Whether a leafy surface has a hole at (u, v) texels."""
    # The offset makes both positive, so that truncation rounds down.
    return tex[HOLES, (int(v + 1048576.0) & 255) * 256 + (int(u + 1048576.0) & 255)] < hole


@njit(cache=True, fastmath=True, error_model="numpy")
def _leaf_scale(z):
    """Leaves are drawn no finer than can be seen at a distance; the same in both views."""
    return 160.0 if z < 10 else (90.0 if z < 20 else (50.0 if z < 40 else 26.0))


@njit(cache=True, fastmath=True, error_model="numpy")
def light_height_map(vertices, tris, casts, cutout, tex, sun, x0, z0, cell, height_map):
    """What the sun sees: for each cell of the plane y = 0, along the sun's direction, the smallest y (highest point).

    ``sun`` points to the sun (y negative). A point P belongs to the cell of P - sun * P.y / sun.y.
    ``height_map`` (rows along z, columns along x) starts at a large y.
    """
    rows, columns = height_map.shape
    kx, kz = -sun[0] / sun[1], -sun[2] / sun[1]
    for t in range(tris.shape[0]):
        if not casts[t]:
            continue
        i0, i1, i2 = tris[t, 0], tris[t, 1], tris[t, 2]
        h0, h1, h2 = vertices[i0, 1], vertices[i1, 1], vertices[i2, 1]
        x_0 = (vertices[i0, 0] + kx * h0 - x0) / cell - 0.5
        x_1 = (vertices[i1, 0] + kx * h1 - x0) / cell - 0.5
        x_2 = (vertices[i2, 0] + kx * h2 - x0) / cell - 0.5
        y_0 = (vertices[i0, 2] + kz * h0 - z0) / cell - 0.5
        y_1 = (vertices[i1, 2] + kz * h1 - z0) / cell - 0.5
        y_2 = (vertices[i2, 2] + kz * h2 - z0) / cell - 0.5
        ya, yb = min(y_0, y_1, y_2), max(y_0, y_1, y_2)
        xa, xb = min(x_0, x_1, x_2), max(x_0, x_1, x_2)
        if yb < 0 or ya > rows - 1 or xb < 0 or xa > columns - 1:
            continue
        det = (x_1 - x_0) * (y_2 - y_0) - (x_2 - x_0) * (y_1 - y_0)
        if abs(det) < 1e-9:
            continue
        inv = 1.0 / det
        # Barycentric weights of vertices 1 and 2 are affine in (x, y).
        a1, b1 = (y_2 - y_0) * inv, -(x_2 - x_0) * inv
        a2, b2 = -(y_1 - y_0) * inv, (x_1 - x_0) * inv
        hole = cutout[t]
        leaf = _leaf_scale(vertices[i0, 2])
        for y in range(int(math.ceil(max(ya, 0.0))), int(math.floor(min(yb, rows - 1.0))) + 1):
            # Where all three weights are positive along this row.
            lo, hi = max(xa, 0.0), min(xb, columns - 1.0)
            e1, e2 = b1 * (y - y_0) - a1 * x_0, b2 * (y - y_0) - a2 * x_0
            a3, e3 = -a1 - a2, 1 - e1 - e2
            if a1 > 0:
                lo = max(lo, -e1 / a1)
            elif a1 < 0:
                hi = min(hi, -e1 / a1)
            elif e1 < 0:
                continue
            if a2 > 0:
                lo = max(lo, -e2 / a2)
            elif a2 < 0:
                hi = min(hi, -e2 / a2)
            elif e2 < 0:
                continue
            if a3 > 0:
                lo = max(lo, -e3 / a3)
            elif a3 < 0:
                hi = min(hi, -e3 / a3)
            elif e3 < 0:
                continue
            for x in range(int(math.ceil(lo)), int(math.floor(hi)) + 1):
                l1 = a1 * x + e1
                l2 = a2 * x + e2
                h = h0 + l1 * (h1 - h0) + l2 * (h2 - h0)
                if h < height_map[y, x]:
                    if hole > 0:
                        l0 = 1 - l1 - l2
                        px = l0 * vertices[i0, 0] + l1 * vertices[i1, 0] + l2 * vertices[i2, 0]
                        pz = l0 * vertices[i0, 2] + l1 * vertices[i1, 2] + l2 * vertices[i2, 2]
                        if _leaf_hole(tex, _leaf_u(px, h, pz, leaf), _leaf_v(px, h, pz, leaf), hole):
                            continue
                    height_map[y, x] = h


@njit(cache=True, fastmath=True, error_model="numpy")
def darken_under_box(ambient, x0, z0, cell, x, z, ry, half_length, half_width, strength, reach):
    """Multiply the ground's ambient light by the occlusion of a box that stands on it (contact shadow)."""
    rows, columns = ambient.shape
    c, s = math.cos(ry), math.sin(ry)
    radius = math.hypot(half_length, half_width) + 3 * reach
    for r in range(max(0, int((z - radius - z0) / cell)), min(rows - 1, int((z + radius - z0) / cell)) + 1):
        for k in range(max(0, int((x - radius - x0) / cell)), min(columns - 1, int((x + radius - x0) / cell)) + 1):
            dx = x0 + (k + 0.5) * cell - x
            dz = z0 + (r + 0.5) * cell - z
            f = abs(c * dx - s * dz) - half_length
            w = abs(s * dx + c * dz) - half_width
            if f <= 0 and w <= 0:
                d = max(f, w)
            else:
                d = math.hypot(max(f, 0.0), max(w, 0.0))
            cover = 1 / (1 + math.exp(min(30.0, 2.2 * (d / reach) + 0.3)))
            ambient[r, k] *= 1 - strength * min(1.0, 1.25 * cover)


@njit(cache=True, fastmath=True, error_model="numpy")
def count_silhouettes(v, tris, first, last, stamp, counts):
    """Samples that each labelled object would cover if nothing stood in front of it.

    Triangles ``first[k]:last[k]`` belong to object k; ``stamp`` (H, W) int32 starts at -1.
    """
    height, width = stamp.shape
    for k in range(first.shape[0]):
        total = 0
        for t in range(first[k], last[k]):
            i0, i1, i2 = tris[t, 0], tris[t, 1], tris[t, 2]
            w0, w1, w2 = v[i0, 2], v[i1, 2], v[i2, 2]
            # An object that reaches behind the near plane is counted by its triangles in front of it.
            if w0 < NEAR or w1 < NEAR or w2 < NEAR:
                continue
            x_0, x_1, x_2 = v[i0, 0] / w0, v[i1, 0] / w1, v[i2, 0] / w2
            y_0, y_1, y_2 = v[i0, 1] / w0, v[i1, 1] / w1, v[i2, 1] / w2
            det = (x_1 - x_0) * (y_2 - y_0) - (x_2 - x_0) * (y_1 - y_0)
            if abs(det) < 1e-9:
                continue
            ya, yb = max(min(y_0, y_1, y_2), 0.0), min(max(y_0, y_1, y_2), height - 1.0)
            xa, xb = max(min(x_0, x_1, x_2), 0.0), min(max(x_0, x_1, x_2), width - 1.0)
            inv = 1.0 / det
            a1, b1 = (y_2 - y_0) * inv, -(x_2 - x_0) * inv
            a2, b2 = -(y_1 - y_0) * inv, (x_1 - x_0) * inv
            for y in range(int(math.ceil(ya)), int(math.floor(yb)) + 1):
                for x in range(int(math.ceil(xa)), int(math.floor(xb)) + 1):
                    l1 = a1 * (x - x_0) + b1 * (y - y_0)
                    l2 = a2 * (x - x_0) + b2 * (y - y_0)
                    if l1 >= 0 and l2 >= 0 and l1 + l2 <= 1 and stamp[y, x] != k:
                        stamp[y, x] = k
                        total += 1
        counts[k] = total


@njit(cache=True, fastmath=True, error_model="numpy")
def disparity_at_centres(q_buffer, fx, cx, left_t, right_t, disparity):
    """Disparity u_left - u_right at the sample nearest above-left of each pixel's centre line; 0 for the sky.

    ``q_buffer`` holds inverse depths in the left view at SUPER_X x SUPER_Y samples per pixel. The samples of a pixel
    are symmetric about its centre, so the inverse depth there is the mean of the two central columns and both rows
    where they belong to one surface, else that of the nearest of them.
    """
    height, width = disparity.shape
    for y in range(height):
        for x in range(width):
            best = 0.0
            total = 0.0
            least = 1e9
            for j in range(SUPER_Y):
                for i in range(SUPER_X // 2 - 1, SUPER_X // 2 + 1):
                    q = q_buffer[y * SUPER_Y + j, x * SUPER_X + i]
                    total += q
                    best = max(best, q)
                    least = min(least, q)
            if best <= 0:
                disparity[y, x] = 0
                continue
            q = total / (2 * SUPER_Y)
            if least < best * 0.97:
                q = best
            # X in the label frame from (u, w); then its column in the right view.
            w = 1.0 / q
            z = w - left_t[2]
            px = (x * w - left_t[0] - cx * z) / fx
            wr = z + right_t[2]
            disparity[y, x] = x - (fx * px + cx * z + right_t[0]) / wr


@njit(cache=True, fastmath=True, error_model="numpy")
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


@njit(cache=True, fastmath=True, error_model="numpy")
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


@njit(cache=True, fastmath=True, error_model="numpy")
def _sky(tex, dx, dy, dz, env, out):
    """Radiance of the sky in a direction (unit vector, y down)."""
    up = max(-dy, 0.0)
    t = 1 - math.exp(-3.5 * up)
    for c in range(3):
        out[c] = env[c] * (1 - t) + env[3 + c] * t
    cover = env[6]
    if cover > 0:
        k = 60.0 / (up + 0.12)
        n = 0.6 * _texture(tex, FBM, dx * k + env[7], dz * k, 1.0) + 0.3 * _texture(
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
    skyline = 0.38 + 0.16 * _texture(tex, FBM, azimuth, 31.0, 1.0)
    a = min(1.0, max(0.0, (-dy - skyline) / 0.06 + 0.5))
    _sky(tex, dx, min(dy, -0.02), dz, env, out)
    b = min(1.0, max(0.0, (dy + 0.02) / 0.06 + 0.5))
    shade = 0.10 + 0.06 * _texture(tex, FBM, azimuth * 2.3, dy * 90, 1.0)
    for c in range(3):
        dark = env[9 + c] * b + (1 - b) * env[8] * max(shade, 0.02)
        out[c] = MIRRORED_SKY * out[c] * a + dark * (1 - a)


@njit(cache=True, fastmath=True, error_model="numpy")
def _mix(albedo, r, g, b, a):
    albedo[0] += (r - albedo[0]) * a
    albedo[1] += (g - albedo[1]) * a
    albedo[2] += (b - albedo[2]) * a


@njit(cache=True, fastmath=True, error_model="numpy")
def _ground(tex, px, pz, fx, fz, g, albedo):
    """Road, marks, kerbs, pavement and verge. ``g``: see ``render_scene.ground_parameters``."""
    c, s = g[0], g[1]
    along = s * px + c * pz
    lateral = c * px - s * pz - g[2] - 0.5 * g[3] * along * along
    fl = abs(c) * fx + abs(s) * fz
    fa = abs(s) * fx + abs(c) * fz
    fl = max(fl, 1e-4)
    fa = max(fa, 1e-4)
    fine = _texture_long(tex, GRAIN, lateral * 90, along * 90, fl * 90, fa * 90) if fl < 0.15 else 0.0
    mid = _texture_long(tex, FBM, lateral * 22 + 17, along * 22 + g[26], fl * 22, fa * 22)
    broad = _texture(tex, FBM, lateral * 4 + g[26], along * 2.0 + 40, max(fl * 4, fa))
    left, right = g[4], g[5]
    if left < lateral < right:
        tone = g[6] * max(0.3, 1 + g[7] * 0.5 * fine + 0.07 * mid + 0.10 * broad)
        warm = g[8]
        # Darker and lighter strips where wheels run, patches and joints.
        track = math.cos((lateral - g[9]) * 6.2832 / 1.75)
        tone *= 1 + 0.05 * track * (1 if fl < 0.8 else 0)
        if g[10] > 0:
            cell = math.floor(along / 9.0)
            if _hash(int(cell), 3, int(g[26])) < g[10]:
                centre = left + (right - left) * _hash(int(cell), 5, int(g[26]))
                patch = _band(lateral, centre - 0.9, centre + 0.9, fl) * _band(
                    along - cell * 9, 1.5, 3.0 + 4 * _hash(int(cell), 7, int(g[26])), fa
                )
                tone *= 1 + patch * (0.7 * _hash(int(cell), 9, int(g[26])) - 0.4)
        joint = _band(lateral + 0.04 * mid, g[11] - 0.015, g[11] + 0.015, fl)
        tone *= 1 - 0.45 * joint
        albedo[0], albedo[1], albedo[2] = tone * (1 + warm), tone, tone * (1 - warm)
        wear = min(1.0, max(0.0, g[12] + 0.25 * mid + 0.1 * fine))
        for k in range(4):
            kind = g[14 + 3 * k]
            if kind > 0:
                mark = _band(lateral, g[13 + 3 * k] - 0.07, g[13 + 3 * k] + 0.07, fl)
                if mark > 0:
                    if kind > 1:
                        mark *= _comb(along + g[26], g[15 + 3 * k], 0.38, fa)
                    _mix(albedo, 0.62, 0.62, 0.60, mark * wear)
        if g[30] > 0:
            # A zebra crossing or stop line across the road.
            mark = _band(along, g[30], g[30] + g[31], fa)
            if mark > 0:
                if g[31] > 1:
                    mark *= _comb(lateral, 1.0, 0.5, fl)
                _mix(albedo, 0.62, 0.62, 0.60, mark * wear)
        return
    d = left - lateral if lateral < left else lateral - right
    base = 32 if lateral < left else 40
    if d < g[25]:
        tone = 0.30 * (1 + 0.12 * mid + 0.10 * fine) * (1 - 0.5 * _comb(along, 1.0, 0.03, fa))
        albedo[0], albedo[1], albedo[2] = tone, tone * 0.98, tone * 0.93
        return
    pavement = g[base]
    if d < pavement:
        kind = g[base + 1]
        tone = g[base + 2]
        if kind == 0:
            seam = max(_comb(lateral, 0.5, 0.04, fl), _comb(along, 0.5, 0.04, fa))
            tone *= max(0.3, 1 + 0.10 * broad + 0.08 * mid + 0.12 * fine) * (1 - 0.35 * seam)
        elif kind == 1:
            stones = _texture_long(tex, COBBLE, lateral * 110, along * 110, fl * 110, fa * 110)
            tone *= max(0.25, 1 + 0.25 * stones + 0.12 * broad)
        else:
            tone *= max(0.3, 1 + 0.35 * fine * g[7] + 0.12 * mid + 0.12 * broad)
        warm = g[base + 3]
        albedo[0], albedo[1], albedo[2] = tone * (1 + warm), tone, tone * (1 - warm)
        return
    blades = _texture_long(tex, GRAIN, lateral * 45, along * 45, fl * 45, fa * 45)
    tone = max(0.3, 1 + 0.30 * blades + 0.12 * mid + 0.14 * broad)
    dry = min(1.0, max(0.0, 0.35 + 0.22 * broad + 0.12 * mid))
    for c in range(3):
        albedo[c] = (g[base + 4 + c] * (1 - dry) + g[27 + c] * dry) * tone


@njit(cache=True, fastmath=True, error_model="numpy")
def _car_body(tex, s, y, h, ns, ny, nh, fs, fy, fh, m, albedo, wall):
    """Painted body: lights, plates, grille, doors. ``s`` 0 front .. 1 rear, ``y`` in [-0.5, 0.5], ``h`` 0..1.

    ``m``: see ``render_scene.car_material``. Returns gloss (mirror share). ``wall`` is True for the doors' side.
    """
    length, width, height = m[4], m[5], m[6]
    albedo[0], albedo[1], albedo[2] = m[1], m[2], m[3]
    gloss = m[7]
    ay = abs(y)
    sill = 1 - _step(h, m[8], fh)
    _mix(albedo, 0.03, 0.03, 0.03, sill)
    gloss *= 1 - 0.7 * sill
    belt = m[9]
    if ny * ny > 0.35 and 0.03 < s < 0.97:
        # Doors: joints, a crease, handles, wheel arches.
        front, rear, radius = m[10], m[11], m[12]
        for k in range(3):
            at = m[13] if k == 0 else (m[14] if k == 1 else m[15])
            joint = _band(s, at - 0.006 / length, at + 0.006 / length, fs) * _band(h, m[8], belt, fh)
            _mix(albedo, 0.02, 0.02, 0.02, 0.8 * joint)
        trim = _band(h, m[8] + 0.18, m[8] + 0.21, fh) * m[16]
        _mix(albedo, 0.02, 0.02, 0.02, trim)
        handle = _band(h, belt - 0.10, belt - 0.075, fh) * (
            _band(s, m[14] - 0.06, m[14] - 0.02, fs) + _band(s, m[15] - 0.06, m[15] - 0.02, fs)
        )
        _mix(albedo, 0.05, 0.05, 0.05, handle)
        for k in range(2):
            dx = (s - (front if k == 0 else rear)) * length
            dz = h * height - radius * 0.92
            arch = 1 - _step(math.hypot(dx, dz), radius * 1.16, fs * length + fh * height)
            if arch > 0:
                _mix(albedo, 0.008, 0.008, 0.008, arch)
                gloss *= 1 - arch
    if s < 0.14:
        lamp = (
            _band(ay, m[17], 0.52, fy)
            * _band(h, m[18] - (ay - 0.3) * -0.12, m[18] + 0.10 + (ay - 0.3) * 0.2, fh)
            * (1 - _step(s, 0.085, fs))
        )
        if lamp > 0:
            bulb = 1 - _step(
                math.hypot((ay - 0.5 * (m[17] + 0.47)) * width, (h - m[18] - 0.05) * height), 0.07, fy * width
            )
            v = 0.30 + 0.55 * bulb
            _mix(albedo, v, v, v * 1.02, lamp)
            gloss = gloss * (1 - lamp) + 0.35 * lamp
        if ns > 0.2:
            grille = _band(ay, 0.0, m[19], fy) * _band(h, m[18] + 0.005, m[18] + 0.085, fh)
            slats = 0.02 + 0.10 * _comb(h, 0.03, 0.3, fh)
            _mix(albedo, slats, slats, slats, grille)
            badge = 1 - _step(math.hypot(y * width, (h - m[18] - 0.05) * height), 0.055, fy * width)
            _mix(albedo, 0.5, 0.5, 0.52, badge)
            intake = _band(ay, 0.0, 0.36, fy) * _band(h, m[8] + 0.02, m[8] + 0.10, fh)
            _mix(albedo, 0.015, 0.015, 0.015, intake)
            plate = _band(ay * width, 0.0, 0.26, fy * width) * _band(
                (h - m[8] - 0.115) * height, 0.0, 0.11, fh * height
            )
            _plate(tex, y * width, h * height, fy * width, m, albedo, plate)
            gloss *= 1 - max(grille, intake, plate)
    elif s > 0.86:
        lamp = _band(ay, m[20], 0.52, fy) * _band(h, m[21], m[22], fh) * _step(s, m[23], fs)
        if lamp > 0:
            pale = _band(h, 0.5 * (m[21] + m[22]) - 0.02, 0.5 * (m[21] + m[22]) + 0.02, fh) * (1 - _step(ay, 0.44, fy))
            _mix(albedo, 0.36, 0.012, 0.012, lamp)
            _mix(albedo, 0.55, 0.45, 0.40, lamp * pale * 0.8)
            gloss = gloss * (1 - lamp) + 0.12 * lamp
        if ns < -0.2:
            bumper = _band(h, m[8], m[8] + 0.09, fh)
            _mix(albedo, 0.03, 0.03, 0.03, bumper * m[24])
            joint = _band(h, m[25] - 0.012, m[25] - 0.004, fh)
            _mix(albedo, 0.02, 0.02, 0.02, 0.7 * joint)
            plate = _band(ay * width, 0.0, 0.26, fy * width) * _band((h - m[26]) * height, 0.0, 0.11, fh * height)
            _plate(tex, y * width, h * height, fy * width, m, albedo, plate)
            badge = 1 - _step(math.hypot(y * width, (h - m[26] - 0.13) * height), 0.045, fy * width)
            _mix(albedo, 0.5, 0.5, 0.52, badge)
            gloss *= 1 - plate
    return gloss


@njit(cache=True, fastmath=True, error_model="numpy")
def _plate(tex, u, v, footprint, m, albedo, amount):
    if amount <= 0:
        return
    text = _texture(tex, GRAIN, u * 60 + m[27] * 97, v * 20, footprint * 60)
    dark = min(1.0, max(0.0, 0.35 + 0.5 * text)) * (1 - _step(abs(u), 0.22, footprint))
    tone = 0.70 - 0.55 * dark
    _mix(albedo, tone, tone, tone * 0.97, amount)
    _mix(albedo, 0.05, 0.08, 0.35, amount * _band(u, 0.21, 0.26, footprint))


@njit(cache=True, fastmath=True, error_model="numpy")
def _car_glasshouse(tex, s, y, h, fs, fy, fh, m, albedo, wall):
    """Cabin above the belt line. Returns gloss; glass is dark and mirrors."""
    albedo[0], albedo[1], albedo[2] = m[1], m[2], m[3]
    gloss = m[7]
    belt = m[9]
    rise = (h - belt) / max(1 - belt, 1e-3)
    frise = fh / max(1 - belt, 1e-3)
    ws0, ws1, rw0, rw1 = m[28], m[29], m[30], m[31]
    glass = 0.0
    if wall > 0.5:
        # Side windows follow both sloping ends; pillars between the doors.
        front = ws0 + (ws1 - ws0) * rise
        rear = rw1 + (rw0 - rw1) * rise
        glass = _band(s, front + 0.035, rear - m[32], fs) * _band(rise, 0.06, 0.86, frise)
        for k in range(2):
            at = m[14] if k == 0 else m[15]
            glass *= 1 - _band(s, at - 0.035 / m[4] * 1.5, at + 0.035 / m[4] * 1.5, fs)
        if m[33] > 0:
            glass *= 1 - _step(s, m[33], fs)
    else:
        half = 0.5 * (0.93 - 0.22 * rise)
        inner = 1 - _step(abs(y), half - 0.055, fy)
        if s < ws1:
            glass = inner * _band(rise, 0.05, 0.93, frise)
        elif s > rw0 and m[34] > 0:
            glass = inner * _band(rise, m[35], 0.90, frise)
        if s > rw0 and glass > 0:
            # A brake light and a wiper make the rear window differ from the windscreen.
            wiper = _band(rise - 0.5 * (y + 0.1), m[35] + 0.08, m[35] + 0.11, frise) * _band(y, -0.1, 0.2, fy)
            glass *= 1 - 0.6 * wiper
    tint = m[36]
    inside = 0.5 + 0.25 * _texture(tex, FBM, s * 60 + m[27] * 50, y * 60 + h * 50, 2.0)
    seats = max(0.2, inside)
    _mix(albedo, tint * seats, tint * seats, tint * seats * 1.05, glass)
    if wall < 0.5 and s > rw0:
        lamp = _band(abs(y), 0.0, 0.08, fy) * _band(rise, 0.92, 0.98, frise)
        _mix(albedo, 0.3, 0.01, 0.01, lamp)
    return gloss * (1 - glass) + 1.9 * glass


@njit(cache=True, fastmath=True, error_model="numpy")
def _facade(tex, along, up, fa, fu, m, albedo):
    """A wall with rows of windows, doors or garages. Returns gloss."""
    kind = int(m[4])
    texels = m[5]
    grain = _texture_long(tex, kind, along * texels, up * texels, max(fa * texels, 1e-3), max(fu * texels, 1e-3))
    broad = _texture_long(tex, FBM, along * 9 + m[16], up * 9, max(fa * 9, 1e-3), max(fu * 9, 1e-3))
    dirt = _texture_long(tex, STREAK, along * 14 + m[16], up * 5, max(fa * 14, 1e-3), max(fu * 5, 1e-3))
    tone = max(0.25, 1 + m[6] * grain + 0.07 * broad + 0.05 * dirt)
    for c in range(3):
        albedo[c] = m[1 + c] * tone
    storey, pitch = m[7], m[8]
    if storey <= 0:
        return 0.0
    base = _step(up, m[9], fu)
    _mix(albedo, m[1] * 0.55 * tone, m[2] * 0.55 * tone, m[3] * 0.55 * tone, 1 - base)
    row = math.floor((up - m[9]) / storey)
    column = math.floor(along / pitch)
    u = along - (column + 0.5) * pitch
    v = up - m[9] - row * storey
    top = m[10]
    gloss = 0.0
    if row >= 0 and up < top and fa < 0.7 * pitch:
        seed = int(m[16])
        chance = _hash(int(column), int(row), seed)
        if chance > m[15]:
            half, low, high = 0.5 * m[11], m[12], m[13]
            if row == 0 and m[14] > 0 and _hash(int(column), 77, seed) < m[14]:
                half, low, high = 0.36 * pitch, 0.02, 0.80 * storey
                inside = _band(u, -half, half, fa) * _band(v, low, high, fu)
                if _hash(int(column), 91, seed) < 0.6:
                    # A garage door or shutter: bright, ribbed.
                    rib = 1 - 0.25 * _comb(along, 0.12, 0.2, fa)
                    shade = 0.12 + 0.5 * _hash(int(column), 13, seed)
                    _mix(albedo, shade * rib, shade * rib, shade * rib * 0.95, inside)
                else:
                    glow = max(0.012, 0.05 + 0.04 * _texture(tex, STREAK, along * 12 + seed, up * 12, max(fa, fu) * 12))
                    _mix(albedo, glow, glow, glow, inside)
                    gloss = 0.8 * inside
                return gloss
            frame = _band(u, -half - 0.12, half + 0.12, fa) * _band(v, low - 0.12, high + 0.12, fu)
            _mix(albedo, m[17], m[18], m[19], frame)
            sill = _band(u, -half - 0.2, half + 0.2, fa) * _band(v, low - 0.22, low - 0.12, fu)
            _mix(albedo, 0.45, 0.44, 0.42, sill)
            pane = _band(u, -half, half, fa) * _band(v, low, high, fu)
            bars = 1 - max(
                _band(u, -0.04, 0.04, fa), m[20] * _band(v, low + 0.62 * (high - low), low + 0.67 * (high - low), fu)
            )
            pane *= bars
            curtain = _hash(int(column), int(row) + 500, seed)
            level = 0.03
            if curtain > 0.5:
                level = 0.03 + 0.35 * _band(v, low + (high - low) * (1.6 - curtain), high, fu)
            _mix(albedo, level, level, level * 1.05, pane)
            gloss = 1.2 * pane * (1 - level)
    elif row >= 0 and up < top:
        share = min(0.6, m[11] / pitch * (m[13] - m[12]) / storey)
        _mix(albedo, 0.12, 0.12, 0.13, share)
    return gloss


@njit(cache=True, fastmath=True, error_model="numpy")
def _sign(u, v, fu, fv, m, albedo):
    """A traffic sign or poster in [-1, 1]^2: border colour, ground colour, a dark device."""
    kind = int(m[4])
    f = 0.5 * (fu + fv)
    albedo[0], albedo[1], albedo[2] = m[5], m[6], m[7]
    if kind == 0:
        r = math.hypot(u, v)
        _mix(albedo, m[1], m[2], m[3], _step(r, 0.74, f))
        device = _band(abs(u), 0.08, 0.42, f) * _band(abs(v), 0.0, 0.38, f) * (1 - _band(u, 0.2, 0.3, f))
        _mix(albedo, m[8], m[9], m[10], device)
    elif kind == 1:
        edge = max(abs(u) * 1.0 + (v - 1) * -0.0, -v)
        inner = 1 - _step(abs(u) - 0.5 * (1 - v) * 1.0 + 0.22, 0.0, f)
        _mix(albedo, m[1], m[2], m[3], 1 - inner * _step(v, -0.72, f))
        _mix(albedo, m[8], m[9], m[10], _band(u, -0.12, 0.12, f) * _band(v, -0.55, 0.1, f) * (1 if edge < 5 else 0))
    else:
        border = max(_step(abs(u), 0.92, fu), _step(abs(v), 0.92, fv))
        _mix(albedo, m[1], m[2], m[3], border)
        column, row = int(math.floor((u + 1) * 4)), int(math.floor((v + 1) * 3))
        if f < 0.2:
            ink = _hash(column, row, int(m[11]))
            if ink > 0.55:
                _mix(albedo, m[8], m[9], m[10], ink * _band(v - (row / 3.0 - 1), 0.08, 0.26, fv))


@njit(cache=True, fastmath=True, error_model="numpy")
def shade_view(
    q_buffer,
    id_buffer,
    v,
    world,
    normals,
    tris,
    tri_instance,
    tri_material,
    instances,
    materials,
    ground,
    tex,
    env,
    sun,
    sun_colour,
    ambient_up,
    ambient_down,
    height_map,
    ambient_map,
    map_x0,
    map_z0,
    map_cell,
    haze,
    centre,
    ray,
    out,
):
    """Light each surface in each pixel once or twice and average into ``out`` (H, W, 3), linear.

    ``centre`` (3,): the camera's position; ``ray`` (fx, cx, fy, cy) in sample coordinates, for the sky.
    ``env``: horizon rgb, zenith rgb, cloud cover, cloud offset, cloud brightness, ground rgb.
    """
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
                ambient = 1.0
                translucent = 0.0
                if kind == GROUND:
                    _ground(tex, px, pz, abs(ux) + abs(vx), abs(uz) + abs(vz), ground, albedo)
                    ambient = _map(ambient_map, px, pz, map_x0, map_z0, map_cell, 1.0)
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
                            gloss = _car_body(
                                tex, s, ly / breadth, lz / tall, mx, my, mz, fs, fy / breadth, fz / tall, m, albedo, 0.0
                            )
                        else:
                            gloss = _car_glasshouse(
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
                        r = math.hypot(lx, lz) / m[4]
                        fr = (fx + fz) / m[4]
                        albedo[0] = albedo[1] = albedo[2] = 0.018
                        rim = (1 - _step(r, 0.66, fr)) if my * my > 0.4 else 0.0
                        angle = math.atan2(lz, lx) / 6.2832 * m[5] + m[6]
                        spoke = _comb(angle, 1.0, 0.55, fr * m[5] / max(r * 6.28, 0.3))
                        v1 = m[1] * (0.25 + 0.75 * max(spoke, 1 - _step(r, 0.2, fr), _step(r, 0.58, fr)))
                        _mix(albedo, v1, v1, v1, rim)
                        ambient = 0.55
                    elif kind == FACADE:
                        gloss = _facade(tex, lx, lz, fx, fz, m, albedo)
                        ambient = 0.6 + 0.4 * min(1.0, max(0.0, lz / 2.5))
                    elif kind == SIGN:
                        _sign(lx, lz, fx, fz, m, albedo)
                    elif kind == FOLIAGE:
                        f = (fx + fy + fz) * 0.5
                        k1 = m[4]
                        n1 = _texture(tex, LEAVES, (lx + 0.7 * ly) * k1, (lz + 0.5 * ly) * k1, f * k1)
                        n2 = _texture(
                            tex, FBM, (lx - 0.6 * ly) * k1 * 0.3 + m[6], (lz + 0.6 * ly) * k1 * 0.3, f * k1 * 0.3
                        )
                        n3 = _texture(tex, GRAIN, (lx + 0.4 * ly) * k1 * 0.8, (lz - 0.7 * ly) * k1 * 0.8, f * k1 * 0.8)
                        tone = max(0.06, 1 + m[5] * (n1 + 0.6 * n3) + 0.35 * n2)
                        tint = min(1.0, max(0.0, 0.3 + 0.35 * n2 + 0.2 * n1))
                        albedo[0] = m[1] * tone * (1 + 0.5 * tint)
                        albedo[1] = m[2] * tone * (1 + 0.15 * tint)
                        albedo[2] = m[3] * tone
                        ambient = m[7] + (1 - m[7]) * min(1.0, max(0.0, 0.5 + 0.5 * n2 - 0.5 * ny * 0.6))
                        translucent = 0.35
                    else:
                        # GENERIC: one texture mapped along the two axes that the surface faces least.
                        ax, ay2, az = abs(mx), abs(my), abs(mz)
                        k1 = m[5]
                        if az >= ax and az >= ay2:
                            u2, v2, fu, fv = lx, ly, fx, fy
                        elif ax >= ay2:
                            u2, v2, fu, fv = ly, lz, fy, fz
                        else:
                            u2, v2, fu, fv = lx, lz, fx, fz
                        n1 = _texture_long(
                            tex, int(m[4]), u2 * k1 + m[8], v2 * k1 + m[9], max(fu * k1, 1e-3), max(fv * k1, 1e-3)
                        )
                        tone = max(0.15, 1 + m[6] * n1)
                        if m[10] > 0:
                            n2 = _comb(u2 + v2 * m[12], m[10], 0.5, fu + fv * m[12])
                            tone *= 1 - m[11] * n2
                        albedo[0], albedo[1], albedo[2] = m[1] * tone, m[2] * tone, m[3] * tone
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
