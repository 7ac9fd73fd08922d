# SPDX-License-Identifier: Apache-2.0
"""The surfaces: the albedo (3,), linear RGB, of a point on the ground, a car or a house. Compiled by numba.

Functions write into ``albedo``. Footprints (names that begin with f) are the sizes of a sample on the surface, along
its axes.
"""

from __future__ import annotations

import math

from sicm_ros.compiled import compiled
from sicm_ros.render.textures import (
    COBBLE,
    FBM,
    GRAIN,
    LEAVES,
    STREAK,
    comb,
    hash_unit,
    soft_band,
    soft_step,
    texture,
    texture_long,
)

__all__ = [
    "paint_car_body",
    "paint_facade",
    "paint_foliage",
    "paint_generic",
    "paint_glasshouse",
    "paint_ground",
    "paint_sign",
    "paint_wheel",
]


@compiled(fastmath=True, error_model="numpy")
def mix(albedo, r, g, b, a):
    """Blend a colour into ``albedo``, in place, with weight ``a`` in [0, 1]."""
    albedo[0] += (r - albedo[0]) * a
    albedo[1] += (g - albedo[1]) * a
    albedo[2] += (b - albedo[2]) * a


@compiled(fastmath=True, error_model="numpy")
def paint_ground(tex, px, pz, fx, fz, g, albedo):
    """Road, markings, kerbs, pavement and verge at (px, pz), metres. ``g``: see ``street.ground_parameters``."""
    c, s = g[0], g[1]
    along = s * px + c * pz
    lateral = c * px - s * pz - g[2] - 0.5 * g[3] * along * along
    fl = abs(c) * fx + abs(s) * fz
    fa = abs(s) * fx + abs(c) * fz
    fl = max(fl, 1e-4)
    fa = max(fa, 1e-4)
    fine = texture_long(tex, GRAIN, lateral * 90, along * 90, fl * 90, fa * 90) if fl < 0.15 else 0.0
    mid = texture_long(tex, FBM, lateral * 22 + 17, along * 22 + g[26], fl * 22, fa * 22)
    broad = texture(tex, FBM, lateral * 4 + g[26], along * 2.0 + 40, max(fl * 4, fa))
    left, right = g[4], g[5]
    if left < lateral < right:
        tone = g[6] * max(0.3, 1 + g[7] * 0.5 * fine + 0.07 * mid + 0.10 * broad)
        warm = g[8]
        # Darker and lighter strips where wheels run, patches and joints.
        track = math.cos((lateral - g[9]) * 6.2832 / 1.75)
        tone *= 1 + 0.05 * track * (1 if fl < 0.8 else 0)
        if g[10] > 0:
            cell = math.floor(along / 9.0)
            if hash_unit(int(cell), 3, int(g[26])) < g[10]:
                centre = left + (right - left) * hash_unit(int(cell), 5, int(g[26]))
                patch = soft_band(lateral, centre - 0.9, centre + 0.9, fl) * soft_band(
                    along - cell * 9, 1.5, 3.0 + 4 * hash_unit(int(cell), 7, int(g[26])), fa
                )
                tone *= 1 + patch * (0.7 * hash_unit(int(cell), 9, int(g[26])) - 0.4)
        joint = soft_band(lateral + 0.04 * mid, g[11] - 0.015, g[11] + 0.015, fl)
        tone *= 1 - 0.45 * joint
        albedo[0], albedo[1], albedo[2] = tone * (1 + warm), tone, tone * (1 - warm)
        wear = min(1.0, max(0.0, g[12] + 0.25 * mid + 0.1 * fine))
        for k in range(4):
            kind = g[14 + 3 * k]
            if kind > 0:
                mark = soft_band(lateral, g[13 + 3 * k] - 0.07, g[13 + 3 * k] + 0.07, fl)
                if mark > 0:
                    if kind > 1:
                        mark *= comb(along + g[26], g[15 + 3 * k], 0.38, fa)
                    mix(albedo, 0.62, 0.62, 0.60, mark * wear)
        if g[30] > 0:
            # A zebra crossing or stop line across the road.
            mark = soft_band(along, g[30], g[30] + g[31], fa)
            if mark > 0:
                if g[31] > 1:
                    mark *= comb(lateral, 1.0, 0.5, fl)
                mix(albedo, 0.62, 0.62, 0.60, mark * wear)
        return
    d = left - lateral if lateral < left else lateral - right
    base = 32 if lateral < left else 40
    if d < g[25]:
        tone = 0.30 * (1 + 0.12 * mid + 0.10 * fine) * (1 - 0.5 * comb(along, 1.0, 0.03, fa))
        albedo[0], albedo[1], albedo[2] = tone, tone * 0.98, tone * 0.93
        return
    pavement = g[base]
    if d < pavement:
        kind = g[base + 1]
        tone = g[base + 2]
        if kind == 0:
            seam = max(comb(lateral, 0.5, 0.04, fl), comb(along, 0.5, 0.04, fa))
            tone *= max(0.3, 1 + 0.10 * broad + 0.08 * mid + 0.12 * fine) * (1 - 0.35 * seam)
        elif kind == 1:
            stones = texture_long(tex, COBBLE, lateral * 110, along * 110, fl * 110, fa * 110)
            tone *= max(0.25, 1 + 0.25 * stones + 0.12 * broad)
        else:
            tone *= max(0.3, 1 + 0.35 * fine * g[7] + 0.12 * mid + 0.12 * broad)
        warm = g[base + 3]
        albedo[0], albedo[1], albedo[2] = tone * (1 + warm), tone, tone * (1 - warm)
        return
    blades = texture_long(tex, GRAIN, lateral * 45, along * 45, fl * 45, fa * 45)
    tone = max(0.3, 1 + 0.30 * blades + 0.12 * mid + 0.14 * broad)
    dry = min(1.0, max(0.0, 0.35 + 0.22 * broad + 0.12 * mid))
    for c in range(3):
        albedo[c] = (g[base + 4 + c] * (1 - dry) + g[27 + c] * dry) * tone


