# SPDX-License-Identifier: Apache-2.0
"""The diagnostics of one vehicle's link and decoding, and the times of each pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sicm_ros.codec.packet import PacketError, WrongModelError
from sicm_ros.msg import DecodeStats, StereoBitstream
from sicm_ros.ros.diagnostics import ProblemKind, Problems, Status

__all__ = ["decode_stats", "decoding_status", "link_status"]

# Kinds of refused packets beside those with an error of their own.
_REFUSALS = ("size", "duplicate", "late")


def _is_refusal(kind: ProblemKind) -> bool:
    return kind in _REFUSALS or _is_error(kind, PacketError)


def _is_error(kind: ProblemKind, error: type[Exception]) -> bool:
    return isinstance(kind, type) and issubclass(kind, error)


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
    recent: Mapping[ProblemKind, int],
) -> Status:
    """Diagnostics of the link. ``new``, ``samples`` and ``recent`` problems: of the last ``seconds``; ``totals`` and
    ``problems`` since the start.

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
    for kind, count in problems.counts.copy().items():  # another thread adds to it
        if _is_refusal(kind):
            status.set(**{f"refused_{kind if isinstance(kind, str) else kind.__name__}": count})
            if recent.get(kind):
                status.report("ERROR" if _is_error(kind, WrongModelError) else "WARN", problems.latest[kind])
    if new["lost"] > 0:  # late packets take some back
        status.report(
            "WARN",
            f"{new['lost']} packets lost in the last second: lower the rate of the encoder, or "
            "use the Fast DDS profile for lossy links",
        )
    if recent.get("encoders"):
        status.report("WARN", problems.latest["encoders"])
    return status


def decoding_status(
    new: Mapping[str, int],
    samples: Mapping[str, Sequence[float]],
    seconds: float,
    decoded: int,
    figures: Mapping[str, int | str],
    problems: Problems,
    recent: Mapping[ProblemKind, int],
    idle: bool,
) -> Status:
    """Diagnostics of the decoding. ``new``, ``samples`` and ``recent`` problems: of the last ``seconds``. ``figures``
    are shown as they are."""
    status = Status("decoding")
    status.set(decoded=decoded, decoded_hz=new["decoded"] / seconds, **figures)
    for name, values in samples.items():
        status.set(**{_with_unit(name): sum(values) / len(values)})
    if recent.get("decoding"):
        status.report("ERROR", problems.latest["decoding"])
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


def decode_stats(message: StereoBitstream, times_ms: Mapping[str, float], boxes: int, batch: int) -> DecodeStats:
    """The result of one packet. ``times_ms``: of the decoder's stages, "total", and "end_to_end" where it is known."""
    return DecodeStats(
        header=message.header,
        session=message.session,
        sequence=message.sequence,
        packet_bytes=len(message.data),
        boxes=boxes,
        batch=batch,
        encoder_sync_ms=message.sync_ms,
        encoder_preprocess_ms=message.preprocess_ms,
        encoder_backbone_ms=message.backbone_ms,
        encoder_smfc_ms=message.smfc_ms,
        encoder_entropy_ms=message.entropy_ms,
        wait_ms=times_ms["wait"],
        entropy_ms=times_ms["entropy"],
        smfc_ms=times_ms["smfc"],
        analysis_ms=times_ms["analysis"],
        publish_ms=times_ms["publish"],
        total_ms=times_ms["total"],
        end_to_end_ms=times_ms.get("end_to_end", math.nan),
    )
