# SPDX-License-Identifier: Apache-2.0
"""Pictures: boxes lie where their corners project, are cut at the camera, and never touch what they should not."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kitti_material import ROOT, needs_kitti

from sicm_ros.data.kitti import KittiObject, read_image
from sicm_ros.geometry import Object3D, StereoRig, project
from sicm_ros.pictures import (
    BACKGROUND,
    CLASS_COLOURS,
    FIGURE_HEIGHT,
    LABEL_COLOUR,
    birds_eye,
    detection_figure,
    draw_boxes,
    write_picture,
)

RIG = StereoRig(
    721.5377, 721.5377, 609.5593, 172.854, (44.85728, 0.2163791, 0.002745884), (-339.5242, 2.199936, 0.002729905)
)
GREY = np.full((375, 1242, 3), 128, np.uint8)
CAR = Object3D("Car", (0, 0, 0, 0), 1.5, 1.6, 4.0, 1.0, 1.7, 15.0, -1.2, -1.2, score=0.87)
DONT_CARE = Object3D("DontCare", (690, 140, 810, 230), -1, -1, -1, -1000, -1000, -1000, -10, -10)


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(-1)


def near_colour(picture: np.ndarray, uv: np.ndarray, colour, tolerance=60) -> bool:
    u, v = np.round(uv).astype(int)
    patch = picture[max(v - 1, 0) : v + 2, max(u - 1, 0) : u + 2].astype(int)
    return bool((np.abs(patch - np.array(colour)).max(-1) < tolerance).any())


def test_the_input_stays_and_nothing_gives_nothing():
    before = GREY.copy()
    assert (draw_boxes(GREY, [], RIG) == GREY).all()
    assert (draw_boxes(GREY, [DONT_CARE], RIG, [DONT_CARE]) == GREY).all()
    assert changed(draw_boxes(GREY, [CAR], RIG)).any()
    assert (before == GREY).all()


def test_lines_pass_through_the_projected_corners():
    picture = draw_boxes(GREY, [CAR], RIG)
    uv, _ = project(RIG.p_left, CAR.corners())
    # Every corner but the one that the box itself hides, which is drawn faintly.
    hits = [near_colour(picture, corner, CLASS_COLOURS["Car"]) for corner in uv]
    assert sum(hits) >= 7
    box = changed(picture)
    rows, columns = np.nonzero(box[round(uv[:, 1].min()) :])
    assert [columns.min(), columns.max()] == pytest.approx([uv[:, 0].min(), uv[:, 0].max()], abs=4)
    assert not box[math.ceil(uv[:, 1].max()) + 4 :].any()


def test_labels_are_thin_and_of_their_own_colour():
    picture = draw_boxes(GREY, [], RIG, [CAR])
    uv, _ = project(RIG.p_left, CAR.corners())
    assert sum(near_colour(picture, corner, LABEL_COLOUR) for corner in uv) >= 7
    assert changed(picture).sum() < changed(draw_boxes(GREY, [CAR], RIG)).sum() / 4


def test_the_front_is_the_filled_face():
    """Of a car that comes towards the camera, the near end is filled more than the far end's surroundings."""
    coming = replace(CAR, x=0.0, z=8.0, rotation_y=math.pi / 2)
    picture = draw_boxes(GREY, [coming], RIG).astype(int)
    front = coming.corners()[[0, 1, 5, 4]].mean(0)
    u, v = np.round(project(RIG.p_left, front)[0]).astype(int)
    strong = np.abs(picture[v, u] - 128).sum()
    leaving = draw_boxes(GREY, [replace(coming, x=3.0, z=12.0, rotation_y=math.pi)], RIG).astype(int)
    side = replace(coming, x=3.0, z=12.0, rotation_y=math.pi).corners()[[1, 2, 6, 5]].mean(0)
    u, v = np.round(project(RIG.p_left, side)[0]).astype(int)
    assert strong > 3 * np.abs(leaving[v, u] - 128).sum()


