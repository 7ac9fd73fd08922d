# SPDX-License-Identifier: Apache-2.0
"""Rendered stereo pairs in KITTI's geometry, for layouts from real labels or from built-in statistics.

One scene in the label frame is drawn through both projection matrices with a z-buffer, so the disparity is exact by
construction. Surfaces are functions of world and object coordinates, so both views show the same ones. Everything is
seeded: same arguments, same pixels.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sicm_ros.data import render_kernels as kernels
from sicm_ros.data.render_scene import MAP_CELL, MAP_COLUMNS, MAP_ROWS, MAP_X0, MAP_Z0, Scene, build_scene
from sicm_ros.geometry import Object3D, StereoRig, box_corners, project, rotation_y_to_alpha

__all__ = ["KITTI_RIG", "KITTI_SIZE", "RenderedPair", "random_layout", "render_dataset", "render_pair"]

KITTI_SIZE = (1242, 375)
KITTI_RIG = StereoRig(
    721.5377, 721.5377, 609.5593, 172.854, (44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905)
)

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


def _camera(rig: StereoRig, translation: tuple[float, float, float]) -> np.ndarray:
    """Position of a camera in the label frame."""
    tz = translation[2]
    return -np.array([(translation[0] - rig.cx * tz) / rig.fx, (translation[1] - rig.cy * tz) / rig.fy, tz])


def _draw(
    scene: Scene,
    fine: StereoRig,
    p: np.ndarray,
    translation: tuple[float, float, float],
    width: int,
    height: int,
    tex: np.ndarray,
    height_map: np.ndarray,
    ambient: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    # Not a matrix product: that would wake as many threads as there are cores.
    v = np.einsum("ij,kj->ik", scene.vertices, p[:, :3]) + p[:, 3]
    q = np.zeros((height * kernels.SUPER_Y, width * kernels.SUPER_X), np.float32)
    ids = np.full(q.shape, -1, np.int32)
    kernels.rasterise(v, scene.vertices, scene.triangles, scene.cutout, tex, q, ids)
    image = np.empty((height, width, 3), np.float32)
    light = scene.light
    kernels.shade_view(
        q,
        ids,
        v,
        scene.vertices,
        scene.normals,
        scene.triangles,
        scene.instance,
        scene.material,
        scene.instances,
        scene.materials,
        scene.ground,
        tex,
        light.environment,
        light.sun,
        light.sun_colour,
        light.ambient_up,
        light.ambient_down,
        height_map,
        ambient,
        MAP_X0,
        MAP_Z0,
        MAP_CELL,
        light.haze,
        _camera(fine, translation),
        np.array([fine.fx, fine.cx, fine.fy, fine.cy]),
        image,
    )
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


def _photograph(
    image: np.ndarray,
    rng: np.random.Generator,
    exposure: np.ndarray,
    gamma: float,
    black: float,
    noise: float,
    blur: float,
) -> np.ndarray:
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
    tex = kernels.texture_pyramids()

    height_map = np.full((MAP_ROWS, MAP_COLUMNS), 1e6, np.float32)
    if scene.light.sun_colour[0] > 0.05:
        kernels.light_height_map(
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
        kernels.darken_under_box(ambient, MAP_X0, MAP_Z0, MAP_CELL, x, z, ry, half_length, half_width, strength, 0.16)

    fine = rig.scaled(kernels.SUPER_X, kernels.SUPER_Y)
    scale = rig.fx / KITTI_RIG.fx
    # Rectification error: the right camera looks a trace too high or low.
    tilt = camera_rng.normal(0, 0.12) * scale
    tilt = float(np.clip(tilt, -0.3 * scale, 0.3 * scale))
    p_right = fine.p_right
    p_right[1] += tilt * kernels.SUPER_Y * p_right[2]
    left, q, ids, v = _draw(scene, fine, fine.p_left, fine.left_translation, width, height, tex, height_map, ambient)
    right, _, _, _ = _draw(scene, fine, p_right, fine.right_translation, width, height, tex, height_map, ambient)

    disparity = np.zeros((height, width), np.float32)
    kernels.disparity_at_centres(
        q, rig.fx, rig.cx, np.array(rig.left_translation), np.array(rig.right_translation), disparity
    )

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
    left_image = _photograph(left, noise_rng, exposure * balance, gamma, black, noise, blur)
    right_image = _photograph(right, noise_rng, exposure * balance * gain, gamma * warp, black, noise, blur)
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
    kernels.count_silhouettes(v, scene.triangles, ranges[:, 0].copy(), ranges[:, 1].copy(), stamp, totals)
    owner = np.searchsorted(ranges[:, 1], np.arange(ranges[-1, 1]), side="right")
    labelled = ids[(ids >= 0) & (ids < ranges[-1, 1])]
    visible = np.bincount(owner[labelled], minlength=len(objects))
    pixel = kernels.SUPER_X * kernels.SUPER_Y * (rig.fx / KITTI_RIG.fx) ** 2
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


# ---------------------------------------------------------------------------------------------------------------------
# Layouts

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

    ``rig`` and the image size decide what lies in view. The 2D boxes are the projections of the 3D ones.
    """
    objects: list[Object3D] = []
    heading = float(np.clip(rng.normal(0, 0.06), -0.25, 0.25))
    pitch = rng.normal(0, 0.006)
    ground = 1.65 + rng.normal(0, 0.06)
    lane = rng.uniform(2.8, 3.6)

    def place(label: str, lateral: float, along: float, turn: float) -> None:
        x = math.cos(heading) * lateral + math.sin(heading) * along
        z = -math.sin(heading) * lateral + math.cos(heading) * along
        if not 2.5 < z < 75:
            return
        mean, deviation = _SIZES[label]
        hwl = np.array(mean) + np.array(deviation) * np.clip(rng.standard_normal(3), -2.2, 2.2)
        ry = float((heading - math.pi / 2 + turn + math.pi) % (2 * math.pi) - math.pi)
        y = ground + pitch * z + rng.normal(0, 0.03)
        reach = 0.5 * math.hypot(hwl[1], hwl[2])
        for other in objects:
            if math.hypot(other.x - x, other.z - z) < reach + 0.5 * math.hypot(other.length, other.width):
                if _footprints_meet(np.array([x, z]), hwl, ry, other):
                    return
        corners = box_corners(hwl, np.array([x, y, z]), ry)
        uv, depth = project(rig.p_left, corners)
        if depth.min() < 0.8:
            return
        low, high = uv.min(0).tolist(), uv.max(0).tolist()
        shown = (max(0.0, low[0]), max(0.0, low[1]), min(width - 1.0, high[0]), min(height - 1.0, high[1]))
        if shown[2] - shown[0] < 0.3 * (high[0] - low[0]) or shown[3] <= shown[1]:
            return
        objects.append(
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

    def vehicle() -> str:
        return str(rng.choice(["Car", "Van", "Truck"], p=[0.88, 0.085, 0.035]))

    # Parked rows, then traffic, then people.
    for side in (-1.0, 1.0):
        if rng.uniform() < 0.5:
            across = side * (lane * (0.5 if side > 0 else 1.5) + rng.uniform(0.9, 2.6))
            angled = rng.uniform() < 0.2
            turn = (
                (math.pi / 2 if rng.uniform() < 0.6 else rng.uniform(0.6, 1.2)) * rng.choice([-1, 1]) if angled else 0.0
            )
            along = rng.uniform(2, 15)
            for _ in range(int(rng.integers(1, 9))):
                flip = math.pi if rng.uniform() < (0.75 if side < 0 else 0.1) else 0.0
                shift = side * 1.2 if angled else 0.0
                place(
                    "Car" if angled else vehicle(),
                    across + shift + rng.normal(0, 0.15),
                    along,
                    turn + flip + rng.normal(0, 0.03),
                )
                along += (rng.uniform(2.4, 3.4) if angled else rng.uniform(5.0, 7.5)) + rng.choice(
                    [0, 0, rng.uniform(3, 15)]
                )
    for _ in range(int(rng.poisson(1.2))):
        place(vehicle(), rng.normal(0, 0.35), rng.uniform(6, 60), rng.normal(0, 0.04))
    for _ in range(int(rng.poisson(1.2))):
        place(vehicle(), -lane + rng.normal(0, 0.35), rng.uniform(5, 65), math.pi + rng.normal(0, 0.04))
    for _ in range(int(rng.poisson(0.7))):
        place(vehicle(), rng.choice([-1, 1]) * rng.uniform(4, 22), rng.uniform(8, 55), rng.uniform(-math.pi, math.pi))
    for _ in range(int(rng.poisson(1.3)) if rng.uniform() < 0.55 else 0):
        lateral, along = rng.choice([-1, 1]) * rng.uniform(2.0, 9.0), rng.uniform(4, 40)
        if rng.uniform() < 0.15:
            lateral = rng.uniform(-2, 2)
        for _ in range(int(rng.choice([1, 1, 2, 3]))):
            place(
                "Pedestrian",
                lateral + rng.normal(0, 0.9),
                along + rng.normal(0, 0.9),
                rng.choice([0.0, math.pi]) + rng.normal(0, 0.4)
                if rng.uniform() < 0.7
                else rng.uniform(-math.pi, math.pi),
            )
    for _ in range(int(rng.poisson(0.45))):
        place(
            "Cyclist",
            rng.choice([-1, 1]) * rng.uniform(1.2, 6.0),
            rng.uniform(4, 40),
            rng.choice([0.0, math.pi]) + rng.normal(0, 0.15),
        )
    return objects


def _footprints_meet(centre: np.ndarray, hwl: np.ndarray, ry: float, other: Object3D) -> bool:
    """Whether two boxes overlap seen from above (separating axes), with a hand's breadth between them."""

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


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


def frame_seed(seed: int, name: str) -> int:
    """The seed of one frame: a hash of the data set's seed and the frame's name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")


def _write_png(path: Path, image: np.ndarray) -> None:
    import cv2

    # A reader must never see half a file: write beside it, then rename.
    part = path.with_name(path.stem + ".part.png")
    if not cv2.imwrite(str(part), image[..., ::-1] if image.ndim == 3 else image):
        raise OSError(f"{path}: cannot be written")
    part.replace(path)


def _render_frame(task: tuple[str, str, str | None, str | None, int]) -> str:
    from sicm_ros.data import kitti

    root, name, layouts_dir, calib_dir, seed = task
    base = Path(root) / "training"
    one = frame_seed(seed, name)
    rig = kitti.read_object_calib(Path(calib_dir) / f"{name}.txt") if calib_dir else KITTI_RIG
    width, height = KITTI_SIZE
    if layouts_dir:
        layout = kitti.read_labels(Path(layouts_dir) / f"{name}.txt")
    else:
        layout = random_layout(np.random.default_rng(np.random.SeedSequence([one, 1])), rig, width, height)
    pair = render_pair(layout, rig, width, height, one)
    _write_png(base / "image_2" / f"{name}.png", pair.left)
    _write_png(base / "image_3" / f"{name}.png", pair.right)
    _write_png(base / "disp_occ_0" / f"{name}.png", np.clip(pair.disparity * 256 + 0.5, 0, 65535).astype(np.uint16))
    kitti.write_object_calib(base / "calib" / f"{name}.txt", rig)
    # The label is written last: it marks the frame as finished.
    part = base / "label_2" / f"{name}.part"
    kitti.write_labels(part, pair.labels)
    part.replace(base / "label_2" / f"{name}.txt")
    return name


def render_dataset(
    root: str | Path,
    layouts_dir: str | Path | None = None,
    calib_dir: str | Path | None = None,
    split_file: str | Path | None = None,
    seed: int = 0,
    workers: int = 1,
    count: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write a KITTI object folder: ``training/{image_2,image_3,label_2,calib,disp_occ_0}`` (uint16, 256 per pixel).

    Layouts come from ``layouts_dir`` (KITTI labels; the frames of ``split_file``, or all of them) with the calibrations
    of ``calib_dir``; without ``layouts_dir``, ``count`` frames of built-in layouts. Finished frames are skipped, so a
    killed run continues. ``progress(done, total)`` is called after each frame. Returns the frames' names.
    """
    from sicm_ros.data import kitti

    root = Path(root)
    if layouts_dir is not None:
        names = kitti.read_split(split_file) if split_file else sorted(p.stem for p in Path(layouts_dir).glob("*.txt"))
        if not names:
            raise ValueError(f"{layouts_dir}: no label files NNNNNN.txt found")
        names = names[:count] if count else names
    else:
        names = kitti.read_split(split_file) if split_file else [f"{k:06d}" for k in range(count or 100)]
    for folder in ("image_2", "image_3", "label_2", "calib", "disp_occ_0"):
        (root / "training" / folder).mkdir(parents=True, exist_ok=True)
    missing = [n for n in names if not (root / "training" / "label_2" / f"{n}.txt").exists()]
    done = len(names) - len(missing)
    tasks = [
        (str(root), n, str(layouts_dir) if layouts_dir else None, str(calib_dir) if calib_dir else None, seed)
        for n in missing
    ]
    if progress:
        progress(done, len(names))
    if workers <= 1:
        for task in tasks:
            _render_frame(task)
            done += 1
            if progress:
                progress(done, len(names))
        return names
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(_render_frame, tasks):
            done += 1
            if progress:
                progress(done, len(names))
    return names
