# SPDX-License-Identifier: Apache-2.0
"""From camera images to the network's input."""

import numpy as np
import pytest
import torch

from sicm_ros.geometry import InputTransform, input_transform
from sicm_ros.preprocessing import MEAN, STD, InputError, normalise, prepare, resize_view

SIZE = InputTransform(310, 120, 20, 288, 96)


def transform_of(width: int, height: int) -> InputTransform:
    return input_transform(width, height, SIZE.crop_top, SIZE.width, SIZE.height)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return tuple(rng.integers(0, 256, (120, 310, 3), dtype=np.uint8) for _ in range(2))  # type: ignore[return-value]


def test_the_input_keeps_the_order_of_a_camera_image_in_memory(pair: tuple[np.ndarray, np.ndarray]) -> None:
    left, right, transform = prepare(*pair, transform_of, torch.device("cpu"))
    assert transform == SIZE
    for view, image in ((left, pair[0]), (right, pair[1])):
        assert view.shape == (1, 3, 96, 288) and view.is_contiguous(memory_format=torch.channels_last)
        # What a convolution goes by; it is stricter about the strides of a batch of one.
        assert torch.nn.functional.relu(view).stride() == view.stride() == (3 * 96 * 288, 1, 3 * 288, 3)
        small = resize_view(image, SIZE).astype(np.float32)
        expected = ((small / 255 - MEAN) / STD).transpose(2, 0, 1)
        assert np.array_equal(view[0].numpy(), expected)


def test_a_batch_is_normalised_as_its_images_are(pair: tuple[np.ndarray, np.ndarray]) -> None:
    batch = normalise(np.stack(pair))
    assert batch.shape == (2, 3, 120, 310) and batch.dtype == np.float32
    assert all(np.array_equal(one, normalise(image)) for one, image in zip(batch, pair, strict=True))


def test_a_stream_of_images_has_one_transform(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = (prepare(*pair, transform_of, torch.device("cpu"))[2] for _ in range(2))
    assert first is second
    with pytest.raises(InputError, match="image size 310x20: crop_top: expected 0 <= crop_top < image height 20"):
        prepare(*(image[:20] for image in pair), transform_of, torch.device("cpu"))
    with pytest.raises(InputError, match="expected equal sizes, got 310x120 and 310x119"):
        prepare(pair[0], pair[1][:119], transform_of, torch.device("cpu"))
