# SPDX-License-Identifier: Apache-2.0
"""Rigs, crops, boxes and axes, against real calibrations and labels and against independent formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kitti_material import archive, needs_kitti

from sicm_ros.data.kitti import read_labels, read_object_calib
from sicm_ros.geometry import (
    GeometryError,
    InputTransform,
    Object3D,
    StereoRig,
    alpha_to_rotation_y,
    box_corners,
    box_orientation_quaternion,
    project,
    rotation_y_to_alpha,
    wrap_angle,
)

# P2 and P3 of most of the object benchmark.
RIG = StereoRig(
    721.5377, 721.5377, 609.5593, 172.854, (44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905)
)
angles = st.floats(-10, 10)
points = st.lists(st.tuples(st.floats(-30, 30), st.floats(-5, 5), st.floats(2, 80)), min_size=1).map(np.array)


# ----------------------------------------------------------------------------------------------------------------- rig


def optical_centre(p: np.ndarray) -> np.ndarray:
    """The point that a projection matrix sends to (0, 0, 0)."""
    return -np.linalg.solve(p[:, :3], p[:, 3])


def test_projection_matrices_round_trip():
    again = StereoRig.from_projections(RIG.p_left, RIG.p_right)
    assert again == RIG
    np.testing.assert_allclose(RIG.p_left[0], [721.5377, 0, 609.5593, 44.85728])


def test_kitti_baseline_is_the_distance_of_the_optical_centres():
    centres = optical_centre(RIG.p_left), optical_centre(RIG.p_right)
    assert RIG.baseline == pytest.approx(centres[1][0] - centres[0][0], abs=1e-12) == pytest.approx(0.53272, abs=2e-5)
    # KITTI's camera 2 lies 6 cm to the left of the frame's origin; taking -P_right[0,3]/fx would be 12 % short.
    assert centres[0][0] == pytest.approx(-0.0598, abs=2e-4)
    assert -RIG.right_translation[0] / RIG.fx == pytest.approx(0.4706, abs=1e-4)


def test_disparity_is_the_difference_of_the_views():
    for z in (4.0, 20.0, 80.0):
        point = np.array([0.0, 0.0, z])
        difference = project(RIG.p_left, point)[0][0] - project(RIG.p_right, point)[0][0]
        assert RIG.disparity(z) == pytest.approx(difference, abs=0.01)
    assert RIG.disparity(20.0) == pytest.approx(19.22, abs=0.01)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"fx": math.nan}, "finite"),
        ({"cx": math.inf}, "finite"),
        ({"left_translation": (0.0, math.nan, 0.0)}, "finite"),
        ({"fx": 0.0}, "focal lengths must be positive"),
        ({"fy": -700.0}, "focal lengths must be positive"),
        ({"right_translation": RIG.left_translation}, "baseline"),
        ({"right_translation": (400.0, 0.0, 0.0)}, "baseline"),
    ],
)
def test_degenerate_rigs_raise(changes, field):
    with pytest.raises(GeometryError, match=field):
        replace(RIG, **changes)


@pytest.mark.parametrize(
    "left, right, message",
    [
        (np.eye(3), RIG.p_right, "P_left: expected a 3x4 matrix"),
        (RIG.p_left, np.zeros((3, 4)), "P_right: expected zero skew"),
        (RIG.p_left + np.eye(3, 4, 1) * 2, RIG.p_right, "P_left: expected zero skew"),
        (RIG.p_left * 2, RIG.p_right, "P_left: expected zero skew and P\\[2,2\\] = 1"),
        (RIG.p_left, RIG.p_right + np.diag([5, 5, 0, 0])[:3], "differ by 5.000 pixels"),
        (RIG.p_right, RIG.p_left, "are the views swapped"),
        (RIG.p_left, RIG.p_left, "does the right projection lack its translation"),
    ],
)
def test_projections_of_no_rectified_rig_raise(left, right, message):
    with pytest.raises(GeometryError, match=message):
        StereoRig.from_projections(left, right)


# -------------------------------------------------------------------------------------------------------- crop, resize


@settings(max_examples=60, deadline=None)
@given(points, st.floats(0, 300), st.floats(0, 120), st.floats(0.2, 2), st.floats(0.2, 2))
def test_cropped_and_scaled_rigs_project_to_the_moved_pixels(xyz, left, top, sx, sy):
    rig = RIG.cropped(left, top).scaled(sx, sy)
    for before, after in ((RIG.p_left, rig.p_left), (RIG.p_right, rig.p_right)):
        uv, depth = project(before, xyz)
        moved, moved_depth = project(after, xyz)
        np.testing.assert_allclose(moved, (uv - [left, top] + 0.5) * [sx, sy] - 0.5, atol=1e-6)
        np.testing.assert_allclose(moved_depth, depth, rtol=1e-12)
    assert rig.baseline == pytest.approx(RIG.baseline, rel=1e-9)
    np.testing.assert_allclose(rig.disparity(xyz[:, 2]), RIG.disparity(xyz[:, 2]) * sx, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    points,
    st.sampled_from([(1242, 375), (1241, 376), (1224, 370), (640, 480)]),
    st.integers(0, 150),
    st.sampled_from([(1280, 288), (640, 192), (512, 128)]),
)
def test_the_networks_rig_projects_to_the_networks_pixels(xyz, source, crop_top, network):
    transform = InputTransform(*source, crop_top, *network)
    rig = transform.rig(RIG)
    for before, after in ((RIG.p_left, rig.p_left), (RIG.p_right, rig.p_right)):
        uv, _ = project(before, xyz)
        expected, _ = project(after, xyz)
        np.testing.assert_allclose(transform.to_network(uv), expected, atol=1e-6)
        np.testing.assert_allclose(transform.to_source(expected), uv, atol=1e-5)


def test_the_papers_preprocessing_of_a_kitti_frame():
    transform = InputTransform(1242, 375, 100, 1280, 288)
    assert transform.scale == pytest.approx(1.0473, abs=1e-4) and transform.scaled_width == 1301
    # The centre of the first kept row's first pixel, half a pixel from the edge on both sides of the scaling.
    np.testing.assert_allclose(transform.to_network(np.array([-0.5, 99.5])), [-0.5, -0.5])
    np.testing.assert_allclose(transform.to_network(np.array([1241.5, 374.5])), [1300.5, 287.5])
    assert transform.rig(RIG).baseline == pytest.approx(RIG.baseline, rel=1e-9)


@pytest.mark.parametrize("crop_top", [-1, 375, 400])
def test_a_crop_that_leaves_nothing_raises(crop_top):
    with pytest.raises(GeometryError, match="crop_top: expected 0 <= crop_top < image height 375"):
        InputTransform(1242, 375, crop_top, 1280, 288)


# --------------------------------------------------------------------------------------------------------------- boxes


def test_a_box_at_rest_looks_along_x():
    corners = box_corners(np.array([1.5, 1.6, 4.0]), np.array([10.0, 2.0, 20.0]), 0.0)
    # Front-left on the ground: half a length along +x, half a width along +z (the object's left), at the bottom.
    np.testing.assert_allclose(corners[0], [12.0, 2.0, 20.8])
    np.testing.assert_allclose(corners[1], [12.0, 2.0, 19.2])
    np.testing.assert_allclose(corners[6], [8.0, 0.5, 19.2])
    assert corners[:4, 1].tolist() == [2.0] * 4 and corners[4:, 1].tolist() == [0.5] * 4


def test_a_quarter_turn_makes_a_box_look_at_the_camera():
    """A car that drives ahead of the camera, away from it, has rotation_y = -pi/2 in KITTI."""
    corners = box_corners(np.array([1.5, 1.6, 4.0]), np.array([0.0, 1.7, 20.0]), -math.pi / 2)
    np.testing.assert_allclose(corners[[0, 1], 2], 22.0)
    np.testing.assert_allclose(corners[0], [-0.8, 1.7, 22.0])


def test_boxes_in_a_batch_are_the_boxes_alone():
    rng = np.random.default_rng(0)
    hwl, location, ry = rng.uniform(1, 4, (3, 2, 3)), rng.uniform(-9, 9, (3, 2, 3)), rng.uniform(-3, 3, (3, 2))
    batch = box_corners(hwl, location, ry)
    assert batch.shape == (3, 2, 8, 3)
    np.testing.assert_allclose(batch[1, 1], box_corners(hwl[1, 1], location[1, 1], ry[1, 1]))


def rotation_matrix(q) -> np.ndarray:
    x, y, z, w = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


@given(angles, st.tuples(st.floats(0.5, 3), st.floats(0.3, 3), st.floats(0.5, 12)))
def test_quaternion_turns_ros_axes_into_the_same_corners(ry, hwl):
    """size = (l, w, h) along x forward, y left, z up, about the middle of the box: what a Detection3D says."""
    h, w, length = hwl
    location = np.array([1.0, 1.7, 15.0])
    quaternion = box_orientation_quaternion(ry)
    assert sum(v * v for v in quaternion) == pytest.approx(1.0)
    own = np.array(
        [
            [x, y, z]
            for z in (-h / 2, h / 2)
            for x, y in ((length / 2, w / 2), (length / 2, -w / 2), (-length / 2, -w / 2), (-length / 2, w / 2))
        ]
    )
    turned = own @ rotation_matrix(quaternion).T + location - [0, h / 2, 0]
    np.testing.assert_allclose(turned, box_corners(np.array(hwl), location, ry), atol=1e-9)


def test_ros_axes_of_a_box_at_rest():
    rotation = rotation_matrix(box_orientation_quaternion(0.0))
    np.testing.assert_allclose(rotation @ [1, 0, 0], [1, 0, 0], atol=1e-12)  # forward: optical right
    np.testing.assert_allclose(rotation @ [0, 1, 0], [0, 0, 1], atol=1e-12)  # left: away from the camera
    np.testing.assert_allclose(rotation @ [0, 0, 1], [0, -1, 0], atol=1e-12)  # up: optical -y


@given(angles, st.floats(-40, 40), st.floats(0.5, 80))
def test_observation_angle_and_heading_are_inverse(ry, x, z):
    alpha = rotation_y_to_alpha(ry, x, z)
    assert -math.pi <= alpha <= math.pi
    again = alpha_to_rotation_y(alpha, x, z)
    assert abs(wrap_angle(again - ry)) < 1e-9 and -math.pi <= again <= math.pi


def test_angles_wrap_into_a_half_open_turn():
    assert wrap_angle(math.pi) == -math.pi and wrap_angle(-math.pi) == -math.pi
    turn = 2 * math.pi
    np.testing.assert_allclose(wrap_angle(np.array([3.5, -3.5, 7.0])), [3.5 - turn, turn - 3.5, 7 - turn])


def test_points_behind_the_camera_have_no_positive_depth():
    uv, depth = project(RIG.p_left, np.array([[0, 0, -5.0], [1, 1, -0.002745884], [0, 0, 5.0]]))
    assert (depth[:2] <= 1e-12).all() and depth[2] > 5 and np.isfinite(uv).all()


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.mark.slow
@needs_kitti
def test_projected_labels_lie_on_labelled_2d_boxes(tmp_path):
    """Boxes that nothing hides or cuts: their 3D corners must project onto their labelled 2D boxes."""
    errors, alphas = [], []
    path = tmp_path / "file.txt"
    for name in sorted(archive("label_2"))[::5]:
        path.write_bytes(archive("calib")[name])
        rig = read_object_calib(path)
        path.write_bytes(archive("label_2")[name])
        for o in read_labels(path):
            if o.label not in ("Car", "Van", "Pedestrian", "Cyclist") or o.occluded or o.truncated > 0 or o.z < 8:
                continue
            uv, depth = project(rig.p_left, o.corners())
            assert (depth > 0).all()
            errors.append(np.abs(np.r_[uv.min(0), uv.max(0)] - o.bbox))
            # The observation angle is that of the labelled frame: heading less bearing.
            alphas.append(wrap_angle(rotation_y_to_alpha(o.rotation_y, o.x, o.z) - o.alpha))
    left, top, right, bottom = np.median(errors, axis=0)
    assert len(errors) > 1500
    assert max(left, top, right, bottom) < 2.0, (left, top, right, bottom)
    assert np.percentile(np.abs(alphas), 95) < 0.03


@needs_kitti
def test_the_right_view_sees_the_labels_where_the_disparity_says(tmp_path):
    path = tmp_path / "calib.txt"
    for name in sorted(archive("calib"))[::500]:
        path.write_bytes(archive("calib")[name])
        rig = read_object_calib(path)
        corners = Object3D("Car", (0, 0, 1, 1), 1.5, 1.6, 4.0, 3.0, 1.7, 25.0, 0.4, 0.3).corners()
        left, right = project(rig.p_left, corners)[0], project(rig.p_right, corners)[0]
        np.testing.assert_allclose(left[:, 0] - right[:, 0], rig.disparity(corners[:, 2]), atol=0.05)
        assert np.abs(left[:, 1] - right[:, 1]).max() < 0.3  # rows of a rectified pair
