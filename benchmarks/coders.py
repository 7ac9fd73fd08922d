#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""CompressAI's and constriction's coders against this package's, on the same symbols and tables of real latents.

    python benchmarks/coders.py --pairs 20 --kitti KITTI --model sicm-compact --rates 0 3 5 --seed 1

Encoding: all symbols of a pair from arrays to bytes. Decoding: the calls that the codec needs, one for the
hyper-latents and one for each step of the context (whose table indices are known only after the step before), from
bytes to arrays. The coders take turns; a ratio is the other coder's CPU time over this package's for one pair in one
turn. Constriction's bytes are this package's, word for word; it takes arrays, and one call for each run of one table.
CompressAI takes lists: ``with lists`` includes their conversion from and to arrays, ``bare`` is its call alone with
lists made before. Its tables are a list of lists made once; its binding copies them at each call in either case. This
package's times include the sorting by table and, in encoding, the sum of the information content; constriction's the
sorting alone. Exits with 1 if a coder does not give back the symbols, or if constriction's bytes are others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from pairs import console, frames, latents, real_pairs, watched
from rich.table import Table

from sicm_ros.codec.range_coder import RangeCoder, SymbolDecoder, SymbolEncoder
from sicm_ros.evaluation.latency import Spread
from sicm_ros.evaluation.systems.compressai_layers import compressai
from sicm_ros.model_store import load_model
from sicm_ros.networks.entropy_layers import HYPER_SYMBOL_LIMIT, SCALE_LEVELS
from sicm_ros.networks.entropy_tables import TOTAL, EntropyTables
from sicm_ros.networks.integer_prior import QuantisedLatents, symbol_limits


@dataclass(frozen=True)
class PairSymbols:
    """What is coded of a pair: both hyper-latents (Z, hz, wz); symbols and table indices of each step."""

    hyper: tuple[np.ndarray, np.ndarray]
    steps: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, coded: QuantisedLatents) -> PairSymbols:
        """The first pair of a batch."""
        steps = [
            (s[0].numpy().astype(np.int32), i[0].numpy().astype(np.uint8))
            for s, i in zip(coded.symbols, coded.indices, strict=True)
        ]
        left, right = (z[0].numpy().astype(np.int32) for z in coded.hyper)
        return cls((left, right), steps)

    def flat(self) -> np.ndarray:
        """All symbols in the order of coding."""
        return np.concatenate([x.reshape(-1) for x in (*self.hyper, *(s for s, _ in self.steps))])


class Ours:
    """This package's coder, as ``codec/payload.py`` calls it."""

    def __init__(self, tables: EntropyTables) -> None:
        self._coder = RangeCoder(tables)

    def encode(self, pair: PairSymbols) -> bytes:
        """Arrays to bytes."""
        encoder = SymbolEncoder(self._coder)
        for view, symbols in enumerate(pair.hyper):
            encoder.hyper(view, symbols)
        for symbols, indices in pair.steps:
            encoder.latents(symbols, indices)
        return encoder.finish()

    def decode(self, data: bytes, pair: PairSymbols) -> list[np.ndarray]:
        """Bytes to arrays, given shapes and table indices."""
        decoder = SymbolDecoder(self._coder, data)
        out = [decoder.hyper(view, z.shape) for view, z in enumerate(pair.hyper)]
        return out + [decoder.latents(indices) for _, indices in pair.steps]