@pytest.mark.parametrize("where", [{"z": -6.0}, {"z": -2.2}, {"x": 60.0, "z": 20.0}, {"x": -90.0, "z": 5.0}])
def test_boxes_out_of_sight_leave_no_mark(where):
    picture = draw_boxes(
        GREY,
        [replace(CAR, rotation_y=0.0, width=1.6, length=4.0, **where)],
        RIG,
        [replace(CAR, rotation_y=0.0, **where)],
    )
    assert not changed(picture).any()


@pytest.mark.parametrize(
    "box",
    [
        replace(CAR, x=-2.0, z=1.0, rotation_y=-math.pi / 2),
        replace(CAR, x=1.9, z=1.8, rotation_y=-1.3),
        replace(CAR, label="Truck", x=3.5, z=3.0, length=10.0, height=3.2, rotation_y=-1.5),
    ],
)
def test_a_box_partly_behind_the_camera_shows_exactly_its_front_part(box):
    picture = draw_boxes(GREY, [box], RIG)
    # Points all over the box's faces; those before the camera are where the picture may change, and nowhere else.
    corners = box.corners()
    s = np.linspace(0, 1, 60)
    a, b = (g.ravel()[:, None] for g in np.meshgrid(s, s))
    inside = np.zeros(GREY.shape[:2], bool)
    for face in ((0, 1, 5, 4), (2, 3, 7, 6), (3, 0, 4, 7), (1, 2, 6, 5), (0, 1, 2, 3), (4, 5, 6, 7)):
        p, q, _, r = corners[list(face)]
        uv, depth = project(RIG.p_left, p + a * (q - p) + b * (r - p))
        uv = np.round(uv[(depth > 0.12)]).astype(int)
        uv = uv[(uv[:, 0] >= 0) & (uv[:, 0] < 1242) & (uv[:, 1] >= 0) & (uv[:, 1] < 375)]
        inside[uv[:, 1], uv[:, 0]] = True
    assert inside.sum() > 100
    touched = changed(picture)
    assert touched[inside].mean() > 0.9
    # Left of the box's leftmost point or right of its rightmost one nothing may be drawn (its tag apart).
    columns = np.nonzero(inside.any(0))[0]
    below_tag = touched[40:]
    assert not below_tag[:, : max(columns.min() - 12, 0)].any() and not below_tag[:, columns.max() + 12 :].any()


coordinates = st.floats(-100, 100)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Object3D,
            label=st.sampled_from(["Car", "Pedestrian", "Zeppelin"]),
            bbox=st.just((0, 0, 1, 1)),
            height=st.floats(0, 9),
            width=st.floats(0, 9),
            length=st.floats(0, 30) | st.floats(0, 1e12),
            x=coordinates,
            y=coordinates,
            z=coordinates,
            rotation_y=st.floats(-9, 9),
            alpha=st.just(0.0),
            score=st.none() | st.floats(0, 1),
        ),
        max_size=4,
    ),
    st.sampled_from([(375, 1242), (60, 90)]),
)
def test_any_boxes_can_be_drawn(objects, shape):
    image = np.zeros((*shape, 3), np.uint8)
    assert draw_boxes(image, objects, RIG, objects).shape == image.shape
    assert birds_eye(objects, objects, rig=RIG, image_width=shape[1]).shape == (560, 520, 3)