@compiled(fastmath=True, error_model="numpy")
def paint_car_body(tex, s, y, h, ns, ny, nh, fs, fy, fh, m, albedo, wall):
    """Painted body: lights, plates, grille, doors. ``s`` 0 front .. 1 rear, ``y`` in [-0.5, 0.5], ``h`` 0..1.

    ``m``: see ``objects.car_material``. Returns gloss (mirror share). ``wall`` is True for the doors' side.
    """
    length, width, height = m[4], m[5], m[6]
    albedo[0], albedo[1], albedo[2] = m[1], m[2], m[3]
    gloss = m[7]
    ay = abs(y)
    sill = 1 - soft_step(h, m[8], fh)
    mix(albedo, 0.03, 0.03, 0.03, sill)
    gloss *= 1 - 0.7 * sill
    belt = m[9]
    if ny * ny > 0.35 and 0.03 < s < 0.97:
        # Doors: joints, a crease, handles, wheel arches.
        front, rear, radius = m[10], m[11], m[12]
        for k in range(3):
            at = m[13] if k == 0 else (m[14] if k == 1 else m[15])
            joint = soft_band(s, at - 0.006 / length, at + 0.006 / length, fs) * soft_band(h, m[8], belt, fh)
            mix(albedo, 0.02, 0.02, 0.02, 0.8 * joint)
        trim = soft_band(h, m[8] + 0.18, m[8] + 0.21, fh) * m[16]
        mix(albedo, 0.02, 0.02, 0.02, trim)
        handle = soft_band(h, belt - 0.10, belt - 0.075, fh) * (
            soft_band(s, m[14] - 0.06, m[14] - 0.02, fs) + soft_band(s, m[15] - 0.06, m[15] - 0.02, fs)
        )
        mix(albedo, 0.05, 0.05, 0.05, handle)
        for k in range(2):
            dx = (s - (front if k == 0 else rear)) * length
            dz = h * height - radius * 0.92
            arch = 1 - soft_step(math.hypot(dx, dz), radius * 1.16, fs * length + fh * height)
            if arch > 0:
                mix(albedo, 0.008, 0.008, 0.008, arch)
                gloss *= 1 - arch
    if s < 0.14:
        lamp = (
            soft_band(ay, m[17], 0.52, fy)
            * soft_band(h, m[18] - (ay - 0.3) * -0.12, m[18] + 0.10 + (ay - 0.3) * 0.2, fh)
            * (1 - soft_step(s, 0.085, fs))
        )
        if lamp > 0:
            bulb = 1 - soft_step(
                math.hypot((ay - 0.5 * (m[17] + 0.47)) * width, (h - m[18] - 0.05) * height), 0.07, fy * width
            )
            v = 0.30 + 0.55 * bulb
            mix(albedo, v, v, v * 1.02, lamp)
            gloss = gloss * (1 - lamp) + 0.35 * lamp
        if ns > 0.2:
            grille = soft_band(ay, 0.0, m[19], fy) * soft_band(h, m[18] + 0.005, m[18] + 0.085, fh)
            slats = 0.02 + 0.10 * comb(h, 0.03, 0.3, fh)
            mix(albedo, slats, slats, slats, grille)
            badge = 1 - soft_step(math.hypot(y * width, (h - m[18] - 0.05) * height), 0.055, fy * width)
            mix(albedo, 0.5, 0.5, 0.52, badge)
            intake = soft_band(ay, 0.0, 0.36, fy) * soft_band(h, m[8] + 0.02, m[8] + 0.10, fh)
            mix(albedo, 0.015, 0.015, 0.015, intake)
            plate = soft_band(ay * width, 0.0, 0.26, fy * width) * soft_band(
                (h - m[8] - 0.115) * height, 0.0, 0.11, fh * height
            )
            _plate(tex, y * width, h * height, fy * width, m, albedo, plate)
            gloss *= 1 - max(grille, intake, plate)
    elif s > 0.86:
        lamp = soft_band(ay, m[20], 0.52, fy) * soft_band(h, m[21], m[22], fh) * soft_step(s, m[23], fs)
        if lamp > 0:
            pale = soft_band(h, 0.5 * (m[21] + m[22]) - 0.02, 0.5 * (m[21] + m[22]) + 0.02, fh) * (
                1 - soft_step(ay, 0.44, fy)
            )
            mix(albedo, 0.36, 0.012, 0.012, lamp)
            mix(albedo, 0.55, 0.45, 0.40, lamp * pale * 0.8)
            gloss = gloss * (1 - lamp) + 0.12 * lamp
        if ns < -0.2:
            bumper = soft_band(h, m[8], m[8] + 0.09, fh)
            mix(albedo, 0.03, 0.03, 0.03, bumper * m[24])
            joint = soft_band(h, m[25] - 0.012, m[25] - 0.004, fh)
            mix(albedo, 0.02, 0.02, 0.02, 0.7 * joint)
            plate = soft_band(ay * width, 0.0, 0.26, fy * width) * soft_band(
                (h - m[26]) * height, 0.0, 0.11, fh * height
            )
            _plate(tex, y * width, h * height, fy * width, m, albedo, plate)
            badge = 1 - soft_step(math.hypot(y * width, (h - m[26] - 0.13) * height), 0.045, fy * width)
            mix(albedo, 0.5, 0.5, 0.52, badge)
            gloss *= 1 - plate
    return gloss


