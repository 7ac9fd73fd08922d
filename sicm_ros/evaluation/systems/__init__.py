# SPDX-License-Identifier: Apache-2.0
"""What is compared, one file each: image codecs with the uncompressed detector behind them, and codecs of features.

A system is a ``SystemKind`` in one file, and one line below. An image codec is a class with the methods of
``image_codec.ImageCodec``, which ``image_kind`` makes a system of.
"""

from .avif import Avif
from .drive_video import DRIVE_KINDS
from .feature_video import FEATURE_KINDS
from .hevc import Hevc
from .image_codec import ImageCodec
from .jpeg import Jpeg
from .packets import PacketSystem
from .system import SystemKind
from .uncompressed import Uncompressed, image_kind
from .vtm import Vtm
from .vvc import Vvc

__all__ = ["IMAGE_CODECS", "PAPER_HEIGHT", "SYSTEMS"]

PAPER_HEIGHT = 288  # of the images that the paper codes

IMAGE_CODECS: dict[str, ImageCodec] = {
    codec.name: codec
    for codec in (
        Jpeg(),
        Avif(),
        Hevc("intra"),
        Hevc("inter"),
        Vvc("intra"),
        Vvc("inter"),
        Vvc("inter-one-qp"),
        Vtm("intra"),
        Vtm("inter"),
    )
}
_KINDS = (
    SystemKind("uncompressed", "uncompressed", "the detector on the images as they are", Uncompressed),
    SystemKind("packets", "sicm", "the model's packets, at its whole rates", PacketSystem),
    *map(image_kind, IMAGE_CODECS.values()),
    *(image_kind(IMAGE_CODECS[name], PAPER_HEIGHT) for name in ("vvc-intra", "vvc-inter", "vvc-inter-one-qp")),
    *(image_kind(IMAGE_CODECS[name], PAPER_HEIGHT) for name in ("vtm-intra", "vtm-inter")),
    *FEATURE_KINDS,
    *DRIVE_KINDS,
)
SYSTEMS = {kind.name: kind for kind in _KINDS}
