# SPDX-License-Identifier: Apache-2.0
"""JPEG, what most ROS systems send today: each view by itself, with OpenCV as ``compressed_image_transport`` has it."""

from __future__ import annotations

import time

import cv2
import numpy as np

from .image_codec import CodecError, CodedViews

__all__ = ["Jpeg"]


class Jpeg:
    """See ``ImageCodec``; a point is JPEG's quality. Tables and headers count, because each image is sent with them."""

    name, title = "jpeg", "JPEG"
    note = "JPEG of each view, 4:2:0"
    points = (5, 10, 20, 40, 70, 90)

    def missing(self) -> str:
        """See ``ImageCodec``."""
        return ""

    def code(self, left: np.ndarray, right: np.ndarray, point: int) -> CodedViews:
        """See ``ImageCodec``."""
        begin = time.process_time()
        files = []
        for view in (left, right):
            good, data = cv2.imencode(".jpg", cv2.cvtColor(view, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, point])
            if not good:
                raise CodecError(f"jpeg: OpenCV cannot write an image of shape {view.shape}")
            files.append(data)
        encoded = time.process_time()
        views = [cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for data in files]
        decoded = time.process_time()
        return CodedViews(views[0], views[1], sum(map(len, files)), encoded - begin, decoded - encoded)
