# SPDX-License-Identifier: Apache-2.0
"""What a demo writes into its folder, and which of that is an earlier demo's and may be replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from sicm_ros.files import write_whole

__all__ = ["JOURNAL", "FolderError", "claim"]

JOURNAL = ".sicm_demo.json"
_BAG_FILES = {"metadata.yaml", "bag.db3"}


class FolderError(ValueError):
    """A folder with files that a demo would replace and did not write; the message is one line."""


def claim(out: Path, names: Sequence[str]) -> None:
    """Make ``out`` and note that the demo writes ``names`` in it; remove what an earlier demo wrote there.

    A name is a file or a folder in ``out``. Raises FolderError, before anything is changed, if one of them is there and
    no demo wrote it.
    """
    earlier = _journal(out)
    for name in names:
        path = out / name
        if path.is_symlink() or (path.exists() and name not in earlier):
            raise FolderError(f"{path}: no demo wrote this, so it stays: name another folder, or move it away")
    bag = out / "bag"
    strange = sorted(path.name for path in bag.iterdir() if path.name not in _BAG_FILES) if bag.is_dir() else []
    if strange:
        raise FolderError(f"{bag / strange[0]}: no demo wrote this, so it stays: name another folder, or move it away")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / JOURNAL, lambda beside: beside.write_text(json.dumps(sorted({*names, *earlier})) + "\n"))
    for name in earlier:
        path = out / name
        if path.is_file():
            path.unlink()
        elif name == "bag":
            shutil.rmtree(path, ignore_errors=True)


def _journal(out: Path) -> set[str]:
    """The names that earlier demos wrote in ``out``."""
    path = out / JOURNAL
    if out.exists() and not out.is_dir():
        raise FolderError(f"{out}: expected a folder to write into, this is a file")
    try:
        names = json.loads(path.read_text())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError):
        names = None
    # A name of a file in the folder and in no other one.
    if not isinstance(names, list) or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise FolderError(f"{path}: expected the names of a demo's files: name another folder, or remove this file")
    return set(names)
