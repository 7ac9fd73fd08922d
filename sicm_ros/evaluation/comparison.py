# SPDX-License-Identifier: Apache-2.0
"""The comparison of systems on labelled frames: every system codes every frame at all of its points, and detects."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

from ..cluster import spread
from ..data.source import StereoFrame
from ..model_store import ModelError, StoredModel, load_model
from .frames import LabelledFrames
from .kitti_ap import LOW_SCORE
from .outcomes import FrameOutcomes, Outcomes, SystemOutcome
from .systems import PACKETS, SYSTEMS
from .systems.image_codec import CodecError
from .systems.packets import PacketSystem
from .systems.system import SequenceSystem, System, SystemKind

__all__ = ["Chosen", "chosen_systems", "compare_systems"]


class _Work(NamedTuple):
    """Frames in their order, and the systems that are not done with them."""

    frames: tuple[str, ...]
    systems: tuple[str, ...]


@dataclass(frozen=True)
class _Setting:
    """What all work has in common. On a cluster, data and folders of models are at the same paths on every machine."""

    data: LabelledFrames
    model: str
    fingerprint: int
    weights: tuple[tuple[str, str], ...]  # ``System.weights`` of each system where the command runs


class Chosen(NamedTuple):
    """A system that can run here."""

    kind: SystemKind
    system: System


def chosen_systems(names: Sequence[str], data: LabelledFrames, model: str) -> tuple[list[Chosen], dict[str, str]]:
    """The systems of these names that can run here on this data, and why the others cannot, in a line each.

    A name is one of ``SYSTEMS``, or a model that runs through packets: its name or its folder. ``model``: that of the
    detector. Raises ValueError on another name.
    """
    chosen, missing, stored = [], {}, load_model(model)
    for name in dict.fromkeys(names):
        kind = _kind(name, stored)
        reason = kind.missing()
        if kind.sequences and not data.drive:
            reason = "codes drives: say --drive if the frames follow each other in time"
        if not reason:
            try:
                chosen.append(Chosen(kind, kind.build(stored, LOW_SCORE)))
            except CodecError as error:
                reason = str(error)
        if reason:
            missing[kind.name] = reason
    return chosen, missing


def _kind(name: str, detector: StoredModel) -> SystemKind:
    """The system of a name; that of the packets is called as the model."""
    if name == PACKETS:
        return replace(SYSTEMS[name], title=detector.name)
    if name in SYSTEMS:
        return SYSTEMS[name]
    try:
        model = load_model(name)
    except ModelError as error:
        raise ValueError(f"--systems: {name}: expected one of {', '.join(SYSTEMS)}, or a model: {error}") from None

    def build(_: StoredModel, threshold: float) -> System:
        return PacketSystem(load_model(name), threshold)

    # A training writes its model to a folder of this name.
    title = Path(name).resolve().parent.name if model.name == "model" else model.name
    return SystemKind(name, title, f"packets of {name} ({model.fingerprint:016x})", build)


def compare_systems(
    data: LabelledFrames,
    model: str,
    chosen: Sequence[Chosen],
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
        "frames": data.selection,
        "seed": data.seed if data.rendered else None,
        "model": f"{stored.fingerprint:016x}",
        "score threshold": LOW_SCORE,
    }
    outcomes = Outcomes(folder, recipe)
    for kind, system in chosen:
        outcomes.begin(kind.name, system)
    work = list(_missing(data, [kind for kind, _ in chosen], outcomes.done()))
    total, count = sum(len(item.frames) for item in work), 0
    # A name is looked up on every machine, which may have its models elsewhere.
    known = str(Path(model).resolve()) if Path(model).is_dir() else model
    weights = tuple((kind.name, system.weights) for kind, system in chosen)
    setting = _Setting(replace(data, root=data.root.resolve()), known, stored.fingerprint, weights)
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
    """The systems of a thread, whose number of threads is a thread's own, after a first pair, which warms up."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    where, model = socket.gethostname(), load_model(setting.model)
    if model.fingerprint != setting.fingerprint:
        raise ModelError(
            f"{where}: model {setting.model}: expected the fingerprint {setting.fingerprint:016x}, as where the "
            f"command runs, found {model.fingerprint:016x}"
        )
    systems, weights = {}, dict(setting.weights)
    for name in names:
        system = systems[name] = _kind(name, model).build(model, LOW_SCORE)
        if system.weights != weights[name]:
            raise CodecError(f"{where}: {name}: expected the same weights as where the command runs, found others")
        if not isinstance(system, SequenceSystem):
            system.run(_frame(setting.data, setting.data.names[0]), system.points[0])
    return systems
