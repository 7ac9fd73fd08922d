# SPDX-License-Identifier: Apache-2.0
"""The finished messages of a transcoding, in a database: a killed run goes on from there."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sicm_ros.bags.types import BagError

__all__ = ["Journal"]


_FILE = "journal.sqlite3"


class Journal:
    """Finished messages in a database beside the output bag: a kill loses only the pairs that are being worked on."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / _FILE).is_file():
            raise BagError(f"{folder}: expected the folder of unfinished work, or none; this one holds something else")
        self._folder = folder
        try:
            with self._told():
                self._begin(recipe)
        except BagError:
            if is_new:
                shutil.rmtree(folder)
            raise

    def _begin(self, recipe: dict[str, Any]) -> None:
        self._database = sqlite3.connect(self._folder / _FILE)
        with self._database as d:
            d.execute("create table if not exists recipe (text text)")
            d.execute(
                "create table if not exists pairs (number integer primary key, bytes integer, raw integer, "
                "boxes integer, error text)"
            )
            d.execute(
                "create table if not exists messages (stamp integer, number integer, topic text, type text, cdr blob)"
            )
            text = json.dumps(recipe, sort_keys=True)
            known = d.execute("select text from recipe").fetchone()
            if known is None:
                d.execute("insert into recipe values (?)", (text,))
            elif known[0] != text:
                raise BagError(
                    f"{self._folder}: expected the work of the same command, but another bag, model or option "
                    "began it; remove the folder to start anew"
                )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A full disk, or a file that is no journal, is a BagError."""
        try:
            yield
        except sqlite3.Error as error:
            raise BagError(f"{self._folder}: cannot keep the finished pairs: {error}") from None

    def done(self) -> set[int]:
        return {row[0] for row in self._database.execute("select number from pairs")}

    def add(
        self, number: int, sizes: tuple[int, int, int], error: str, messages: list[tuple[int, str, str, bytes]]
    ) -> None:
        with self._told(), self._database as d:
            d.execute("insert into pairs values (?, ?, ?, ?, ?)", (number, *sizes, error))
            d.executemany("insert into messages values (?, ?, ?, ?, ?)", [(m[0], number, *m[1:]) for m in messages])

    def messages(self) -> Iterator[tuple[int, int, str, str, bytes]]:
        """Stamp, order, topic, type, bytes; by stamp."""
        return iter(
            self._database.execute("select stamp, number, topic, type, cdr from messages order by stamp, number, rowid")
        )

    def sums(self) -> tuple[int, int, int, int, Counter[str]]:
        pairs, size, raw, boxes = self._database.execute(
            "select count(*), total(bytes), total(raw), total(boxes) from pairs where error = ''"
        ).fetchone()
        errors = Counter(row[0] for row in self._database.execute("select error from pairs where error != ''"))
        return pairs, int(size), int(raw), int(boxes), errors

    def close(self) -> None:
        self._database.close()
