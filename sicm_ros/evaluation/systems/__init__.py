# SPDX-License-Identifier: Apache-2.0
"""What is compared, one file each: image codecs with the uncompressed detector behind them, and codecs of features.

A system is a ``SystemKind`` in one file, and one line below. An image codec is a class with the methods of
``image_codec.ImageCodec``, which ``image_kind`` makes a system of; a learned codec is a ``stereo_codec.StereoCodec``,
for which ``learned_kind`` does so.
"""

from .avif import Avif
from .drive_video import DRIVE_KINDS
from .feature_video import FEATURE_KINDS
from .hevc import Hevc
from .image_codec import ImageCodec
from .jpeg import Jpeg
from .learned import learned_kind
from .lei import Lei
from .liu import Liu
from .packets import PacketSystem
from .stereo_codec import StereoCodec
from .system import SystemKind
from .uncompressed import Uncompressed, image_kind
from .vtm import Vtm
from .vvc import Vvc
from .wang import Wang

__all__ = ["IMAGE_CODECS", "LEARNED_CODECS", "PACKETS", "PAPER_HEIGHT", "SYSTEMS"]

PACKETS = "packets"
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
LEARNED_CODECS: dict[str, type[StereoCodec]] = {codec.name: codec for codec in (Wang, Lei, Liu)}
_KINDS = (
    SystemKind("uncompressed", "uncompressed", "the detector on the images as they are", Uncompressed),
    SystemKind(PACKETS, "packets", "the model's packets, at its whole rates", PacketSystem),
    *map(image_kind, IMAGE_CODECS.values()),
    *(image_kind(IMAGE_CODECS[name], PAPER_HEIGHT) for name in ("vvc-intra", "vvc-inter", "vvc-inter-one-qp")),
    *(image_kind(IMAGE_CODECS[name], PAPER_HEIGHT) for name in ("vtm-intra", "vtm-inter")),
    *FEATURE_KINDS,
    *DRIVE_KINDS,
    *map(learned_kind, LEARNED_CODECS.values()),
)
SYSTEMS = {kind.name: kind for kind in _KINDS}
