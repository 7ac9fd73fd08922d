# SPDX-License-Identifier: Apache-2.0
"""Image messages to RGB arrays and back."""

import array
import io
from types import SimpleNamespace

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sicm_ros.conversion.images import (
    SUPPORTED_ENCODINGS,
    ImageError,
    rgb_from_compressed,
    rgb_to_message_fields,
    to_rgb,
)


def image(encoding, pixels, bigendian=0, padding=0):
    """A message of (H, W, C) samples, with ``padding`` bytes at the end of each row."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    rows = np.concatenate([rows, np.full((height, padding), 77, np.uint8)], 1)
    return SimpleNamespace(
        width=width, height=height, encoding=encoding, is_bigendian=bigendian, step=rows.shape[1], data=rows.tobytes()
    )


PICTURE = np.random.default_rng(5).integers(0, 256, (6, 8, 3), np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "channels"),
    [
        ("rgb8", (0, 1, 2)),
        ("bgr8", (2, 1, 0)),
        ("8UC3", (2, 1, 0)),
        ("rgba8", (0, 1, 2, 0)),
        ("bgra8", (2, 1, 0, 0)),
        ("8UC4", (2, 1, 0, 0)),
    ],
)
def test_colour_orders(encoding, channels, padding):
    assert np.array_equal(to_rgb(image(encoding, PICTURE[..., list(channels)], padding=padding)), PICTURE)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey(encoding):
    grey = PICTURE[..., :1]
    assert np.array_equal(to_rgb(image(encoding, grey)), grey.repeat(3, 2))


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_and_rounded_in_either_byte_order(encoding, order):
    samples = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=order)[..., None]
    result = to_rgb(image(encoding, samples, bigendian=int(order == ">u2")))
    assert result[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255] and result.shape == (1, 6, 3)


def test_sixteen_bit_colours():
    wide = PICTURE.astype(np.uint16) * 257
    assert np.array_equal(to_rgb(image("rgb16", wide)), PICTURE)
    assert np.array_equal(to_rgb(image("bgr16", wide[..., ::-1])), PICTURE)
    assert np.array_equal(to_rgb(image("bgra16", wide[..., [2, 1, 0, 0]])), PICTURE)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_bayer_patterns_by_their_first_row(pattern, bits):
    colour = np.array([200, 120, 40], np.uint16)
    mosaic = np.empty((16, 16), np.uint16)
    for i, channel in enumerate(pattern):
        mosaic[i // 2 :: 2, i % 2 :: 2] = colour["rgb".index(channel)]
    mosaic = mosaic.astype(np.uint8) if bits == 8 else mosaic * np.uint16(257)
    inner = to_rgb(image(f"bayer_{pattern}{bits}", mosaic[..., None]))[4:-4, 4:-4]
    assert (inner == colour).all()


def test_yuv_422():
    # Y of 82 with U 90, V 240 is BT.601's pure red.
    uyvy = np.tile(np.array([[90, 82], [240, 82]], np.uint8), (2, 2, 1)).reshape(2, 4, 2)
    red = to_rgb(image("yuv422", uyvy))
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 3
    assert np.array_equal(to_rgb(image("yuv422_yuy2", uyvy[..., ::-1])), red)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "32FC1"}, "encoding: expected one of .*'32FC1'"),
        ({"encoding": ""}, "encoding"),
        ({"step": 23}, "step: expected at least 24 bytes .* got 23"),
        ({"data": b"x" * 143}, "data: expected 144 bytes .* got 143"),
        ({"data": b""}, "data: expected 144 bytes .* got 0"),
        ({"width": 0}, "width and height"),
        ({"height": 0}, "width and height"),
        ({"width": 2**31}, "width and height"),
        ({"step": 2**32 - 1}, "data: expected"),
    ],
)
def test_broken_images_are_named(change, words):
    message = image("rgb8", PICTURE)
    vars(message).update(change)
    with pytest.raises(ImageError, match=words) as caught:
        to_rgb(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_compressed_images(kind):
    colours = np.kron(np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
    data = cv2.imencode(kind, colours[..., ::-1])[1].tobytes()
    image = rgb_from_compressed(
        SimpleNamespace(format=f"rgb8; {kind[1:]} compressed bgr8", data=array.array("B", data))
    )
    assert image.dtype == np.uint8 and image.shape == colours.shape
    assert np.abs(image.astype(int) - colours)[2:-2].mean() < (6 if kind == ".jpg" else 1e-9)
    for cut in (0, 5, len(data) // 2):
        try:
            cut_image = rgb_from_compressed(SimpleNamespace(format=kind, data=array.array("B", data[:cut])))
        except ImageError as error:
            assert f"({kind!r}, {cut} bytes)" in str(error) and "\n" not in str(error)
        else:
            assert cut > 5 and cut_image.shape == image.shape  # libjpeg fills up what is missing


def test_compressed_images_that_are_none():
    large = io.BytesIO()
    PIL.Image.new("1", (20000, 1)).save(large, "PNG")
    for form, data, words in (
        ("jpeg", b"", "expected data"),
        ("jpeg", b"no image at all", "not an image"),
        ("16UC1; compressedDepth png", b"\x00" * 12, "got depth"),
        ("png", large.getvalue(), "expected sides of at most 16384, got 20000x1"),
    ):
        with pytest.raises(ImageError, match=words):
            rgb_from_compressed(SimpleNamespace(format=form, data=array.array("B", data)))


def test_the_last_row_may_lack_its_padding():
    message = image("rgb8", PICTURE, padding=8)
    message.data = message.data[:-8]
    assert np.array_equal(to_rgb(message), PICTURE)


@settings(max_examples=200)
@given(
    st.sampled_from([*SUPPORTED_ENCODINGS, "nv21", "x"]),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 200),
    st.binary(max_size=2000),
    st.integers(0, 1),
)
def test_any_message_gives_an_image_or_an_image_error(encoding, width, height, step, data, bigendian):
    message = SimpleNamespace(
        width=width, height=height, encoding=encoding, step=step, data=data, is_bigendian=bigendian
    )
    try:
        result = to_rgb(message)
    except ImageError:
        return
    assert result.shape == (height, width, 3) and result.dtype == np.uint8


def test_message_fields_of_an_array():
    assert np.array_equal(to_rgb(SimpleNamespace(**rgb_to_message_fields(PICTURE))), PICTURE)
    assert np.array_equal(to_rgb(SimpleNamespace(**rgb_to_message_fields(PICTURE[:, ::2]))), PICTURE[:, ::2])


def test_the_conversion_of_rgb8_looks_into_the_message():
    """No copy of an image is made on its way to the encoder."""
    image_type = pytest.importorskip("sensor_msgs.msg").Image
    message = image_type(**rgb_to_message_fields(PICTURE))
    assert np.shares_memory(to_rgb(message), np.frombuffer(message.data, np.uint8))
