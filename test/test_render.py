# SPDX-License-Identifier: Apache-2.0
"""The renderer: exact disparity, stereo-consistent surfaces, labels that agree with the pixels, seeds."""

from __future__ import annotations

import hashlib
import math

import cv2
import numpy as np
import pytest

from sicm_ros.data import kitti
from sicm_ros.data.rendered import frame_seed, render_dataset
from sicm_ros.geometry import InputTransform, Object3D, project, rotation_y_to_alpha
from sicm_ros.render import pair as pair_module
from sicm_ros.render.layouts import KITTI_RIG, KITTI_SIZE, random_layout
from sicm_ros.render.pair import RenderedPair, render_pair

WIDTH, HEIGHT = KITTI_SIZE
NETWORK = InputTransform(WIDTH, HEIGHT, 100, 640, 144)


def make(
    label: str,
    x: float,
    z: float,
    ry: float = -math.pi / 2,
    hwl: tuple[float, float, float] = (1.5, 1.65, 4.0),
    y: float = 1.65,
) -> Object3D:
    return Object3D(label, (0.0, 0.0, 1.0, 1.0), *hwl, x, y, z, ry, rotation_y_to_alpha(ry, x, z))


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image)).hexdigest()


LAYOUT = [
    make("Car", 3.0, 12.0),
    make("Car", -3.5, 20.0, math.pi / 2),
    make("Pedestrian", -5.5, 11.0, 0.3, (1.75, 0.65, 0.85)),
    make("Cyclist", 0.8, 17.0, -1.4, (1.75, 0.6, 1.75)),
    make("Van", 13.0, 28.0, -1.5, (2.2, 1.9, 5.0)),
]


@pytest.fixture(scope="module")
def full() -> RenderedPair:
    return render_pair(LAYOUT, KITTI_RIG, WIDTH, HEIGHT, 3)


def by_label(pair: RenderedPair, z: float) -> Object3D:
    return next(o for o in pair.labels if o.z == z)


def test_disparity_of_objects_is_focal_length_times_baseline_over_depth(full: RenderedPair) -> None:
    # The rear face of the car ahead: 2 m before its centre, seen squarely from behind.
    rear, _ = project(KITTI_RIG.p_left, np.array([3.0, 1.65 - 0.6, 10.0]))
    column, row = (int(round(v)) for v in rear)
    measured = float(full.disparity[row, column])
    assert measured == pytest.approx(float(KITTI_RIG.disparity(10.0)), abs=0.75)  # a rounded tail, up to 15 cm deep
    # Nothing of an object is nearer than the nearest corner of its box or farther than the farthest.
    for o in full.labels:
        depths = o.corners()[:, 2]
        left, top, right, bottom = o.bbox
        middle = full.disparity[int(0.6 * top + 0.4 * bottom), int((left + right) / 2)]  # the trunk of a person
        assert KITTI_RIG.disparity(depths.max()) - 0.05 <= middle <= KITTI_RIG.disparity(depths.min()) + 0.05, o.label


def test_road_disparity_lies_on_a_plane_below_the_camera(full: RenderedPair) -> None:
    # A point on the road at 8 m, straight ahead, clear of every object.
    uv, _ = project(KITTI_RIG.p_left, np.array([0.0, 1.65, 8.0]))
    column, row = (int(round(v)) for v in uv)
    z = KITTI_RIG.focal_baseline / float(full.disparity[row, column])
    assert z == pytest.approx(8.0, abs=0.5)