@compiled(fastmath=True, error_model="numpy")
def _plate(tex, u, v, footprint, m, albedo, amount):
    if amount <= 0:
        return
    text = texture(tex, GRAIN, u * 60 + m[27] * 97, v * 20, footprint * 60)
    dark = min(1.0, max(0.0, 0.35 + 0.5 * text)) * (1 - soft_step(abs(u), 0.22, footprint))
    tone = 0.70 - 0.55 * dark
    mix(albedo, tone, tone, tone * 0.97, amount)
    mix(albedo, 0.05, 0.08, 0.35, amount * soft_band(u, 0.21, 0.26, footprint))


@compiled(fastmath=True, error_model="numpy")
def paint_glasshouse(tex, s, y, h, fs, fy, fh, m, albedo, wall):
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
        glass = soft_band(s, front + 0.035, rear - m[32], fs) * soft_band(rise, 0.06, 0.86, frise)
        for k in range(2):
            at = m[14] if k == 0 else m[15]
            glass *= 1 - soft_band(s, at - 0.035 / m[4] * 1.5, at + 0.035 / m[4] * 1.5, fs)
        if m[33] > 0:
            glass *= 1 - soft_step(s, m[33], fs)
    else:
        half = 0.5 * (0.93 - 0.22 * rise)
        inner = 1 - soft_step(abs(y), half - 0.055, fy)
        if s < ws1:
            glass = inner * soft_band(rise, 0.05, 0.93, frise)
        elif s > rw0 and m[34] > 0:
            glass = inner * soft_band(rise, m[35], 0.90, frise)
        if s > rw0 and glass > 0:
            # A brake light and a wiper make the rear window differ from the windscreen.
            wiper = soft_band(rise - 0.5 * (y + 0.1), m[35] + 0.08, m[35] + 0.11, frise) * soft_band(y, -0.1, 0.2, fy)
            glass *= 1 - 0.6 * wiper
    tint = m[36]
    inside = 0.5 + 0.25 * texture(tex, FBM, s * 60 + m[27] * 50, y * 60 + h * 50, 2.0)
    seats = max(0.2, inside)
    mix(albedo, tint * seats, tint * seats, tint * seats * 1.05, glass)
    if wall < 0.5 and s > rw0:
        lamp = soft_band(abs(y), 0.0, 0.08, fy) * soft_band(rise, 0.92, 0.98, frise)
        mix(albedo, 0.3, 0.01, 0.01, lamp)
    return gloss * (1 - glass) + 1.9 * glass


