# SPDX-License-Identifier: Apache-2.0
"""What ROS 2 needs of the process's environment, told in words of our own. Nothing of ROS is imported."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["check_surroundings"]

HIGHEST_DOMAIN = 232  # its ports are the last ones below 65536


def check_surroundings() -> None:
    """Raise ValueError where the environment lets no process be a node: no folder for logs, no such domain."""
    _check_log_folder()
    domain = os.environ.get("ROS_DOMAIN_ID", "")
    if domain and not (domain.isascii() and domain.isdecimal() and int(domain) <= HIGHEST_DOMAIN):
        raise ValueError(f"ROS_DOMAIN_ID: expected a number from 0 to {HIGHEST_DOMAIN}, got {domain!r}")


def _check_log_folder() -> None:
    if os.environ.get("ROS_LOG_DIR"):
        folder, source = Path(os.environ["ROS_LOG_DIR"]), "ROS_LOG_DIR"
    elif os.environ.get("ROS_HOME"):
        folder, source = Path(os.environ["ROS_HOME"]) / "log", "ROS_HOME"
    elif os.environ.get("HOME"):
        folder, source = Path(os.environ["HOME"]) / ".ros" / "log", "HOME"
    else:
        raise ValueError("HOME is not set, below which ROS 2 writes its logs: set it, or ROS_LOG_DIR to another folder")
    if str(folder).startswith("~"):
        return  # expanded by ROS 2 itself
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ValueError(
            f"{folder} ({source}): ROS 2 cannot write its logs: {error.strerror}; set ROS_LOG_DIR to a folder that "
            "can be written"
        ) from None
