# SPDX-License-Identifier: Apache-2.0
"""AVIF, AV1's still pictures: each view by itself, with libavif and libaom as Pillow has them."""

from __future__ import annotations

import io
import time

import numpy as np
from PIL import Image, features

from .image_codec import CodecError, CodedViews

__all__ = ["Avif", "read_avif"]


class Avif:
    """See ``ImageCodec``; a point is libavif's quality. The whole file counts, because each image is sent with it."""

    name, title = "avif", "AVIF"
    note = "AVIF of each view, 4:2:0 (libaom, speed 6)"
    points = (5, 20, 35, 50, 65, 80)

    def missing(self) -> str:
        """See ``ImageCodec``."""
        return "" if features.check("avif") else "needs a Pillow with AVIF: pip install -r requirements/nodes.txt"

    def code(self, left: np.ndarray, right: np.ndarray, point: int) -> CodedViews:
        """See ``ImageCodec``."""
        begin = time.process_time()
        files = []
        for view in (left, right):
            file = io.BytesIO()
            Image.fromarray(view).save(file, "AVIF", quality=point, subsampling="4:2:0", speed=6, max_threads=1)
            files.append(file.getvalue())
        encoded = time.process_time()
        views = [read_avif(data) for data in files]
        decoded = time.process_time()
        return CodedViews(views[0], views[1], sum(map(len, files)), encoded - begin, decoded - encoded)


def read_avif(data: bytes) -> np.ndarray:
    """A file as an image (H, W, 3) uint8 RGB. Raises CodecError."""
    try:
        with Image.open(io.BytesIO(data), formats=["AVIF"]) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise CodecError(f"avif: expected a whole file, got {len(data)} bytes: {words[:200]}") from None
