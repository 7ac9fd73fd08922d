# SPDX-License-Identifier: Apache-2.0
"""Only boxes that can exist leave the decoder, whatever the image and the model; the others are counted."""

import dataclasses
import math

import numpy as np
import pytest
from codec_material import RIG, TAME_MODEL, TINY_MODEL
from hypothesis import given
from hypothesis import strategies as st

from sicm_ros.codec.decoder import StereoDecoder
from sicm_ros.codec.encoder import StereoEncoder
from sicm_ros.geometry import InputTransform, project
from sicm_ros.networks.detection import (
    DEPTH_RANGE,
    HEIGHT_RANGE,
    LENGTH_RANGE,
    WIDTH_RANGE,
    can_exist,
)

SIZE = (375, 1242)
TRANSFORM = InputTransform(1242, 375, 100, 720, 160)


def picture(name: str) -> np.ndarray:
    """(375, 1242, 3) uint8."""
    rows, columns = np.indices(SIZE)
    grey = {
        "black": np.zeros(SIZE),
        "white": np.full(SIZE, 255),
        "checkerboard": 255 * ((rows // 20 + columns // 20) % 2),
        "noise": np.random.default_rng(3).integers(0, 256, SIZE),
    }[name]
    return np.repeat(grey[..., None], 3, 2).astype(np.uint8)


@pytest.fixture(scope="module", params=[TINY_MODEL, TAME_MODEL, "sicm-compact"], ids=["tiny", "tame", "sicm-compact"])
def ends(request: pytest.FixtureRequest) -> tuple[StereoEncoder, StereoDecoder]:
    """Both ends of a model; the decoder keeps every box."""
    return StereoEncoder(request.param), StereoDecoder(request.param, score_threshold=0.0)


@pytest.mark.parametrize("name", ["black", "white", "checkerboard", "noise"])
def test_no_image_and_no_model_gives_a_box_that_cannot_exist(
    ends: tuple[StereoEncoder, StereoDecoder], name: str
) -> None:
    encoder, decoder = ends
    left = picture(name)
    found = decoder.decode(encoder.encode(left, np.roll(left, -9, 1), RIG).packet)
    assert len(found.objects) + found.refused > 0
    assert (found.refused > 0) if decoder.model.name == "tiny" else found.objects
    for box in found.objects:
        values = (box.z, box.height, box.width, box.length)
        for value, (low, high) in zip(values, (DEPTH_RANGE, HEIGHT_RANGE, WIDTH_RANGE, LENGTH_RANGE), strict=True):
            assert low <= value <= high, box
        x0, y0, x1, y1 = box.bbox
        assert 0 <= x0 < x1 <= 1241 and 0 <= y0 < y1 <= 374, box
        (u, v), depth = project(RIG.p_left, np.array([box.x, box.y - box.height / 2, box.z]))
        reach = RIG.fx * math.dist((0, 0, 0), (box.height, box.width, box.length)) / depth + 2
        assert depth > 0 and -reach <= u <= 1241 + reach and -reach <= v <= 374 + reach, box


def row(**change: float) -> np.ndarray:
    """(1, 14): a car 20 m ahead, as ``Anchors.decode`` gives it, for the network's input of ``TRANSFORM``."""
    names = ("left", "top", "right", "bottom", "h", "w", "l", "x", "y", "z", "rotation_y", "alpha", "u", "v")
    values = (330.0, 40.0, 390.0, 75.0, 1.5, 1.6, 3.9, 0.0, 1.6, 20.0, 0.3, 0.3, 360.0, 58.0)
    return np.array([[{**dict(zip(names, values, strict=True)), **change}[name] for name in names]])


FOCAL = (TRANSFORM.rig(RIG).fx, TRANSFORM.rig(RIG).fy)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"z": 0.6},
        {"z": 199.0},
        {"h": 0.2, "w": 0.2, "l": 0.2},
        {"h": 4.0, "w": 3.0, "l": 35.0},
        {"left": -60.0, "right": 5.0, "u": -90.0, "z": 6.0},  # cut off by the image's edge
        {"z": 1.0, "u": -800.0, "left": -400.0, "right": 30.0},  # a car right beside the camera
    ],
)
def test_what_can_be_is_kept(change: dict[str, float]) -> None:
    assert can_exist(row(**change), FOCAL, TRANSFORM.visible).tolist() == [True]


@pytest.mark.parametrize(
    "change",
    [
        {"z": -20.0},
        {"z": 0.0},
        {"z": 201.0},
        {"z": 1e10},
        {"z": math.inf},
        {"h": -1.5},
        {"h": 7.0},
        {"w": 0.0},
        {"l": 41.0},
        {"x": math.nan},
        {"left": 730.0, "right": 790.0},  # right of the image
        {"left": -80.0, "right": -1.0},
        {"top": -40.0, "bottom": -2.0},  # only in the rows that were cut off
        {"left": 390.0, "right": 330.0},
        {"u": -500.0},  # the middle of a car 20 m away cannot be that far outside
        {"v": 900.0},
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, float]) -> None:
    both = np.concatenate([row(**change), row()])
    assert can_exist(both, FOCAL, TRANSFORM.visible).tolist() == [False, True]


@given(st.lists(st.floats(width=32), min_size=14, max_size=14))
def test_any_numbers_are_judged_without_an_error(values: list[float]) -> None:
    (sound,) = can_exist(np.array([values]), FOCAL, TRANSFORM.visible)
    assert not sound or (np.isfinite(values).all() and DEPTH_RANGE[0] <= values[9] <= DEPTH_RANGE[1])


@pytest.mark.parametrize("width", [500, 1242, 3000])
def test_the_visible_part_of_an_image_that_is_narrower_or_wider_than_the_input(width: int) -> None:
    transform = dataclasses.replace(TRANSFORM, source_width=width)
    left, top, right, bottom = transform.visible
    assert (left, top) == (0, 0) and right == pytest.approx(min(width * transform.scale, 720) - 1, abs=1)
    assert bottom == pytest.approx(159, abs=1)
    assert transform.to_source(np.array([right, bottom]))[0] <= width - 1 + 1e-9
