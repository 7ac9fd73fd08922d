# SPDX-License-Identifier: Apache-2.0
"""Average precision: equal to what the official evaluators print, and its rules one by one on frames made for them."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kitti_material import ROOT, archive, needs_kitti

from sicm_ros.data.kitti import read_labels, read_split
from sicm_ros.evaluation.kitti_ap import METRICS, Scorer, bev_iou, box3d_iou, evaluate
from sicm_ros.geometry import Object3D, box_corners

CAR = Object3D("Car", (400, 150, 500, 220), 1.5, 1.6, 4.0, 2.0, 1.7, 20.0, 0.3, 0.2, truncated=0.0, occluded=0)


def found(truth: Object3D, score: float = 0.9, **changes) -> Object3D:
    return replace(truth, truncated=-1.0, occluded=-1, score=score, **changes)


# ------------------------------------------------------------------------------------------------- official evaluators


def parsed(tmp_path, texts):
    path = tmp_path / "frame.txt"
    for text in texts:
        path.write_bytes(text)
        yield read_labels(path)


@pytest.mark.slow
@needs_kitti
def test_every_figure_equals_the_official_evaluators(tmp_path):
    folder = ROOT / "ap_reference"
    ids = read_split(folder / "ids.txt")
    labels = list(parsed(tmp_path, (archive("label_2")[i] for i in ids)))
    results = list(parsed(tmp_path, (archive("ap_reference/results")[i] for i in ids)))
    table = evaluate(labels, results)
    expected = json.loads((folder / "expected.json").read_text())
    compared = 0
    for recall in ("R40", "R11"):
        for metric in ("2D", "AOS", "BEV", "3D"):
            for name in ("Car", "Pedestrian", "Cyclist"):
                np.testing.assert_allclose(
                    table[recall][metric][name],
                    expected[recall][metric][name],
                    atol=0.005,
                    err_msg=f"{recall} {metric} {name}",
                )
                compared += 3
    assert compared == 72
    for name in ("Car", "Pedestrian", "Cyclist"):
        assert (np.array(table["R40"]["3D loose"][name]) > np.array(table["R40"]["3D"][name])).all()


@pytest.mark.slow
@needs_kitti
def test_a_whole_validation_split(tmp_path):
    """A real stereo detector's boxes for 3769 frames."""
    ids = read_split(ROOT / "splits" / "val.txt")
    labels = list(parsed(tmp_path, (archive("label_2")[i] for i in ids)))
    results = list(parsed(tmp_path, (archive("detections_val")[i] for i in ids)))
    table = evaluate(labels, results, ["Car"])
    np.testing.assert_allclose(table["R40"]["3D"]["Car"], (90.84, 82.29, 77.72), atol=0.01)
    np.testing.assert_allclose(table["R11"]["BEV"]["Car"], (89.82, 88.30, 87.16), atol=0.01)


# ------------------------------------------------------------------------------------------------------------ overlaps


def test_overlaps_of_known_boxes():
    box = [0, 10, 4, 2, 0]
    others = [
        box,
        [2, 10, 4, 2, 0],
        [0, 11, 4, 2, 0],
        [0, 10, 4, 2, math.pi / 2],
        [4, 10, 4, 2, 0],
        [0, 10, 2, 1, 0],
        [0, 10, 4, 2, math.pi],
        [50, 10, 4, 2, 1],
    ]
    np.testing.assert_allclose(
        bev_iou(np.array([box]), np.array(others))[0], [1, 1 / 3, 1 / 3, 1 / 3, 0, 1 / 4, 1, 0], atol=1e-12
    )
    # A square turned by 45 degrees over itself: a regular octagon.
    octagon = 2 * (math.sqrt(2) - 1)
    assert bev_iou(np.array([[0, 0, 1, 1, 0.0]]), np.array([[0, 0, 1, 1, math.pi / 4]]))[0, 0] == pytest.approx(
        octagon / (2 - octagon)
    )


def test_volumes_share_height_too():
    a = np.array([[0, 1.5, 10, 2.0, 2, 4, 0]])  # from 1.5 (ground) up to -0.5
    b = np.array([[0, 1.5, 10, 1.0, 2, 4, 0], [0, 0.5, 10, 2.0, 2, 4, 0], [0, -0.5, 10, 2.0, 2, 4, 0]])
    np.testing.assert_allclose(box3d_iou(a, b)[0], [1 / 2, 1 / 3, 0], atol=1e-12)


def test_overlaps_of_nothing_and_of_wrong_shapes():
    assert bev_iou(np.zeros((0, 5)), np.ones((3, 5))).shape == (0, 3)
    assert box3d_iou(np.ones((2, 7)), np.zeros((0, 7))).shape == (2, 0)
    with pytest.raises(ValueError, match=r"expected shape \(N, 5\)"):
        bev_iou(np.ones((2, 4)), np.ones((2, 5)))


sides = st.floats(0.3, 8)
rectangles = st.tuples(st.floats(-4, 4), st.floats(-4, 4), sides, sides, st.floats(-7, 7))


