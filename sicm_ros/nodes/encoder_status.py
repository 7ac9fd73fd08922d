# SPDX-License-Identifier: Apache-2.0
"""The diagnostics of the encoder node: its inputs, the encoding, and what to do about each problem."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from sicm_ros.codec.swapped_views import SWAPPED_WARNING
from sicm_ros.data.pairing import StereoPairer
from sicm_ros.ros.diagnostics import ProblemKind, Status

__all__ = ["encoding_status", "input_status"]


def input_status(
    new: Mapping[Hashable, int],
    seconds: float,
    pairer: StereoPairer[Any],
    idle_topic: str = "",
    silent: Mapping[str, float] | None = None,
    missing: Sequence[str] = (),
    refused: Sequence[str] = (),
    swapped: bool = False,
) -> Status:
    """What comes in. ``new``: what was counted in the last ``seconds``, drops by side and reason.

    ``idle_topic`` is the encoder's output where nobody subscribes to it. ``silent``: seconds since the last image on
    each image topic. ``missing``: words for each camera info that has not come; ``refused``: for pairs that were
    dropped. ``swapped``: the left and the right images are exchanged.
    """
    status = Status("stereo input")
    status.set(
        left_hz=new["left"] / seconds,
        right_hz=new["right"] / seconds,
        pairs=pairer.pairs,
        time_jumps=pairer.jumps,
    )
    for (side, reason), count in sorted(pairer.drops.items()):
        if count:
            status.set(**{f"dropped_{side}_{reason}": count})
    if idle_topic:
        status.report("OK", f"idle: nobody subscribes to {idle_topic}")
        return status
    for topic, silence in (silent or {}).items():
        if silence > 2.0:
            status.report(
                "STALE",
                f"no image on {topic} for {silence:.0f} s: is the camera driver running, and is "
                "its topic remapped to this name?",
            )
    if status.level == "STALE":
        return status
    for words in missing:
        status.report("ERROR", words)
    if new["left"] and new["right"] and not new["pairs"]:
        miss = pairer.nearest_miss_ns
        nearest = "" if miss is None else f" (nearest stamps: {miss / 1e6:.1f} ms apart)"
        status.report(
            "ERROR",
            f"images come but none can be paired{nearest}: raise sync_tolerance, or trigger the cameras together",
        )
    for words in refused:
        status.report("ERROR", words)
    if swapped:
        status.report("WARN", SWAPPED_WARNING)
    lost = [f"{new[side, reason]} {side} {reason}" for side, reason in pairer.drops if new.get((side, reason))]
    if lost:
        status.report("WARN", "images dropped in the last second: " + ", ".join(lost))
    if new["unstamped"]:
        status.report(
            "WARN",
            "images without a stamp: the time of their arrival is used, which pairs and dates them roughly only",
        )
    if pairer.ambiguous:
        status.report("WARN", "sync_tolerance is more than half of the frame period: frames may be paired wrongly")
    return status


def encoding_status(
    new: Mapping[Hashable, int],
    recent: Mapping[ProblemKind, int],
    samples: dict[str, list[float]],
    seconds: float,
    figures: Mapping[str, object],
    problems: Mapping[ProblemKind, str],
) -> Status:
    """What is made of it. ``new`` and ``recent`` problems: of the last ``seconds``. ``figures`` are shown as they are,
    ``problems`` are the latest words of each kind."""
    status = Status("encoding")
    total_bytes, wire = sum(samples.pop("bytes", [])), sum(samples.pop("wire_bytes", []))
    status.set(
        packets=figures["packets"],
        packets_hz=new["packets"] / seconds,
        bytes_per_packet=total_bytes / max(new["packets"], 1),
        kbit_per_s=total_bytes * 8e-3 / seconds,
        wire_kbit_per_s=wire * 8e-3 / seconds,
        **{name: value for name, value in figures.items() if name != "packets"},
    )
    if "wait" in samples:
        status.set(wait_max_ms=max(samples["wait"]))
    for name, values in samples.items():
        status.set(**{name if name in ("rate", "tries") else f"{name}_ms": sum(values) / len(values)})
    if recent.get("max_bitrate"):
        status.report(
            "WARN",
            f"{recent['max_bitrate']} pairs dropped in the last second to keep within "
            "max_bitrate: raise it, or lower the frequency of the cameras",
        )
    if recent.get("encoding"):
        status.report("ERROR", problems["encoding"])
    if new["late"]:
        status.report(
            "WARN",
            f"{new['late']} pairs dropped in the last second, encoding is slower than the "
            "cameras: lower their frequency, use another device or a smaller model",
        )
    if "geometry" in problems:
        status.report("WARN", problems["geometry"])
    return status
