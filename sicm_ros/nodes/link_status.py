# SPDX-License-Identifier: Apache-2.0
"""What the decoder node tells of one vehicle's packets: its diagnostics, and the times of each frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from sicm_ros.msg import StereoBitstream
from sicm_ros.ros.diagnostics import Problems, Status

__all__ = ["decoding_status", "frame_stats", "link_status"]

_REFUSALS = (
    "NotAPacketError",
    "TruncatedPacketError",
    "DamagedPacketError",
    "WrongVersionError",
    "WrongModelError",
    "SymbolMismatchError",
    "ImplausiblePacketError",
    "PacketError",
    "size",
    "duplicate",
    "late",
)


def link_status(
    new: Mapping[str, int],
    samples: Mapping[str, Sequence[float]],
    seconds: float,
    totals: Mapping[str, int],
    topic: str,
    silence: float | None,
    timeout: float,
    mismatch: str | None,
    problems: Problems,
) -> Status:
    """What comes over the link. ``new`` and ``samples``: of the last ``seconds``; ``totals`` since the start.

    ``silence``: seconds since the last packet on ``topic``, None before the first; ``mismatch``: words for an encoder
    with another model.
    """
    status = Status("link")
    status.set(
        packets=totals["received"],
        packets_hz=new["received"] / seconds,
        lost=totals["lost"],
        kbit_per_s=sum(samples.get("bytes", [])) * 8e-3 / seconds,
    )
    if silence is None:
        status.report("STALE", f"no packet on {topic} yet: is the encoder active, in this namespace and domain?")
    elif timeout and silence > timeout:
        status.report(
            "STALE", f"no packet on {topic} for {silence:.1f} s: is the link up, and does the encoder get images?"
        )
    if mismatch:
        status.report("ERROR", mismatch)
    refused = {kind: count for kind, count in problems.counts.items() if kind in _REFUSALS}
    status.set(**{f"refused_{kind}": count for kind, count in refused.items()})
    for kind in refused:
        if new.get(f"problem {kind}"):
            status.report("ERROR" if kind == "WrongModelError" else "WARN", problems.latest[kind])
    if new["lost"] > 0:  # late packets take some back
        status.report(
            "WARN",
            f"{new['lost']} packets lost in the last second: lower the rate of the encoder, or "
            "use the Fast DDS profile for lossy links",
        )
    if new.get("problem encoders"):
        status.report("WARN", problems.latest["encoders"])
    return status


def decoding_status(
    new: Mapping[str, int],
    samples: Mapping[str, Sequence[float]],
    seconds: float,
    decoded: int,
    figures: Mapping[str, int],
    problems: Mapping[str, str],
    idle: bool,
) -> Status:
    """What is made of the packets. ``figures`` are shown as they are; ``problems``: the latest words of each kind."""
    status = Status("decoding")
    status.set(decoded=decoded, decoded_hz=new["decoded"] / seconds, **figures)
    for name, values in samples.items():
        status.set(**{_with_unit(name): sum(values) / len(values)})
    if new.get("problem decoding"):
        status.report("ERROR", problems["decoding"])
    if new["late"]:
        status.report(
            "WARN",
            f"{new['late']} packets dropped in the last second, decoding is slower than they "
            "come: use another device or a smaller model",
        )
    if idle:
        status.report("OK", "idle: nobody subscribes to the boxes")
    return status


def _with_unit(name: str) -> str:
    return name if name in ("boxes", "bytes", "batch") else f"{name}_ms"


def frame_stats(message: StereoBitstream, sample: dict[str, float]) -> DiagnosticStatus:
    """The times of one frame, for tools that want more than the means on /diagnostics."""
    stamp = message.header.stamp
    values = {
        "stamp": f"{stamp.sec}.{stamp.nanosec:09d}",
        **{
            f"encoder_{name}": f"{getattr(message, name):.3f}"
            for name in ("sync_ms", "preprocess_ms", "backbone_ms", "smfc_ms", "entropy_ms")
        },
        **{_with_unit(name): f"{value:.3f}" for name, value in sample.items()},
    }
    return DiagnosticStatus(
        level=DiagnosticStatus.OK,
        name="decode",
        message="decoded",
        hardware_id=f"{message.session:016x}/{message.sequence}",
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
