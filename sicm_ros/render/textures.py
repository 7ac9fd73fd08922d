# SPDX-License-Identifier: Apache-2.0
"""Textures and other patterns, filtered to the footprint of a sample, so that nothing aliases. Compiled by numba."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from sicm_ros.compiled import compiled

__all__ = [
    "BRICK",
    "COBBLE",
    "FBM",
    "GRAIN",
    "HOLES",
    "LEAVES",
    "PLAIN",
    "STREAK",
    "TEXTURE_SIZE",
    "comb",
    "hash_unit",
    "soft_band",
    "soft_step",
    "texture",
    "texture_long",
    "texture_pyramids",
]

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


@compiled(fastmath=True, error_model="numpy")
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


@compiled(fastmath=True, error_model="numpy")
def texture(tex, kind, u, v, footprint):
    """Texture number ``kind`` of the pyramids ``tex`` at (u, v) texels, averaged over about ``footprint`` texels."""
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


@compiled(fastmath=True, error_model="numpy")
def texture_long(tex, kind, u, v, fu, fv):
    """``texture`` with different footprints along both axes: up to four look-ups along the longer one."""
    if fv > fu:
        taps = min(4, max(1, int(fv / fu)))
        total = 0.0
        for k in range(taps):
            total += texture(tex, kind, u, v + fv * ((k + 0.5) / taps - 0.5), max(fu, fv / taps))
        return total / taps
    taps = min(4, max(1, int(fu / fv)))
    total = 0.0
    for k in range(taps):
        total += texture(tex, kind, u + fu * ((k + 0.5) / taps - 0.5), v, max(fv, fu / taps))
    return total / taps


@compiled(fastmath=True, error_model="numpy")
def soft_step(x, edge, footprint):
    """A unit step averaged over the footprint."""
    return min(1.0, max(0.0, (x - edge) / max(footprint, 1e-6) + 0.5))


@compiled(fastmath=True, error_model="numpy")
def soft_band(x, low, high, footprint):
    """1 between ``low`` and ``high``, averaged over the footprint."""
    f = max(footprint, 1e-6)
    a = max(low, x - 0.5 * f)
    b = min(high, x + 0.5 * f)
    return min(1.0, max(0.0, (b - a) / f))


@compiled(fastmath=True, error_model="numpy")
def comb(x, period, duty, footprint):
    """A square wave (1 on the first ``duty`` of each period), averaged over the footprint."""
    f = max(footprint, 1e-6) / period
    if f > 4:
        return duty
    a = x / period - 0.5 * f
    b = a + f
    fa = math.floor(a)
    fb = math.floor(b)
    return (fb * duty + min(b - fb, duty) - fa * duty - min(a - fa, duty)) / f


@compiled(fastmath=True, error_model="numpy")
def hash_unit(a, b, c):
    """A number in [0, 1) from three integers."""
    h = (a * 374761393 + b * 668265263 + c * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 2246822519) & 0xFFFFFFFF
    return ((h ^ (h >> 15)) & 0xFFFFFF) / 16777216.0
