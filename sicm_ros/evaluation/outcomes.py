# SPDX-License-Identifier: Apache-2.0
"""The outcomes of a comparison in a database: a run that was killed, or that gets more systems, goes on from there."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..geometry import Object3D
from .systems.system import Complexity, Outcome, System

__all__ = ["FrameOutcomes", "OutcomeError", "Outcomes", "SystemOutcome"]

_FILE = "outcomes.sqlite3"
_OBJECT_FIELDS = [field.name for field in dataclasses.fields(Object3D)]


class OutcomeError(ValueError):
    """A database that cannot be used; the message is one line."""


class SystemOutcome(NamedTuple):
    """What a system made of one frame at one of its points."""

    system: str
    point: float
    outcome: Outcome


class FrameOutcomes(NamedTuple):
    """A frame, its labels, the size of its left image in pixels, and what systems made of it."""

    frame: str
    labels: list[Object3D]
    pixels: int
    outcomes: list[SystemOutcome]


class Outcomes:
    """The database in ``folder``. ``recipe`` is what all outcomes have in common (frames, model, seed).

    Raises OutcomeError if the folder holds those of another recipe.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / _FILE
        with self._told():
            self._database = sqlite3.connect(self._path)
            with self._database as d:
                d.execute("create table if not exists recipe (text text)")
                d.execute("create table if not exists frames (frame text primary key, pixels integer, labels text)")
                d.execute(
                    "create table if not exists outcomes (frame text, system text, point real, size integer, "
                    "encode real, decode real, estimate real, objects text, primary key (frame, system, point))"
                )
                d.execute(
                    "create table if not exists systems "
                    "(system text primary key, parameters real, macs real, weights text)"
                )
                text = json.dumps(recipe, sort_keys=True)
                known = d.execute("select text from recipe").fetchone()
                if known is None:
                    d.execute("insert into recipe values (?)", (text,))
                elif known[0] != text:
                    raise OutcomeError(
                        f"{self._path}: expected the outcomes of {_differences(json.loads(known[0]), recipe)}; "
                        "name another folder, or remove this file"
                    )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A full disk, or a file that is no database, is an OutcomeError."""
        try:
            yield
        except sqlite3.Error as error:
            raise OutcomeError(f"{self._path}: cannot keep the outcomes: {error}") from None

    def done(self) -> set[tuple[str, str]]:
        """Frames and the systems that are done with them."""
        with self._told():
            return set(self._database.execute("select distinct frame, system from outcomes"))

    def add(self, done: FrameOutcomes) -> None:
        """Keep the outcomes of a frame, all or none."""
        with self._told(), self._database as d:
            labels = json.dumps([dataclasses.astuple(o) for o in done.labels])
            d.execute("insert or replace into frames values (?, ?, ?)", (done.frame, done.pixels, labels))
            d.executemany(
                "insert or replace into outcomes values (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        done.frame,
                        system,
                        point,
                        outcome.size,
                        outcome.encode_s,
                        outcome.decode_s,
                        outcome.estimate,
                        json.dumps([dataclasses.astuple(o) for o in outcome.objects]),
                    )
                    for system, point, outcome in done.outcomes
                ],
            )

    def begin(self, name: str, system: System) -> None:
        """Keep what a system's networks cost; outcomes of other weights of its are removed."""
        with self._told(), self._database as d:
            before = d.execute("select weights from systems where system = ?", (name,)).fetchone()
            if before is not None and before[0] != system.weights:
                d.execute("delete from outcomes where system = ?", (name,))
            d.execute("insert or replace into systems values (?, ?, ?, ?)", (name, *system.complexity, system.weights))

    def complexity(self, system: str) -> Complexity | None:
        """What a system's networks cost, if it is known."""
        with self._told():
            found = self._database.execute(
                "select parameters, macs from systems where system = ?", (system,)
            ).fetchone()
        # SQLite has no NaN and keeps NULL in its place.
        return None if found is None else Complexity(*(float("nan") if value is None else value for value in found))

    def labels(self, frames: Iterable[str]) -> tuple[list[list[Object3D]], list[int]]:
        """Labels and pixels of each of the frames."""
        with self._told():
            found = {
                frame: (_objects(labels), pixels)
                for frame, pixels, labels in self._database.execute("select frame, pixels, labels from frames")
            }
        chosen = [found[frame] for frame in frames]
        return [labels for labels, _ in chosen], [pixels for _, pixels in chosen]

    def of(self, system: str) -> dict[float, dict[str, Outcome]]:
        """The outcomes of a system by point, from few bytes to many, and frame."""
        found: dict[float, dict[str, Outcome]] = {}
        with self._told():
            rows = self._database.execute(
                "select frame, point, size, encode, decode, estimate, objects from outcomes where system = ?", (system,)
            ).fetchall()
        for frame, point, size, encode, decode, estimate, objects in rows:
            found.setdefault(point, {})[frame] = Outcome(size, _objects(objects), encode, decode, estimate)
        mean = {point: sum(o.size for o in frames.values()) / len(frames) for point, frames in found.items()}
        return {point: found[point] for point in sorted(found, key=lambda point: mean[point])}

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _objects(text: str) -> list[Object3D]:
    objects = []
    for row in json.loads(text):
        fields = dict(zip(_OBJECT_FIELDS, row, strict=True))
        objects.append(Object3D(**{**fields, "bbox": tuple(fields["bbox"])}))
    return objects


def _differences(known: dict[str, Any], wanted: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {wanted.get(name)}, there are those of {known.get(name)}"
        for name in sorted(known.keys() | wanted.keys())
        if known.get(name) != wanted.get(name)
    )
