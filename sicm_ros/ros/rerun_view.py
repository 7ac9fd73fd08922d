# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can show the Rerun viewer, and with which parameters it is started."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["PYARROW", "RERUN", "ViewError", "WINDOW", "check_view", "viewer_parameters"]

# Rerun's Python calls and its files change between releases. This is the last one that accepts numpy below 2, and it
# accepts numpy 2, too; pyarrow does not say which numpy it needs.
RERUN = "rerun-sdk==0.22.1"
PYARROW = "pyarrow==25.0.1"
WINDOW = "window"


class ViewError(ValueError):
    """What was asked for cannot be shown on this machine; the message says what to do."""


def check_view(view: str) -> None:
    """Raise ViewError if this machine cannot show ``view``, the parameter: no Rerun, no display, no such file."""
    name, wanted = RERUN.split("==")
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        found = "none"
    if found.split(".")[:2] != wanted.split(".")[:2]:
        raise ViewError(f"the viewer needs {name} {wanted}, found {found}: pip install {RERUN} {PYARROW}")
    if view != WINDOW:
        path = Path(view)
        if path.suffix != ".rrd":
            raise ViewError(f"view: expected {WINDOW}, or a file name that ends in .rrd, got {view!r}")
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ViewError(f"{view}: expected a file to write in an existing folder")
    elif sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ViewError(
            "view: no display (neither DISPLAY nor WAYLAND_DISPLAY is set): name a file such as demo.rrd in place of "
            f"{WINDOW}, copy it to a machine with a display, and open it there with: rerun demo.rrd"
        )


def viewer_parameters(view: str) -> dict[str, object]:
    """The parameters with which everything that is played on this machine is shown."""
    return {
        "view": view if view == WINDOW else Path(view).absolute(),
        "image_reliability": "reliable",
        "bitstream_reliability": "reliable",
    }
