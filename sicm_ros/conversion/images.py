# SPDX-License-Identifier: Apache-2.0
"""``sensor_msgs/Image`` and ``CompressedImage`` to RGB arrays, checked before a byte is touched.

The encodings that cameras and bags use are converted here, so that the result is the same with and without
``cv_bridge``; any other encoding is handed to ``cv_bridge`` where it is installed.
"""

from __future__ import annotations

import io
from array import array
from typing import Any

import cv2
import numpy as np
import PIL.Image

__all__ = ["ImageError", "SUPPORTED_ENCODINGS", "rgb_from_compressed", "rgb_to_message_fields", "to_rgb"]

MAX_SIDE = 16384


class ImageError(ValueError):
    """An image message that contradicts itself, or an encoding that cannot be read; the message names field and
    values."""


# encoding -> (bytes per sample, channels, OpenCV conversion to RGB or None)
_ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    "rgb8": (1, 3, None),
    "bgr8": (1, 3, cv2.COLOR_BGR2RGB),
    "8UC3": (1, 3, cv2.COLOR_BGR2RGB),
    "rgba8": (1, 4, cv2.COLOR_RGBA2RGB),
    "bgra8": (1, 4, cv2.COLOR_BGRA2RGB),
    "8UC4": (1, 4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": (2, 3, None),
    "bgr16": (2, 3, cv2.COLOR_BGR2RGB),
    "16UC3": (2, 3, cv2.COLOR_BGR2RGB),
    "rgba16": (2, 4, cv2.COLOR_RGBA2RGB),
    "bgra16": (2, 4, cv2.COLOR_BGRA2RGB),
    "mono16": (2, 1, cv2.COLOR_GRAY2RGB),
    "16UC1": (2, 1, cv2.COLOR_GRAY2RGB),
    # OpenCV names a Bayer pattern by its second row, ROS by its first.
    "bayer_rggb8": (1, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, 1, cv2.COLOR_BayerGB2RGB),
    "bayer_rggb16": (2, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr16": (2, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg16": (2, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg16": (2, 1, cv2.COLOR_BayerGB2RGB),
    "yuv422": (1, 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (1, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (1, 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (1, 2, cv2.COLOR_YUV2RGB_YUY2),
}
SUPPORTED_ENCODINGS = tuple(_ENCODINGS)


def to_rgb(message: Any) -> np.ndarray:
    """An image message as (height, width, 3) uint8 RGB. The array may share memory with ``message.data``.

    16-bit samples are scaled by 255 / 65535. ``8UC3`` is taken for BGR, OpenCV's order. Raises ImageError.
    """
    width, height, step, encoding = message.width, message.height, message.step, message.encoding
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE:
        raise ImageError(f"image: expected width and height in 1..{MAX_SIDE}, got {width}x{height}")
    if encoding not in _ENCODINGS:
        return _by_cv_bridge(message)
    size, channels, conversion = _ENCODINGS[encoding]
    row = width * channels * size
    if step < row:
        raise ImageError(f"image: step: expected at least {row} bytes for {width} columns of {encoding}, got {step}")
    available = len(message.data)
    # The last row may come without its padding.
    if available < step * (height - 1) + row:
        raise ImageError(f"image: data: expected {step * height} bytes ({height} rows of {step}), got {available}")
    raw = np.frombuffer(message.data, np.uint8)
    if available < step * height:
        raw = np.concatenate([raw, np.zeros(step * height - available, np.uint8)])
    rows = raw[: step * height].reshape(height, step)[:, :row]
    if size == 2:
        samples = np.ascontiguousarray(rows).view(">u2" if message.is_bigendian else "<u2")
        # Rounds v * 255 / 65535; exact in integers.
        rows = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    image = rows.reshape(height, width, channels)
    if conversion is None:
        return image
    if encoding.startswith(("yuv", "uyvy", "yuyv")) and width % 2:
        raise ImageError(f"image: width: expected an even number for {encoding}, got {width}")
    return cv2.cvtColor(np.ascontiguousarray(image), conversion)


def rgb_from_compressed(message: Any) -> np.ndarray:
    """A ``sensor_msgs/CompressedImage`` (JPEG, PNG, or another format of OpenCV) as (height, width, 3) uint8 RGB.

    Raises ImageError if it is no image or, before decoding, if a side is longer than MAX_SIDE pixels.
    """
    data = np.frombuffer(message.data, np.uint8)
    what = f"compressed image ({message.format!r}, {len(data)} bytes)"
    if not len(data):
        raise ImageError(f"{what}: expected data")
    if "compressedDepth" in message.format:
        raise ImageError(f"{what}: expected a colour or grey image, got depth")
    try:
        with PIL.Image.open(io.BytesIO(data.data)) as header:  # reads sizes, not pixels
            width, height = header.size
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ImageError(f"{what}: not an image: {' '.join(str(error).split())}") from None
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{what}: expected sides of at most {MAX_SIDE}, got {width}x{height}")
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if image is None or image.shape[:2] != (height, width):
        raise ImageError(f"{what}: damaged: expected {width}x{height} pixels")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def rgb_to_message_fields(image: np.ndarray) -> dict[str, Any]:
    """The fields of an ``rgb8`` image message, without its header, from an (H, W, 3) uint8 RGB array.

    ``data`` is of the type that rclpy's messages hold.
    """
    height, width, _ = image.shape
    data = array("B")
    data.frombytes(np.ascontiguousarray(image).data.cast("B"))
    return {
        "height": height,
        "width": width,
        "encoding": "rgb8",
        "is_bigendian": 0,
        "step": 3 * width,
        "data": data,
    }


def _by_cv_bridge(message: Any) -> np.ndarray:
    try:
        from cv_bridge import CvBridge, CvBridgeError
    except ImportError:
        raise ImageError(
            f"image: encoding: expected one of {', '.join(SUPPORTED_ENCODINGS)}, got {message.encoding!r} "
            "(cv_bridge, which may know it, is not installed)"
        ) from None
    try:
        return np.asarray(CvBridge().imgmsg_to_cv2(message, "rgb8"))
    except (CvBridgeError, RuntimeError, ValueError, cv2.error) as error:
        raise ImageError(
            f"image: encoding: cv_bridge cannot convert {message.encoding!r} to rgb8: {' '.join(str(error).split())}"
        ) from None