@settings(max_examples=100, deadline=None)
@given(rectangles, rectangles, st.floats(-3, 3), st.floats(-20, 20))
def test_rotated_overlap_is_symmetric_and_moves_with_the_boxes(a, b, turn, shift):
    first, second = np.array([a]), np.array([b])
    iou = bev_iou(first, second)[0, 0]
    assert 0 <= iou <= 1 + 1e-12
    assert bev_iou(second, first)[0, 0] == pytest.approx(iou, abs=1e-9)
    assert bev_iou(first, first)[0, 0] == pytest.approx(1.0)
    # Turn the world about y, and move it.
    c, s = math.cos(turn), math.sin(turn)
    moved = [np.array([[c * r[0] + s * r[1] + shift, -s * r[0] + c * r[1], r[2], r[3], r[4] + turn]]) for r in (a, b)]
    assert bev_iou(*moved)[0, 0] == pytest.approx(iou, abs=1e-9)


large_sides = st.floats(1.5, 8)
large_rectangles = st.tuples(st.floats(-4, 4), st.floats(-4, 4), large_sides, large_sides, st.floats(-7, 7))


@settings(max_examples=25, deadline=None)
@given(large_rectangles, large_rectangles)
def test_rotated_overlap_is_what_sampling_finds(a, b):
    grid = np.linspace(-10.013, 10.013, 501)
    x, z = np.meshgrid(grid, grid)
    inside = []
    for box in (a, b):
        corners = box_corners(np.array([1, box[3], box[2]]), np.array([box[0], 0, box[1]]), box[4])[3::-1, [0, 2]]
        area = np.ones(x.shape, bool)
        for p, q in zip(corners, np.roll(corners, -1, 0), strict=True):
            area &= ((q[0] - p[0]) * (z - p[1]) - (q[1] - p[1]) * (x - p[0])) >= 0
        inside.append(area)
    sampled = (inside[0] & inside[1]).sum() / max((inside[0] | inside[1]).sum(), 1)
    assert bev_iou(np.array([a]), np.array([b]))[0, 0] == pytest.approx(sampled, abs=0.06)


# --------------------------------------------------------------------------------------------------------------- rules


def average(labels, results, metric="3D", name="Car", recall="R40") -> tuple[float, float, float]:
    return evaluate(labels, results, [name])[recall][metric][name]


def spread(count: int, frame_objects=lambda car: [car], result=lambda car, score: [found(car, score)]):
    """``count`` frames with one car each, and what is found in them, at different scores."""
    labels, results = [], []
    for i in range(count):
        car = replace(CAR, x=-20.0 + 40 * i / count, rotation_y=0.1 * i)
        labels.append(frame_objects(car))
        results.append(result(car, 1 - i / (2 * count)))
    return labels, results


def test_everything_found_scores_100_in_every_metric():
    table = evaluate(*spread(100), ["Car"])
    for recall in ("R40", "R11"):
        for metric in METRICS:
            assert table[recall][metric]["Car"] == pytest.approx((100, 100, 100)), (recall, metric)


def test_nothing_found_scores_0_and_nothing_labelled_is_not_a_number():
    labels, _ = spread(50)
    assert average(labels, [[]] * 50) == (0, 0, 0)
    assert all(math.isnan(v) for v in average([[]], [[found(CAR)]]))
    assert all(math.isnan(v) for v in average(labels, [[]] * 50, name="Pedestrian"))


def test_half_of_the_objects_found_reaches_half_of_the_recall():
    labels, results = spread(100)
    results[50:] = [[] for _ in range(50)]
    easy = average(labels, results)[0]
    assert easy == pytest.approx(50, abs=2.6)


def test_a_false_positive_for_each_object_halves_precision():
    def both(car, score):
        return [found(car, score), found(replace(car, z=60.0, bbox=(900, 150, 990, 220)), score)]

    assert average(*spread(100, result=both)) == pytest.approx((50, 50, 50), abs=1)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"z": CAR.z + 0.25}, (100, 100)),  # IoU 0.73: a hit for both
        ({"z": CAR.z + 0.45}, (0, 100)),  # 0.56: only for the loose threshold
        ({"z": CAR.z + 0.60}, (0, 0)),  # 0.45
    ],
)
def test_strict_and_loose_overlap(change, expected):
    labels, results = spread(
        60,
        lambda car: [replace(car, rotation_y=0.0)],
        lambda car, score: [found(replace(car, rotation_y=0.0, **change), score)],
    )
    figures = average(labels, results, "BEV")[0], average(labels, results, "BEV loose")[0]
    assert figures == pytest.approx(expected)


@pytest.mark.parametrize(
    "change, counts",
    [
        ({"occluded": 1}, (False, True, True)),
        ({"occluded": 2}, (False, False, True)),
        ({"occluded": 3}, (False,) * 3),
        ({"truncated": 0.15}, (True, True, True)),
        ({"truncated": 0.2}, (False, True, True)),
        ({"truncated": 0.5}, (False, False, True)),
        ({"truncated": 0.51}, (False,) * 3),
        ({"bbox": (400, 150, 500, 190)}, (True, True, True)),
        ({"bbox": (400, 150, 500, 189.9)}, (False, True, True)),
        ({"bbox": (400, 150, 500, 174.9)}, (False, False, False)),
    ],
)
def test_which_objects_count_at_which_difficulty(change, counts):
    """Found or not, an object that is too hard changes nothing: with only such objects there is no figure."""
    labels, results = spread(
        60, lambda car: [replace(car, **change)], lambda car, score: [found(replace(car, **change), score)]
    )
    assert tuple(not math.isnan(v) for v in average(labels, results)) == counts