class Constriction:
    """Constriction's coder. It knows one table a call, so each step is sorted by table and cut into runs."""

    def __init__(self, tables: EntropyTables) -> None:
        from constriction import stream  # not on every machine

        rows = [*tables.latent_rows, *tables.hyper.reshape(-1, tables.hyper.shape[2])]
        categorical, self._stack = stream.model.Categorical, stream.stack.AnsCoder
        # With perfect=False the bounds are exact integers, those of docs/packet.md.
        self._models = [categorical(row.astype(np.float64) / TOTAL, perfect=False) for row in rows]
        self._limits = symbol_limits().numpy().astype(np.int32)
        self._channels = tables.hyper.shape[1]

    def _hyper(self, view: int) -> list[Any]:
        start = SCALE_LEVELS + view * self._channels
        return self._models[start : start + self._channels]

    def encode(self, pair: PairSymbols) -> bytes:
        """Arrays to bytes."""
        runs: list[tuple[np.ndarray, Any]] = []
        for view, z in enumerate(pair.hyper):
            runs += zip(z.reshape(len(z), -1) + HYPER_SYMBOL_LIMIT, self._hyper(view), strict=True)
        for symbols, indices in pair.steps:
            flat = indices.reshape(-1)
            order, ends = self._grouped(flat)
            shifted = (symbols.reshape(-1) + self._limits[flat])[order]
            runs += [(part, m) for part, m in zip(np.split(shifted, ends), self._models, strict=False) if len(part)]
        stack = self._stack()
        for part, model in reversed(runs):
            stack.encode_reverse(part, model)
        return stack.get_compressed().astype("<u4").tobytes().rstrip(b"\0")

    def decode(self, data: bytes, pair: PairSymbols) -> list[np.ndarray]:
        """Bytes to arrays, given shapes and table indices."""
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        stack = self._stack(words)
        out = []
        for view, z in enumerate(pair.hyper):
            rows = [stack.decode(model, z[0].size) for model in self._hyper(view)]
            out.append(np.stack(rows).reshape(z.shape) - HYPER_SYMBOL_LIMIT)
        for _, indices in pair.steps:
            flat = indices.reshape(-1)
            order, ends = self._grouped(flat)
            symbols = np.empty(len(flat), np.int32)
            for places, model in zip(np.split(order, ends), self._models, strict=False):
                if len(places):
                    symbols[places] = stack.decode(model, len(places))
            out.append((symbols - self._limits[flat]).reshape(indices.shape))
        return out

    def _grouped(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Order (n,) by table, and where each table's run but the last ends."""
        ends = np.cumsum(np.bincount(indices, minlength=SCALE_LEVELS))
        return np.argsort(indices, kind="stable"), ends[:-1]


class CompressAi:
    """CompressAI's coder. Its tables need an escape symbol at the end; here its probability is zero."""

    def __init__(self, tables: EntropyTables, ans: ModuleType) -> None:
        self._ans = ans
        rows = [*tables.latent_rows, *tables.hyper.reshape(-1, tables.hyper.shape[2])]
        self._cdfs = [[0, *np.cumsum(row).tolist(), int(row.sum())] for row in rows]
        self._sizes = [len(cdf) for cdf in self._cdfs]
        self._offsets = [-int(k) for k in symbol_limits()] + [-HYPER_SYMBOL_LIMIT] * (len(rows) - SCALE_LEVELS)
        self._channels = tables.hyper.shape[1]

    def parts(self, pair: PairSymbols) -> list[tuple[np.ndarray, np.ndarray]]:
        """Symbols and table indices of the hyper-latents, then of each step."""
        channel = np.arange(2 * self._channels, dtype=np.int32).repeat(pair.hyper[0][0].size) + SCALE_LEVELS
        hyper = np.concatenate([z.reshape(-1) for z in pair.hyper])
        return [(hyper, channel), *((s.reshape(-1), i.reshape(-1)) for s, i in pair.steps)]

    def encode_lists(self, symbols: list[int], indices: list[int]) -> bytes:
        """Lists to bytes."""
        return self._ans.RansEncoder().encode_with_indexes(symbols, indices, self._cdfs, self._sizes, self._offsets)

    def decode_lists(self, data: bytes, indices: list[list[int]]) -> list[list[int]]:
        """Bytes to one list for each call."""
        decoder = self._ans.RansDecoder()
        decoder.set_stream(data)
        return [decoder.decode_stream(part, self._cdfs, self._sizes, self._offsets) for part in indices]

    def encode(self, pair: PairSymbols) -> bytes:
        """Arrays to bytes."""
        symbols, indices = (np.concatenate(x).tolist() for x in zip(*self.parts(pair), strict=True))
        return self.encode_lists(symbols, indices)

    def decode(self, data: bytes, pair: PairSymbols) -> list[np.ndarray]:
        """Bytes to arrays, given table indices."""
        found = self.decode_lists(data, [indices.tolist() for _, indices in self.parts(pair)])
        return [np.array(part, np.int32) for part in found]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(
    pair: PairSymbols, ours: Ours, theirs: CompressAi, library: Constriction, turns: int
) -> tuple[dict[str, list[float]], int, int]:
    """CPU seconds by coder and direction, one value a turn; bytes of this package's coder and of CompressAI's.

    Raises ValueError if a coder does not give back the symbols, or if constriction's bytes are others.
    """
    data, other = ours.encode(pair), theirs.encode(pair)
    symbols, indices = (np.concatenate(x).tolist() for x in zip(*theirs.parts(pair), strict=True))
    split = [i.tolist() for _, i in theirs.parts(pair)]
    wanted = pair.flat()
    if library.encode(pair) != data:
        raise ValueError("constriction's coder: expected the bytes of this package's, got others")
    for name, found in (
        ("this package's", ours.decode(data, pair)),
        ("CompressAI's", theirs.decode(other, pair)),
        ("constriction's", library.decode(data, pair)),
    ):
        if not np.array_equal(np.concatenate([x.reshape(-1) for x in found]), wanted):
            raise ValueError(f"{name} coder: expected the symbols back, got others")
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: ours.encode(pair),
        "encode, CompressAI with lists": lambda: theirs.encode(pair),
        "encode, CompressAI bare": lambda: theirs.encode_lists(symbols, indices),
        "encode, constriction": lambda: library.encode(pair),
        "decode": lambda: ours.decode(data, pair),
        "decode, CompressAI with lists": lambda: theirs.decode(other, pair),
        "decode, CompressAI bare": lambda: theirs.decode_lists(other, split),
        "decode, constriction": lambda: library.decode(data, pair),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            value = _seconds(call)
            if turn:  # the first one warms up
                seconds[name].append(value)
    return seconds, len(data), len(other)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--kitti", type=Path, help="folder with KITTI sources (object, odometry); else rendered alone")
    parser.add_argument("--model", default="sicm-compact")
    parser.add_argument("--rates", type=float, nargs="*", help="default: lowest, default and highest of the model")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the rendered pairs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    ours, theirs, library = Ours(model.tables), CompressAi(model.tables, compressai().ans), Constriction(model.tables)
    rates = options.rates or [0.0, model.config.default_rate, float(model.config.highest_rate)]
    times: dict[float, dict[str, list[float]]] = {rate: {} for rate in rates}
    sizes: dict[float, list[tuple[int, int]]] = {rate: [] for rate in rates}
    count = 0
    for i, frame in enumerate(watched(frames(options.pairs, options.kitti, options.seed), options.pairs)):
        y = latents(model, frame)
        for rate in rates:
            pair = PairSymbols.of(model.net.entropy_model.quantise(*y, rate))
            count = pair.flat().size
            try:
                seconds, *size = compare(pair, ours, theirs, library, options.turns)
            except ValueError as e:
                console.print(f"pair {i}, rate {rate:g}: {e}")
                return 1
            sizes[rate].append((size[0], size[1]))
            for name, values in seconds.items():
                times[rate].setdefault(name, []).extend(values)
    console.print(
        f"{model.name}: {options.pairs} pairs ({len(real_pairs(options.pairs, options.kitti))} real) of {count} "
        f"symbols, {options.turns} turns each, CPU time; every symbol came back from all coders",
        highlight=False,
    )
    table = Table(
        "rate",
        "bytes a pair",
        "CompressAI",
        "",
        "ms",
        "CompressAI with lists, times",
        "bare, times",
        "constriction, times",
    )
    for rate in rates:
        a, b = np.mean(sizes[rate], 0)
        sizes_shown = (f"{rate:g}", f"{a:.1f}", f"{b:.1f} ({100 * (b / a - 1):+.2f} %)")
        for side in ("encode", "decode"):
            own = np.array(times[rate][side])
            ratios = [
                Spread.of(np.array(times[rate][f"{side}, {name}"]) / own)
                for name in ("CompressAI with lists", "CompressAI bare", "constriction")
            ]
            shown = [f"{ratio.median:.2f} ({ratio.p5:.2f} to {ratio.p95:.2f})" for ratio in ratios]
            table.add_row(*sizes_shown, side, f"{1e3 * np.median(own):.2f}", *shown)
    console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
