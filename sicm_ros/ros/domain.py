# SPDX-License-Identifier: Apache-2.0
"""A ROS domain that nothing else on this machine uses. Nothing of ROS is imported."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path

__all__ = ["own_domain"]

# Above, the ports of a domain are those that Linux gives to outgoing connections.
DOMAINS = range(1, 101)
_held: list[int] = []


def own_domain() -> dict[str, str]:
    """Variables of the environment for a domain of our own, on this machine only.

    It is ours until this process ends: a lock on a file says so to others who ask here, and a domain in which anybody
    listens already is not taken. Raises OSError if there is none left.
    """
    for domain in DOMAINS:
        lock = _lock(Path(tempfile.gettempdir()) / f"sicm_ros_domain_{domain}.lock")
        if lock is None:
            continue
        if _in_use(domain):
            os.close(lock)
            continue
        _held.append(lock)
        return {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    raise OSError(f"no free ROS domain among {DOMAINS.start} to {DOMAINS.stop - 1}")


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None where somebody else does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError:  # another user's, in a folder of all
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _in_use(domain: int) -> bool:
    """Whether a participant listens: RTPS's port for discovery in a domain, and the first participant's own."""
    for port in (7400 + 250 * domain, 7410 + 250 * domain):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return True
    return False
