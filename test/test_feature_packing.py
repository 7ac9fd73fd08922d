# SPDX-License-Identifier: Apache-2.0
"""Features as pictures: every value comes back from where it was put."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sicm_ros.evaluation.systems.feature_packing import LEVELS, dequantise, packing_of, quantise

SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 13)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 2**32 - 1), largest=st.floats(2.0**-60, 2.0**60, width=32))
def test_values_on_the_grid_come_back_as_they_were(shapes, seed, largest):
    packing = packing_of(tuple(shapes))
    assert packing.height % 2 == packing.width % 2 == 0
    rng = np.random.default_rng(seed)
    tensors = [dequantise(rng.integers(0, LEVELS + 1, shape), largest) for shape in shapes]
    picture = packing.pack([quantise(tensor, largest) for tensor in tensors])
    assert picture.shape == (packing.height, packing.width) and picture.dtype == np.uint16
    for tensor, levels in zip(tensors, packing.unpack(picture), strict=True):
        assert np.array_equal(tensor, dequantise(levels, largest))
    # Each sample of the picture belongs to one tensor at most.
    marks = packing.pack([np.ones(shape, np.uint16) for shape in shapes])
    assert marks.sum() == sum(map(np.prod, shapes))


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-1, 9, width=32), min_size=1), largest=st.floats(0.5, 8, width=32))
def test_other_values_are_rounded_down_and_clipped(values, largest):
    values = np.array(values, np.float32)
    error = np.clip(values, 0, largest) - dequantise(quantise(values, largest), largest)
    assert (error > -2e-4 * largest / LEVELS).all() and (error < 1.001 * largest / LEVELS).all()


def test_features_that_are_all_zero():
    assert not quantise(np.zeros((2, 3, 4), np.float32), 0.0).any()


@pytest.mark.parametrize(
    ("shapes", "size", "places"),
    [
        (((64, 72, 320), (128, 36, 160), (256, 18, 80)), (1008, 2560), ((0, 8), (576, 16), (864, 32))),
        (((32, 40, 180), (64, 20, 90), (128, 10, 45)), (560, 720), ((0, 4), (320, 8), (480, 16))),
        # tall tiles have the longer side of the grid beside each other; an odd size is filled up
        (((3, 5, 3),), (6, 10), ((0, 3),)),
    ],
    ids=["mvsfc-r34", "sicm-compact", "odd"],
)
def test_where_the_tiles_are(shapes, size, places):
    packing = packing_of(shapes)
    assert (packing.height, packing.width) == size and packing.places == places
    tensors = [np.full(shape, 100 * i, np.uint16) for i, shape in enumerate(shapes, 1)]
    tensors[0][1] = 7
    picture = packing.pack(tensors)
    _, height, width = shapes[0]
    assert (picture[:height, width : 2 * width] == 7).all() and picture[0, 0] == picture[0, 2 * width] == 100
