# SPDX-License-Identifier: Apache-2.0
"""Stamps of messages (``builtin_interfaces/Time``) and nanoseconds, the unit of time everywhere else in the package."""

from __future__ import annotations

from typing import Any

__all__ = ["nanoseconds", "time_fields"]


def nanoseconds(stamp: Any) -> int:
    """A ``builtin_interfaces/Time`` in nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def time_fields(stamp_ns: int) -> dict[str, int]:
    """The fields of a ``builtin_interfaces/Time`` for a number of nanoseconds."""
    seconds, rest = divmod(stamp_ns, 1_000_000_000)
    return {"sec": seconds, "nanosec": rest}
