# SPDX-License-Identifier: Apache-2.0
"""What ROS 2 needs of the process's environment, told in words of our own. Nothing of ROS is imported."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["check_log_folder"]


def check_log_folder() -> None:
    """Raise ValueError where ROS 2 has no folder for its logs, without which no process can be a node."""
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