@compiled(fastmath=True, error_model="numpy")
def paint_facade(tex, along, up, fa, fu, m, albedo):
    """A wall with rows of windows, doors or garages. Returns gloss."""
    kind = int(m[4])
    texels = m[5]
    grain = texture_long(tex, kind, along * texels, up * texels, max(fa * texels, 1e-3), max(fu * texels, 1e-3))
    broad = texture_long(tex, FBM, along * 9 + m[16], up * 9, max(fa * 9, 1e-3), max(fu * 9, 1e-3))
    dirt = texture_long(tex, STREAK, along * 14 + m[16], up * 5, max(fa * 14, 1e-3), max(fu * 5, 1e-3))
    tone = max(0.25, 1 + m[6] * grain + 0.07 * broad + 0.05 * dirt)
    for c in range(3):
        albedo[c] = m[1 + c] * tone
    storey, pitch = m[7], m[8]
    if storey <= 0:
        return 0.0
    base = soft_step(up, m[9], fu)
    mix(albedo, m[1] * 0.55 * tone, m[2] * 0.55 * tone, m[3] * 0.55 * tone, 1 - base)
    row = math.floor((up - m[9]) / storey)
    column = math.floor(along / pitch)
    u = along - (column + 0.5) * pitch
    v = up - m[9] - row * storey
    top = m[10]
    gloss = 0.0
    if row >= 0 and up < top and fa < 0.7 * pitch:
        seed = int(m[16])
        chance = hash_unit(int(column), int(row), seed)
        if chance > m[15]:
            half, low, high = 0.5 * m[11], m[12], m[13]
            if row == 0 and m[14] > 0 and hash_unit(int(column), 77, seed) < m[14]:
                half, low, high = 0.36 * pitch, 0.02, 0.80 * storey
                inside = soft_band(u, -half, half, fa) * soft_band(v, low, high, fu)
                if hash_unit(int(column), 91, seed) < 0.6:
                    # A garage door or shutter: bright, ribbed.
                    rib = 1 - 0.25 * comb(along, 0.12, 0.2, fa)
                    shade = 0.12 + 0.5 * hash_unit(int(column), 13, seed)
                    mix(albedo, shade * rib, shade * rib, shade * rib * 0.95, inside)
                else:
                    glow = max(0.012, 0.05 + 0.04 * texture(tex, STREAK, along * 12 + seed, up * 12, max(fa, fu) * 12))
                    mix(albedo, glow, glow, glow, inside)
                    gloss = 0.8 * inside
                return gloss
            frame = soft_band(u, -half - 0.12, half + 0.12, fa) * soft_band(v, low - 0.12, high + 0.12, fu)
            mix(albedo, m[17], m[18], m[19], frame)
            sill = soft_band(u, -half - 0.2, half + 0.2, fa) * soft_band(v, low - 0.22, low - 0.12, fu)
            mix(albedo, 0.45, 0.44, 0.42, sill)
            pane = soft_band(u, -half, half, fa) * soft_band(v, low, high, fu)
            bars = 1 - max(
                soft_band(u, -0.04, 0.04, fa),
                m[20] * soft_band(v, low + 0.62 * (high - low), low + 0.67 * (high - low), fu),
            )
            pane *= bars
            curtain = hash_unit(int(column), int(row) + 500, seed)
            level = 0.03
            if curtain > 0.5:
                level = 0.03 + 0.35 * soft_band(v, low + (high - low) * (1.6 - curtain), high, fu)
            mix(albedo, level, level, level * 1.05, pane)
            gloss = 1.2 * pane * (1 - level)
    elif row >= 0 and up < top:
        share = min(0.6, m[11] / pitch * (m[13] - m[12]) / storey)
        mix(albedo, 0.12, 0.12, 0.13, share)
    return gloss