def with_extra(extra_label, extra_result):
    return spread(60, lambda car: [car, *extra_label], lambda car, score: [found(car, score), *extra_result])


def test_a_detection_on_a_neighbouring_class_is_not_punished():
    van = replace(CAR, label="Van", z=45.0, bbox=(700, 150, 800, 220))
    truck = replace(van, label="Truck")
    on_it = [found(replace(van, label="Car"), 0.99)]
    assert average(*with_extra([van], on_it)) == pytest.approx((100, 100, 100))
    assert average(*with_extra([truck], on_it))[0] == pytest.approx(50, abs=2)
    sitting = replace(CAR, label="Person_sitting")
    person = replace(CAR, label="Pedestrian", x=9.0, bbox=(100, 150, 140, 220))
    labels = [[person, sitting]] * 60
    results = [[found(person, 0.9 - i / 100), found(replace(sitting, label="Pedestrian"), 0.95)] for i in range(60)]
    assert average(labels, results, name="Pedestrian") == pytest.approx((100, 100, 100))


def test_dont_care_regions_excuse_2d_detections():
    region = Object3D("DontCare", (690, 140, 810, 230), -1, -1, -1, -1000, -1000, -1000, -10, -10)
    inside = [found(replace(CAR, z=45.0, bbox=(700, 150, 800, 220)), 0.99)]
    assert average(*with_extra([region], inside), "2D") == pytest.approx((100, 100, 100))
    assert average(*with_extra([], inside), "2D")[0] == pytest.approx(50, abs=2)


def test_small_detections_are_ignored():
    small = [found(replace(CAR, z=45.0, bbox=(700, 150, 800, 174)), 0.99)]
    assert average(*with_extra([], small)) == pytest.approx((100, 100, 100))
    larger = [found(replace(CAR, z=45.0, bbox=(700, 150, 800, 180)), 0.99)]
    easy, moderate, _ = average(*with_extra([], larger))
    assert easy == pytest.approx(100) and moderate == pytest.approx(50, abs=2)


def test_two_detections_of_one_object_are_a_hit_and_a_false_positive():
    labels, results = spread(60, result=lambda car, score: [found(car, score), found(car, score, x=car.x + 0.1)])
    assert average(labels, results)[0] == pytest.approx(50, abs=1)


def test_orientation_similarity():
    def turned(by):
        labels, results = spread(60, result=lambda car, score: [found(car, score, alpha=car.alpha + by)])
        return average(labels, results, "AOS")[0]

    assert turned(math.pi) == pytest.approx(0, abs=1e-6)
    assert turned(math.pi / 2) == pytest.approx(50)
    assert turned(2 * math.pi) == pytest.approx(100)
    labels, results = spread(60, result=lambda car, score: [found(car, score, alpha=-10.0)])
    table = evaluate(labels, results, ["Car"])
    assert all(math.isnan(v) for v in table["R40"]["AOS"]["Car"]) and table["R40"]["2D"]["Car"][0] == 100


def test_the_order_of_frames_and_of_detections_does_not_matter():
    labels, results = with_extra([replace(CAR, label="Van", z=45.0)], [found(replace(CAR, z=30.0), 0.7)])
    before = evaluate(labels, results)
    order = list(range(len(labels)))
    random.Random(0).shuffle(order)
    after = evaluate([labels[i] for i in order], [results[i][::-1] for i in order])
    np.testing.assert_equal(after, before)


def test_a_choice_of_frames_counts_as_those_frames():
    """Frames that are chosen several times are as many frames that look the same."""
    rng = np.random.default_rng(3)
    labels, results = spread(40)
    results = [
        [replace(o, x=o.x + rng.normal(0, 0.4), score=rng.random()) for o in frame] + [found(CAR, rng.random())]
        for frame in results
    ]
    scorer = Scorer(labels, results)
    for _ in range(5):
        chosen = rng.integers(0, 40, 40)
        table = evaluate([labels[i] for i in chosen], [results[i] for i in chosen], ["Car"])
        for metric in ("2D", "BEV", "3D", "3D loose"):
            assert scorer.average(metric, "Car", 1, chosen).precision[1] == table["R40"][metric]["Car"][1]
    assert math.isnan(scorer.average("BEV", "Cyclist", 1, chosen).precision[1])


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="as many frames as labels, 1, got 2"):
        evaluate([[]], [[], []])
    with pytest.raises(ValueError, match="expected a score"):
        evaluate([[CAR]], [[CAR]])
    with pytest.raises(ValueError, match="class: expected one of Car, Pedestrian, Cyclist, got 'Bus'"):
        evaluate([[]], [[]], ["Bus"])
