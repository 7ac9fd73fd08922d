# SPDX-License-Identifier: Apache-2.0
"""What is compared: image codecs with the uncompressed detector behind them, and codecs of features.

An image codec is one file with a class that has the methods of ``image_codec.ImageCodec``, and one line in
``_CODECS``.
"""

from .hevc import Hevc
from .image_codec import ImageCodec
from .jpeg import Jpeg
from .vvc import Vvc

__all__ = ["IMAGE_CODECS"]

_CODECS: tuple[ImageCodec, ...] = (
    Jpeg(),
    Hevc("intra"),
    Hevc("inter"),
    Vvc("intra"),
    Vvc("inter"),
    Vvc("inter-one-qp"),
)
IMAGE_CODECS = {codec.name: codec for codec in _CODECS}
