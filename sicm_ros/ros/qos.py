# SPDX-License-Identifier: Apache-2.0
"""The QoS profile of every topic, in one place. Each can be overridden by ``qos_overrides.*`` parameters."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

__all__ = ["RELIABILITIES", "boxes_qos", "image_qos", "latched_qos", "overridable", "packet_qos"]

_OVERRIDABLE = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
    QoSPolicyKind.DEADLINE,
    QoSPolicyKind.LIVELINESS,
    QoSPolicyKind.LIVELINESS_LEASE_DURATION,
)
RELIABILITIES = {"best_effort": ReliabilityPolicy.BEST_EFFORT, "reliable": ReliabilityPolicy.RELIABLE}


def _volatile(reliability: str, depth: int) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=RELIABILITIES[reliability],
        durability=DurabilityPolicy.VOLATILE,
    )


def image_qos(reliability: str = "best_effort", depth: int = 5) -> QoSProfile:
    """Images and camera infos: sensor data (REP 2003), best effort unless asked otherwise."""
    return _volatile(reliability, depth)


def packet_qos(reliability: str, depth: int, lifespan_s: float = 0.0) -> QoSProfile:
    """The bit stream. A packet older than ``lifespan_s`` is not worth repeating; 0 for no limit."""
    profile = _volatile(reliability, depth)
    if lifespan_s > 0:
        profile.lifespan = Duration(nanoseconds=round(lifespan_s * 1e9))
    return profile


def boxes_qos(depth: int = 10) -> QoSProfile:
    """Detections and markers: reliable, which RViz's displays ask for."""
    return _volatile("reliable", depth)


def latched_qos() -> QoSProfile:
    """What a late subscriber must still get: model and label information, static transforms."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def overridable(publisher: bool = False) -> QoSOverridingOptions:
    """Lets the user override every policy by parameters; the lifespan is the publisher's alone."""
    return QoSOverridingOptions((*_OVERRIDABLE, QoSPolicyKind.LIFESPAN) if publisher else _OVERRIDABLE)