def test_distant_tags_do_not_cover_each_other():
    """Behind each other: each tag, as it is drawn where it is alone, is found whole, at a place of its own."""
    labels = ("Car", "Pedestrian", "Cyclist", "Van", "Truck")
    row = [replace(CAR, label=label, z=20.0 + 2 * i) for i, label in enumerate(labels)]
    picture = draw_boxes(GREY, row, RIG)
    ground = (128 * 0.22 + np.array(BACKGROUND) * 0.78).astype(np.uint8)
    places = []
    for car in row:
        alone = draw_boxes(GREY, [car], RIG)
        rows, columns = np.nonzero((alone == ground).all(-1))
        tag = alone[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert tag.shape[0] > 10 and tag.shape[1] > 60
        likeness = cv2.matchTemplate(picture, tag, cv2.TM_CCOEFF_NORMED)
        y, x = np.unravel_index(likeness.argmax(), likeness.shape)
        assert likeness[y, x] > 0.8, f"no whole tag of the {car.label}"
        places.append((x, y, x + tag.shape[1], y + tag.shape[0]))
    for i, (left, top, right, bottom) in enumerate(places):
        for a, b, c, d in places[:i]:
            assert right <= a or c <= left or bottom <= b or d <= top, places
    assert not changed(picture)[:2].any()


# ----------------------------------------------------------------------------------------------------------- from above


def test_a_box_from_above_is_where_it_is_and_points_where_it_drives():
    panel = birds_eye([replace(CAR, x=-8.0, z=30.0, rotation_y=0.0, length=6.0)], reach=50.0)
    is_car = np.abs(panel.astype(int) - CLASS_COLOURS["Car"]).max(-1) < 40
    rows, columns = np.nonzero(is_car)
    scale = (560 - 26 - 14) / 50.0
    # The tick out of its front (+x, to the right) moves the mark's right end, not its left.
    assert columns.min() == pytest.approx(260 + (-8 - 3) * scale, abs=2)
    assert columns.max() == pytest.approx(260 + (-8 + 3 * 1.45) * scale, abs=2)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(534 - 30 * scale, abs=2)


def test_the_reach_grows_with_the_objects_up_to_90_m():
    def rings(objects):
        column = birds_eye(objects)[:534, 262].astype(int)
        line = np.abs(column - BACKGROUND).sum(-1) > 40
        return int((line[1:] & ~line[:-1]).sum())

    assert rings([]) < rings([replace(CAR, x=30.0, z=62.0)]) <= rings([replace(CAR, x=30.0, z=300.0)])
    assert rings([]) == pytest.approx(5, abs=2)


# -------------------------------------------------------------------------------------------------------------- figures


def test_a_figure_joins_image_and_view_from_above():
    figure = detection_figure(GREY, [CAR], RIG, [CAR, DONT_CARE], "000107   3412 bytes")
    assert figure.dtype == np.uint8 and figure.shape == (FIGURE_HEIGHT + 44, round(1242 * FIGURE_HEIGHT / 375) + 526, 3)
    header = figure[:44].astype(int)
    assert (header[:, :400] > 200).any()  # the title
    for colour in (CLASS_COLOURS["Car"], LABEL_COLOUR):  # the legend
        assert (np.abs(header[:, 1500:] - colour).max(-1) < 3).any()


def test_pictures_are_written_as_their_suffix_says(tmp_path):
    picture = draw_boxes(GREY, [CAR], RIG)
    write_picture(tmp_path / "a.png", picture)
    assert (read_image(tmp_path / "a.png") == picture).all()
    write_picture(tmp_path / "a.jpg", picture)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - picture).mean() < 3
    with pytest.raises(ValueError, match=r"a.tiff: suffix: expected .png or .jpg, got .tiff"):
        write_picture(tmp_path / "a.tiff", picture)


@needs_kitti
def test_real_labels_cover_their_cars():
    """On real frames the drawn boxes lie on the labelled 2D boxes."""
    for frame in KittiObject(ROOT / "object"):
        cars = [o for o in frame.labels if o.label == "Car" and o.truncated == 0]
        assert cars
        for car in cars:
            blank = np.zeros_like(frame.left)
            drawn = (draw_boxes(blank, [], frame.rig, [car]) > 0).any(-1)
            rows, columns = np.nonzero(drawn)
            assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx(list(car.bbox), abs=12)
