# SPDX-License-Identifier: Apache-2.0
"""How files of the user are written: whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["check_outputs", "write_whole"]

# Names of what is open already: a redirected output is a file, but not one to be replaced by another.
_DESCRIPTORS = ("/dev/std", "/dev/fd/", "/proc/")


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file beside and rename it, so that a full disk or a kill leaves the old file or the new one.

    ``write`` is called with the name to write to, which has no suffix. A link stays a link to the new file. What
    is no file, such as /dev/stdout or a pipe, is written as it is. Raises OSError with ``path`` as its file name.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    try:
        if str(path).startswith(_DESCRIPTORS) or (target.exists() and not target.is_file()):
            write(path)
            return
        # Without the suffix, by which others would find it. Short: a name may have 255 bytes, and the user's has all.
        beside = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}")
        try:
            beside.touch(exist_ok=False)
            mode = (target if target.exists() else beside).stat().st_mode
            write(beside)
            beside.chmod(mode)  # some libraries make files for their owner alone
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def check_outputs(outputs: Sequence[Path | None], inputs: Sequence[Path | None] = ()) -> None:
    """Fail before the work where a result could not be written after it, or would replace an input or another result.

    Raises ValueError.
    """
    written: list[Path] = []
    for path in outputs:
        if path is None:
            continue
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: expected an existing folder to write into, {path.absolute().parent} is none")
        if path.is_dir():
            raise ValueError(f"{path}: expected a file to write, this is a folder")
        if any(other is not None and _same(path, other) for other in inputs):
            raise ValueError(f"{path}: expected another name to write to, this is an input")
        if any(_same(path, other) for other in written):
            raise ValueError(f"{path}: expected different names for the results, this one is given twice")
        written.append(path)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other) or (
        one.is_file() and other.is_file() and os.path.samefile(one, other)
    )
