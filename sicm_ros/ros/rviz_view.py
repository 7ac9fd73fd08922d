# SPDX-License-Identifier: Apache-2.0
"""RViz' view for one launch: with the frame and the image that its arguments name. Nothing of ROS is imported."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

__all__ = ["write_view"]

_BOXES = "vision_msgs_rviz_plugins/Detection3DArray"


def write_view(view: str | Path, colours: str | Path, fixed_frame: str = "", image: str = "") -> Path:
    """Write view ``view`` to a temporary file, and return its path.

    Displays of boxes get ``colours``, a YAML file from class to r, g and b, unless they have one; RViz wants its full
    path. ``fixed_frame`` replaces the view's. ``image`` is a topic to show, raw or below ``/compressed``; none by
    default, since images of a distant vehicle would cross its radio link. Raises ValueError for what is no view.
    """
    try:
        content: Any = yaml.safe_load(Path(view).read_text())
        manager = content["Visualization Manager"]
        displays, options = manager["Displays"], manager["Global Options"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"rviz_config: expected a view of RViz, got {view}: {reason}") from None
    for display in displays:
        if display.get("Class") == _BOXES and not display.get("ConfigPath"):
            display["ConfigPath"] = str(Path(colours).resolve())
    if fixed_frame:
        options["Fixed Frame"] = fixed_frame
    if image:
        displays.append(_image_display(image))
    with tempfile.NamedTemporaryFile("w", prefix="sicm_", suffix=".rviz", delete=False) as file:
        yaml.safe_dump(content, file, sort_keys=False)
    return Path(file.name)


def _image_display(topic: str) -> dict[str, Any]:
    return {
        "Class": "rviz_default_plugins/Image",
        "Name": "Image",
        "Enabled": True,
        "Value": True,
        "Normalize Range": True,
        "Max Value": 1,
        "Min Value": 0,
        "Median window": 5,
        "Topic": {
            "Value": topic,
            "Depth": 5,
            "History Policy": "Keep Last",
            "Reliability Policy": "Best Effort",
            "Durability Policy": "Volatile",
        },
    }
