# SPDX-License-Identifier: Apache-2.0
"""Rasterisation: the surface at each sample of an image, the shadow map, silhouettes, disparity. Compiled by numba.

Everything is single-threaded.
"""

from __future__ import annotations

import math

from sicm_ros.compiled import compiled
from sicm_ros.render.textures import HOLES

__all__ = [
    "SUPER_X",
    "SUPER_Y",
    "count_silhouettes",
    "darken_under_box",
    "disparity_at_centres",
    "light_height_map",
    "rasterise",
]

# Samples per pixel.
SUPER_X, SUPER_Y = 4, 2
NEAR = 0.25


@compiled(fastmath=True, error_model="numpy")
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
            leaf = leaf_scale(world[i0, 2])
            u0 = leaf_u(world[i0, 0], world[i0, 1], world[i0, 2], leaf)
            u1 = leaf_u(world[i1, 0], world[i1, 1], world[i1, 2], leaf)
            u2 = leaf_u(world[i2, 0], world[i2, 1], world[i2, 2], leaf)
            ua, ub, uc = a0 * u0 + a1 * u1 + a2 * u2, b0 * u0 + b1 * u1 + b2 * u2, c0 * u0 + c1 * u1 + c2 * u2
            u0 = leaf_v(world[i0, 0], world[i0, 1], world[i0, 2], leaf)
            u1 = leaf_v(world[i1, 0], world[i1, 1], world[i1, 2], leaf)
            u2 = leaf_v(world[i2, 0], world[i2, 1], world[i2, 2], leaf)
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
                        if leaf_hole(tex, (ua * x + u_row) * inv, (va * x + v_row) * inv, hole):
                            continue
                    q_buffer[y, x] = q
                    id_buffer[y, x] = t


@compiled(fastmath=True, error_model="numpy")
def leaf_u(px, py, pz, scale):
    """First texture coordinate, texels, of a point in metres on a leafy surface; ``scale`` in texels per metre."""
    return (px * 0.83 + pz * 0.55 + py * 0.27) * scale


@compiled(fastmath=True, error_model="numpy")
def leaf_v(px, py, pz, scale):
    """Second texture coordinate, texels, of a point in metres on a leafy surface."""
    return (py * 0.9 + pz * 0.35 - px * 0.25) * scale


@compiled(fastmath=True, error_model="numpy")
def leaf_hole(tex, u, v, hole):
    """Whether a leafy surface, of which the fraction ``hole`` is missing, has a hole at (u, v) texels."""
    # The offset makes both positive, so that truncation rounds down.
    return tex[HOLES, (int(v + 1048576.0) & 255) * 256 + (int(u + 1048576.0) & 255)] < hole


@compiled(fastmath=True, error_model="numpy")
def leaf_scale(z):
    """Texels per metre of leaves at depth ``z`` metres: coarser far away, and the same in both views."""
    return 160.0 if z < 10 else (90.0 if z < 20 else (50.0 if z < 40 else 26.0))


@compiled(fastmath=True, error_model="numpy")
def light_height_map(vertices, tris, casts, cutout, tex, sun, x0, z0, cell, height_map):
    """Shadow map: for each cell of the plane y = 0, along the sun's direction, the smallest y (highest point).

    ``sun`` (3,) points to the sun (y negative). A point P belongs to the cell of P - sun * P.y / sun.y. ``vertices``
    (N, 3) metres, ``tris`` (M, 3), ``casts`` (M,) bool, ``cutout`` (M,) as in ``rasterise``. ``height_map`` (rows along
    z, columns along x) float32 metres starts at a large y. Its cells are ``cell`` metres wide, from ``x0``, ``z0`` on.
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
        leaf = leaf_scale(vertices[i0, 2])
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
                        if leaf_hole(tex, leaf_u(px, h, pz, leaf), leaf_v(px, h, pz, leaf), hole):
                            continue
                    height_map[y, x] = h


@compiled(fastmath=True, error_model="numpy")
def darken_under_box(ambient, x0, z0, cell, x, z, ry, half_length, half_width, strength, reach):
    """Multiply the ground's ambient light by the occlusion of a box that stands on it (contact shadow).

    ``ambient`` (rows along z, columns along x) float32, in place; lengths in metres, ``ry`` in radians.
    """
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


@compiled(fastmath=True, error_model="numpy")
def count_silhouettes(v, tris, first, last, stamp, counts):
    """Count the samples that each labelled object would cover if nothing stood in front of it, into ``counts`` (K,).

    ``v`` (N, 3) as in ``rasterise``, ``tris`` (M, 3). Triangles ``first[k]:last[k]`` belong to object k; ``stamp``
    (H, W) int32 starts at -1.
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


@compiled(fastmath=True, error_model="numpy")
def disparity_at_centres(q_buffer, fx, cx, left_t, right_t, disparity):
    """Disparity u_left - u_right, pixels, at each pixel's centre, into ``disparity`` (H, W) float32; 0 for the sky.

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
