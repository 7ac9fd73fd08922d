# SPDX-License-Identifier: Apache-2.0
"""Converted graphs, kept in the user's cache folder.

``$XDG_CACHE_HOME/sicm_ros/openvino/NAME/`` (by default below ``~/.cache``), where NAME has the model's fingerprint, the
half, and a hash of all else that a graph depends on: the network's source files and the versions of PyTorch and
OpenVINO. A folder appears whole or not at all, by a rename, so several processes may make it at once. It may be deleted
at any time. Where it cannot be written, or is damaged, the network is converted again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import openvino as ov
import torch

from .. import networks
from ..model_store import StoredModel

__all__ = ["core", "graph_folder", "stored_graphs"]

_SUMS = "SHA256SUMS"
_COUNT = 2  # graphs of a half


@cache
def core() -> ov.Core:
    """The one Core of this process, which is kept to its end.

    Each Core's CPU plugin gives the thread a stack for signals, and unmaps it when the Core goes. Where there were
    several, the thread may be left with one that is no more, and the next signal with a handler kills the process.
    """
    return ov.Core()


def graph_folder(model: StoredModel, half: str) -> Path:
    """Where the graphs of a half are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "sicm_ros" / "openvino" / f"{model.fingerprint:016x}-{half}-{_surroundings()}"


@cache
def _surroundings() -> str:
    digest = hashlib.blake2b(f"{torch.__version__} {ov.get_version()}".encode(), digest_size=8)
    for folder in (Path(networks.__file__).parent, Path(__file__).parent):
        for source in sorted(folder.glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def stored_graphs(model: StoredModel, half: str, convert: Callable[[], list[ov.Model]]) -> list[ov.Model]:
    """The graphs of a half, from the cache, or converted and put there."""
    try:
        folder = graph_folder(model, half)
        graphs = _read(folder)
    except (OSError, RuntimeError):  # no home, no permission
        return convert()
    if graphs is None:
        graphs = convert()
        try:
            _write(folder, graphs)
        except (OSError, RuntimeError):  # no room
            return graphs
    return graphs


def _sums(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.name != _SUMS)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def _read(folder: Path) -> list[ov.Model] | None:
    """The graphs of a folder; None where there is none, or a damaged one, which is taken away."""
    if not folder.is_dir():
        return None
    with suppress(OSError, RuntimeError, UnicodeDecodeError):
        if (folder / _SUMS).read_text(encoding="ascii") == _sums(folder):
            return [core().read_model(folder / f"{i}.xml") for i in range(_COUNT)]
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _write(folder: Path, graphs: list[ov.Model]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        for i, graph in enumerate(graphs):
            ov.save_model(graph, beside / f"{i}.xml", compress_to_fp16=False)
        (beside / _SUMS).write_text(_sums(beside), encoding="ascii")
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
