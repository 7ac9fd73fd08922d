# SPDX-License-Identifier: Apache-2.0
"""Where the tests find real KITTI files; without them, tests that ask for them are skipped and say so."""

import io
import os
import tarfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("SICM_KITTI_ROOT") or Path(__file__).resolve().parents[2] / "shared" / "data" / "kitti")

needs_kitti = pytest.mark.skipif(
    not ROOT.is_dir(), reason=f"needs KITTI's files at {ROOT} (or where SICM_KITTI_ROOT says)"
)


@cache
def archive(name: str) -> dict[str, bytes]:
    """The text files of an archive beside the frames, by frame id, read in memory."""
    files = {}
    data = io.BytesIO((ROOT / f"{name}.tar.gz").read_bytes())
    with tarfile.open(fileobj=data, mode="r:gz") as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(".txt"):
                files[Path(member.name).stem] = tar.extractfile(member).read()
    return files