@compiled(fastmath=True, error_model="numpy")
def paint_sign(u, v, fu, fv, m, albedo):
    """A traffic sign or poster in [-1, 1]^2: border colour, ground colour, a dark device."""
    kind = int(m[4])
    f = 0.5 * (fu + fv)
    albedo[0], albedo[1], albedo[2] = m[5], m[6], m[7]
    if kind == 0:
        r = math.hypot(u, v)
        mix(albedo, m[1], m[2], m[3], soft_step(r, 0.74, f))
        device = soft_band(abs(u), 0.08, 0.42, f) * soft_band(abs(v), 0.0, 0.38, f) * (1 - soft_band(u, 0.2, 0.3, f))
        mix(albedo, m[8], m[9], m[10], device)
    elif kind == 1:
        edge = max(abs(u) * 1.0 + (v - 1) * -0.0, -v)
        inner = 1 - soft_step(abs(u) - 0.5 * (1 - v) * 1.0 + 0.22, 0.0, f)
        mix(albedo, m[1], m[2], m[3], 1 - inner * soft_step(v, -0.72, f))
        mix(
            albedo,
            m[8],
            m[9],
            m[10],
            soft_band(u, -0.12, 0.12, f) * soft_band(v, -0.55, 0.1, f) * (1 if edge < 5 else 0),
        )
    else:
        border = max(soft_step(abs(u), 0.92, fu), soft_step(abs(v), 0.92, fv))
        mix(albedo, m[1], m[2], m[3], border)
        column, row = int(math.floor((u + 1) * 4)), int(math.floor((v + 1) * 3))
        if f < 0.2:
            ink = hash_unit(column, row, int(m[11]))
            if ink > 0.55:
                mix(albedo, m[8], m[9], m[10], ink * soft_band(v - (row / 3.0 - 1), 0.08, 0.26, fv))


@compiled(fastmath=True, error_model="numpy")
def paint_wheel(x, z, fx, fz, ny, m, albedo):
    """Tyre, rim and spokes; metres from the hub, ``ny`` of the normal along the axle."""
    r = math.hypot(x, z) / m[4]
    fr = (fx + fz) / m[4]
    albedo[0] = albedo[1] = albedo[2] = 0.018
    rim = (1 - soft_step(r, 0.66, fr)) if ny * ny > 0.4 else 0.0
    angle = math.atan2(z, x) / 6.2832 * m[5] + m[6]
    spoke = comb(angle, 1.0, 0.55, fr * m[5] / max(r * 6.28, 0.3))
    tone = m[1] * (0.25 + 0.75 * max(spoke, 1 - soft_step(r, 0.2, fr), soft_step(r, 0.58, fr)))
    mix(albedo, tone, tone, tone, rim)


@compiled(fastmath=True, error_model="numpy")
def paint_foliage(tex, x, y, z, f, ny, m, albedo):
    """Leaves in sun and shade; ``f``: footprint, metres, ``ny``: of the normal in the world.

    Returns the share of the sky's light.
    """
    k = m[4]
    n1 = texture(tex, LEAVES, (x + 0.7 * y) * k, (z + 0.5 * y) * k, f * k)
    n2 = texture(tex, FBM, (x - 0.6 * y) * k * 0.3 + m[6], (z + 0.6 * y) * k * 0.3, f * k * 0.3)
    n3 = texture(tex, GRAIN, (x + 0.4 * y) * k * 0.8, (z - 0.7 * y) * k * 0.8, f * k * 0.8)
    tone = max(0.06, 1 + m[5] * (n1 + 0.6 * n3) + 0.35 * n2)
    tint = min(1.0, max(0.0, 0.3 + 0.35 * n2 + 0.2 * n1))
    albedo[0] = m[1] * tone * (1 + 0.5 * tint)
    albedo[1] = m[2] * tone * (1 + 0.15 * tint)
    albedo[2] = m[3] * tone
    return m[7] + (1 - m[7]) * min(1.0, max(0.0, 0.5 + 0.5 * n2 - 0.5 * ny * 0.6))


@compiled(fastmath=True, error_model="numpy")
def paint_generic(tex, u, v, fu, fv, m, albedo):
    """A plain surface: one texture, and ribs where it has some. ``m``: see ``materials.generic_surface``."""
    k = m[5]
    n = texture_long(tex, int(m[4]), u * k + m[8], v * k + m[9], max(fu * k, 1e-3), max(fv * k, 1e-3))
    tone = max(0.15, 1 + m[6] * n)
    if m[10] > 0:
        tone *= 1 - m[11] * comb(u + v * m[12], m[10], 0.5, fu + fv * m[12])
    albedo[0], albedo[1], albedo[2] = m[1] * tone, m[2] * tone, m[3] * tone
