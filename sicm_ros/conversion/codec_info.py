# SPDX-License-Identifier: Apache-2.0
"""``CodecInfo``: the description of the model that coded the packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from std_msgs.msg import Header

from sicm_ros.codec.packet import VERSION
from sicm_ros.msg import CodecInfo

if TYPE_CHECKING:
    from sicm_ros.model_store import StoredModel

__all__ = ["codec_info"]


def codec_info(header: Header, model: StoredModel) -> CodecInfo:
    """The message for packets of ``model``."""
    return CodecInfo(
        header=header,
        model_name=model.name,
        fingerprint=model.fingerprint,
        packet_version=VERSION,
        class_names=list(model.classes),
        rates=[float(v) for v in model.lambdas],
        default_rate=float(model.config.default_rate),
    )