def test_block_matching_agrees_with_the_disparity(full: RenderedPair) -> None:
    left, right = (cv2.cvtColor(v, cv2.COLOR_RGB2GRAY) for v in (full.left, full.right))
    matcher = cv2.StereoSGBM_create(
        0,
        96,
        7,
        P1=8 * 49,
        P2=32 * 49,
        uniquenessRatio=20,
        disp12MaxDiff=1,
        speckleWindowSize=60,
        speckleRange=1,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    found = matcher.compute(left, right) / 16.0
    both = (found > 1) & (full.disparity > 0) & (full.disparity < 95)
    error = (found - full.disparity)[both]
    assert both.mean() > 0.3
    assert abs(np.median(error)) < 0.15
    assert np.median(np.abs(error)) < 0.5


def test_views_differ_by_the_disparity_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linear radiance without noise or gains; the shift that best explains what is left after warping is unbiased.
    monkeypatch.setattr(pair_module, "photograph", lambda image, *_: np.clip(image, 0, 2) ** np.float32(0.6) * 100)
    for width, height, rig in ((WIDTH, HEIGHT, KITTI_RIG), (640, 144, NETWORK.rig(KITTI_RIG))):
        pair = render_pair(LAYOUT, rig, width, height, 5)
        left, right = pair.left.mean(2), pair.right.mean(2)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        warped = cv2.remap(right, x - pair.disparity, y, cv2.INTER_CUBIC)
        gradient = (
            cv2.Sobel(left, cv2.CV_32F, 1, 0, scale=1 / 8) + cv2.Sobel(warped, cv2.CV_32F, 1, 0, scale=1 / 8)
        ) / 2
        good = (pair.disparity > 0) & (x - pair.disparity > 1) & (np.abs(warped - left) < 15)
        top = cv2.boxFilter(np.where(good, (warped - left) * gradient, 0).astype(np.float32), -1, (9, 9))
        bottom = cv2.boxFilter(np.where(good, gradient**2, 0).astype(np.float32), -1, (9, 9))
        shift = (top / np.maximum(bottom, 1e-3))[good & (bottom > 2)]
        assert len(shift) > 5000
        assert abs(float(np.median(shift))) < 0.08
        assert float(np.median(np.abs(shift))) < 0.25


def test_same_seed_same_pixels_and_other_seed_other_pixels(full: RenderedPair) -> None:
    again = render_pair(LAYOUT, KITTI_RIG, WIDTH, HEIGHT, 3)
    assert digest(again.left) == digest(full.left) and digest(again.right) == digest(full.right)
    assert digest(again.disparity) == digest(full.disparity) and again.labels == full.labels
    other = render_pair(LAYOUT, KITTI_RIG, WIDTH, HEIGHT, 4)
    assert np.abs(other.left.astype(int) - full.left).mean() > 10


def test_labels_keep_the_boxes_and_get_tight_2d_boxes(full: RenderedPair) -> None:
    for o in LAYOUT:
        label = by_label(full, o.z)
        assert (label.height, label.width, label.length, label.x, label.y, label.rotation_y) == (
            o.height,
            o.width,
            o.length,
            o.x,
            o.y,
            o.rotation_y,
        )
        assert label.alpha == pytest.approx(rotation_y_to_alpha(o.rotation_y, o.x, o.z))
        uv, _ = project(KITTI_RIG.p_left, o.corners())
        hull = np.concatenate([uv.min(0), uv.max(0)])
        size = (hull[2:] - hull[:2]).max()
        # Inside the box's projection, and close to it: a mesh does not reach the corners of its box.
        assert np.all(np.array(label.bbox[:2]) >= hull[:2] - 1) and np.all(np.array(label.bbox[2:]) <= hull[2:] + 1)
        assert np.abs(np.array(label.bbox) - hull).max() < 0.22 * size + 2


def test_occlusion_counts_what_others_hide() -> None:
    front = make("Car", 1.0, 10.0)
    hidden = [make("Car", x, 16.5) for x in (-3.2, 3.9, 3.0, 1.6)]
    states = []
    for behind in hidden:
        labels = render_pair([front, behind], NETWORK.rig(KITTI_RIG), 640, 144, 11).labels
        found = [o for o in labels if o.z == 16.5]
        states.append(found[0].occluded if found else 4)
        assert next(o for o in labels if o.z == 10.0).occluded == 0
    assert states[0] == 0
    assert states == sorted(states) and states[3] >= 2 and 1 in states


def test_an_object_behind_a_truck_becomes_dont_care() -> None:
    truck, car = make("Truck", 0.0, 14.0, hwl=(3.6, 2.6, 9.0)), make("Car", 0.0, 40.0)
    labels = render_pair([truck, car], KITTI_RIG, WIDTH, HEIGHT, 2).labels
    assert [o.label for o in labels] == ["Truck", "DontCare"]
    assert labels[1].height == -1 and labels[1].z == -1000


def test_truncation_and_clipping_at_the_image_edge() -> None:
    cut, whole, beside = make("Car", 4.3, 6.0), make("Car", -2.5, 15.0, math.pi / 2), make("Car", 30.0, 10.0)
    labels = render_pair([cut, whole, beside], KITTI_RIG, WIDTH, HEIGHT, 9).labels
    assert {o.z for o in labels} == {6.0, 15.0}
    first, second = (next(o for o in labels if o.z == z) for z in (6.0, 15.0))
    assert 0.15 < first.truncated < 0.9 and first.bbox[2] == WIDTH - 1
    assert second.truncated == 0
    near = render_pair([make("Car", 2.4, 2.0)], KITTI_RIG, WIDTH, HEIGHT, 9).labels
    assert near[0].truncated > 0.5 and near[0].bbox[2] == WIDTH - 1


def test_network_resolution_shows_the_same_geometry(full: RenderedPair) -> None:
    small = render_pair(LAYOUT, NETWORK.rig(KITTI_RIG), 640, 144, 3)
    ratio = NETWORK.scaled_width / WIDTH
    y, x = np.mgrid[0:144, 0:640]
    source = NETWORK.to_source(np.stack([x, y], -1))
    inside = (source[..., 0] < WIDTH - 1) & (source[..., 1] < HEIGHT - 1)
    at = source[inside].round().astype(int)
    large = full.disparity[at[:, 1], at[:, 0]] * ratio
    mine = small.disparity[inside]
    both = (large > 0) & (mine > 0)
    assert both.mean() > 0.6
    assert np.median(np.abs(large - mine)[both]) < 0.05
    for o in LAYOUT:
        a, b = by_label(full, o.z), by_label(small, o.z)
        corners = NETWORK.to_network(np.array(a.bbox).reshape(2, 2)).ravel()
        assert np.abs(np.clip(corners, 0, [639, 143] * 2) - np.array(b.bbox)).max() < 1.0


@pytest.mark.slow
def test_front_and_rear_of_a_car_differ(full: RenderedPair) -> None:
    def redness(ry: float) -> float:
        total = 0.0
        for seed in range(3):
            pair = render_pair([make("Car", 0.0, 9.0, ry)], KITTI_RIG, WIDTH, HEIGHT, seed)
            left, top, right, bottom = (int(v) for v in pair.labels[0].bbox)
            crop = pair.left[top:bottom, left:right].astype(float)
            total += float(((crop[..., 0] > 1.6 * crop[..., 1] + 10) & (crop[..., 0] > 40)).mean())
        return total

    rear, front = redness(-math.pi / 2), redness(math.pi / 2)
    assert rear > front + 0.02


def test_random_layouts_look_like_kitti() -> None:
    rng = np.random.default_rng(0)
    layouts = [random_layout(rng, KITTI_RIG, WIDTH, HEIGHT) for _ in range(150)]
    objects = [o for layout in layouts for o in layout]
    cars = [o for o in objects if o.label == "Car"]
    assert 2.5 < len(cars) / len(layouts) < 6
    assert {o.label for o in objects} == {"Car", "Van", "Truck", "Pedestrian", "Cyclist"}
    assert np.mean([o.length for o in cars]) == pytest.approx(3.88, abs=0.1)
    assert np.mean([o.y for o in objects]) == pytest.approx(1.65, abs=0.15)
    assert 4 <= min(o.z for o in objects) + 2 and max(o.z for o in objects) <= 75
    # Footprints never overlap.
    for layout in layouts:
        for i, a in enumerate(layout):
            polygon = a.corners()[:4, [0, 2]].astype(np.float32)
            for b in layout[:i]:
                area, _ = cv2.intersectConvexConvex(polygon, b.corners()[:4, [0, 2]].astype(np.float32))
                assert area < 1e-3


def test_empty_layouts_dont_care_and_small_sizes() -> None:
    care = Object3D("DontCare", (10.0, 10.0, 20.0, 20.0), -1, -1, -1, -1000, -1000, -1000, -10, -10, -1, -1)
    pair = render_pair([care], KITTI_RIG.scaled(0.1, 0.1), 124, 37, 0)
    assert pair.labels == [] and pair.left.shape == (37, 124, 3) and pair.disparity.max() > 0
    with pytest.raises(ValueError, match="width, height"):
        render_pair([], KITTI_RIG, 4, 4, 0)


def test_dataset_is_a_kitti_folder_and_resumes(tmp_path) -> None:
    labels, calibs = tmp_path / "label_2", tmp_path / "calib"
    labels.mkdir()
    calibs.mkdir()
    for name in ("000003", "000008"):
        kitti.write_labels(labels / f"{name}.txt", LAYOUT)
        kitti.write_object_calib(calibs / f"{name}.txt", KITTI_RIG)
    (tmp_path / "split.txt").write_text("000003\n000008\n")
    seen: list[tuple[int, int]] = []
    root = tmp_path / "out"
    names = render_dataset(
        root, labels, calibs, tmp_path / "split.txt", 7, 1, progress=lambda a, b: seen.append((a, b))
    )
    assert names == ["000003", "000008"] and seen == [(0, 2), (1, 2), (2, 2)]
    frames = kitti.KittiObject(root)
    assert len(frames) == 2
    frame = frames[1]
    assert frame.left.shape == (HEIGHT, WIDTH, 3) and frame.labels is not None
    assert frame.rig.focal_baseline == pytest.approx(KITTI_RIG.focal_baseline, rel=1e-4)
    stored_layout = kitti.read_labels(labels / "000008.txt")
    pair = render_pair(stored_layout, frame.rig, WIDTH, HEIGHT, frame_seed(7, "000008"))
    assert np.array_equal(pair.left, frame.left)
    stored = cv2.imread(str(root / "training/disp_occ_0/000008.png"), cv2.IMREAD_UNCHANGED)
    assert np.abs(stored / 256.0 - pair.disparity).max() < 0.01
    # Finished frames are left alone; a missing label means that the frame was not finished.
    image = root / "training/image_2/000003.png"
    before = image.stat().st_mtime_ns
    (root / "training/label_2/000008.txt").unlink()
    render_dataset(root, labels, calibs, tmp_path / "split.txt", 7, 1)
    assert image.stat().st_mtime_ns == before and (root / "training/label_2/000008.txt").exists()
