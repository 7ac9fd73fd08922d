# SPDX-License-Identifier: Apache-2.0
"""The comparison of systems on labelled frames: every system codes every frame at all of its points, and detects."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from ..cluster import spread
from ..data.source import StereoFrame
from ..model_store import ModelError, StoredModel, load_model
from .frames import LabelledFrames
from .kitti_ap import LOW_SCORE
from .outcomes import FrameOutcomes, Outcomes, SystemOutcome
from .systems import SYSTEMS
from .systems.image_codec import CodecError
from .systems.packets import PacketSystem
from .systems.system import SequenceSystem, System, SystemKind

__all__ = ["chosen_systems", "compare_systems"]


class _Work(NamedTuple):
    """Frames in their order, and the systems that are not done with them."""

    frames: tuple[str, ...]
    systems: tuple[str, ...]


@dataclass(frozen=True)
class _Setting:
    """What all work has in common; on a cluster, ``data`` and ``model`` are at the same paths on every machine."""

    data: LabelledFrames
    model: str
    fingerprint: int


def chosen_systems(names: Sequence[str], data: LabelledFrames, model: str) -> tuple[list[SystemKind], dict[str, str]]:
    """The systems of these names that can run here on this data, and why the others cannot, in a line each.

    A name is one of ``SYSTEMS``, or a model that runs through packets: its name or its folder. ``model``: that of the
    detector. Raises ValueError on another name.
    """
    kinds, missing, stored = [], {}, load_model(model)
    for name in dict.fromkeys(names):
        kind = SYSTEMS.get(name) or _model_kind(name)
        reason = kind.missing()
        if kind.sequences and data.rendered:
            reason = "codes a drive, and these frames are rendered, each of another scene"
        if not reason:
            try:
                kind.build(stored, LOW_SCORE)
            except CodecError as error:
                reason = str(error)
        if reason:
            missing[kind.name] = reason
        else:
            kinds.append(kind)
    return kinds, missing


def _model_kind(name: str) -> SystemKind:
    try:
        model = load_model(name)
    except ModelError as error:
        raise ValueError(f"--systems: {name}: expected one of {', '.join(SYSTEMS)}, or a model: {error}") from None

    def build(_: StoredModel, threshold: float) -> System:
        return PacketSystem(load_model(name), threshold)

    return SystemKind(name, model.name, f"packets of {model.name} ({model.fingerprint:016x})", build)


def compare_systems(
    data: LabelledFrames,
    model: str,
    kinds: Sequence[SystemKind],
    folder: Path,
    workers: int = 1,
    cluster: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Outcomes:
    """Let all systems code all frames; what is in ``folder`` already is not done again.

    ``model``: name or folder of the detector behind image codecs. ``progress`` gets frames done and their number. The
    work is spread as by ``cluster.spread``. Raises ModelError, KittiError, CodecError, ClusterError and OutcomeError.
    """
    stored = load_model(model)
    recipe = {
        "data": str(data.root.resolve()),
        "seed": data.seed if data.rendered else None,
        "model": f"{stored.fingerprint:016x}",
        "score threshold": LOW_SCORE,
    }
    outcomes = Outcomes(folder, recipe)
    for kind in kinds:
        outcomes.begin(kind.name, kind.build(stored, LOW_SCORE))
    work = list(_missing(data, kinds, outcomes.done()))
    total = sum(len(item.frames) for item in work)
    # A name is looked up on every machine, which may have its models elsewhere.
    known = str(Path(model).resolve()) if Path(model).is_dir() else model
    setting, count = _Setting(data, known, stored.fingerprint), 0
    with closing(spread(_outcomes, work, setting, workers=workers, cluster=cluster)) as results:
        for item, found in results:
            for done in found:
                outcomes.add(done)
            count += len(item.frames)
            if progress is not None:
                progress(count, total)
    return outcomes


def _missing(data: LabelledFrames, kinds: Sequence[SystemKind], done: set[tuple[str, str]]) -> Iterator[_Work]:
    """A frame at a time for all systems that code each by itself; all frames at once for one that codes a drive."""
    for kind in kinds:
        if kind.sequences and any((name, kind.name) not in done for name in data.names):
            yield _Work(data.names, (kind.name,))
    for name in data.names:
        systems = tuple(kind.name for kind in kinds if not kind.sequences and (name, kind.name) not in done)
        if systems:
            yield _Work((name,), systems)


def _outcomes(work: _Work, setting: _Setting) -> list[FrameOutcomes]:
    """Runs in a worker."""
    systems = _systems(work.systems, setting, threading.get_ident())
    results: dict[str, FrameOutcomes] = {}
    for system in work.systems:
        for point in systems[system].points:
            coder = systems[system]
            if isinstance(coder, SequenceSystem):
                coder.prepare((_frame(setting.data, name) for name in work.frames), point)
            for name in work.frames:
                frame = _frame(setting.data, name)
                size = frame.left.shape[0] * frame.left.shape[1]
                result = results.setdefault(name, FrameOutcomes(name, list(frame.labels or []), size, []))
                outcome = coder.run(frame, point)
                result.outcomes.append(SystemOutcome(system, point, outcome))
    return list(results.values())


# All systems of a frame, one after the other, take the same images.
@lru_cache(maxsize=4)
def _frame(data: LabelledFrames, name: str) -> StereoFrame:
    return data.frame(name)


@lru_cache(maxsize=16)
def _systems(names: tuple[str, ...], setting: _Setting, thread: int) -> dict[str, System]:
    """The systems of a thread: PyTorch's number of threads is a thread's own."""
    torch.set_num_threads(1)
    model = load_model(setting.model)
    if model.fingerprint != setting.fingerprint:
        raise ModelError(
            f"{socket.gethostname()}: model {setting.model}: expected the fingerprint {setting.fingerprint:016x}, as "
            f"where the command runs, found {model.fingerprint:016x}"
        )
    return {name: (SYSTEMS.get(name) or _model_kind(name)).build(model, LOW_SCORE) for name in names}
