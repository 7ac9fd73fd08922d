# SPDX-License-Identifier: Apache-2.0
"""Exact integer layers of the entropy model, compiled for a CPU: 16-bit products, 32-bit sums, 64-bit totals.

What processors do fastest with integers is to multiply 16-bit numbers and to add two products to a 32-bit sum. Here the
inputs of a layer are split into segments whose sums cannot pass 32 bits: by the Cauchy-Schwarz inequality a sum of
products is at most the product of both Euclidean norms, and these are known for every 16 inputs. The segments' sums are
added in 64 bits. Values that need more than 16 bits, which damaged packets can bring about, are split into two parts.

A layer is one call: a tile of rows is gathered, multiplied and rounded before the next one, and its results are stored
in the form in which the next layer takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..compiled import compiled

__all__ = ["Rows", "Weights", "nearest", "scale_indices"]

ROWS, OUTPUTS, CHUNK = 6, 16, 16  # of a tile: what fits the registers of AVX2; inputs of which the norm is known
# Sums of each output that are made side by side, so that none waits for its last addition: AVX-512 has room for two.
SUMS = 2 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 1
HALF_BITS = 11
_SUM_LIMIT = 2.0**31 * (1 - 1e-4)  # norms are float32


@intrinsic
def _add_products(
    typing_context: Any, x: Any, w: Any, w_offset: Any, first: Any, last: Any, shift: Any, sums: Any, column: Any
) -> Any:
    """sums[r, column + o] += (sum over pairs p of x[r, 2 p] w[p, o, 0] + x[r, 2 p + 1] w[p, o, 1]) << shift.

    The pairs are ``first`` to ``last`` - 1. ``x`` (ROWS, inputs) and ``w`` int16, their sum in 32 bits; ``sums``
    (ROWS, outputs) int64; ``w_offset`` in elements.
    Written for LLVM, whose vectoriser does not find the instruction in loops.
    """
    signature = types.void(x, w, types.intp, types.intp, types.intp, types.intp, sums, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, w, w_offset, first, last, shift, sums, column = arguments
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip((signature.args[0], signature.args[1], signature.args[6]), (x, w, sums), strict=True)
        ]
        pair, lanes = ir.IntType(32), ir.VectorType(ir.IntType(16), 2 * OUTPUTS)
        total, wide = ir.VectorType(ir.IntType(32), OUTPUTS), ir.VectorType(ir.IntType(32), 2 * OUTPUTS)
        size, sum_row = ir.IntType(64), ir.VectorType(ir.IntType(64), OUTPUTS)
        stride, sums_stride = (builder.extract_value(array.strides, 0) for array in (arrays[0], arrays[2]))  # bytes
        x_bytes = builder.ptrtoint(arrays[0].data, size)
        w_bytes = builder.add(builder.ptrtoint(arrays[1].data, size), builder.mul(w_offset, size(2)))
        rows = [builder.add(x_bytes, builder.mul(stride, size(r))) for r in range(ROWS)]

        before = builder.block
        loop, after = builder.append_basic_block("pairs"), builder.append_basic_block("sums")
        builder.cbranch(builder.icmp_signed("<", first, last), loop, after)
        builder.position_at_end(loop)
        p = builder.phi(size)
        p.add_incoming(first, before)
        found = [[builder.phi(total) for _ in range(ROWS)] for _ in range(SUMS)]
        zero = ir.Constant(total, None)
        even = ir.Constant(ir.VectorType(pair, OUTPUTS), list(range(0, 2 * OUTPUTS, 2)))
        odd = ir.Constant(ir.VectorType(pair, OUTPUTS), list(range(1, 2 * OUTPUTS, 2)))
        splat = ir.Constant(ir.VectorType(pair, OUTPUTS), [0] * OUTPUTS)
        w_here = builder.add(w_bytes, builder.mul(p, size(4 * OUTPUTS)))
        x_here = [builder.add(row, builder.mul(p, size(4))) for row in rows]
        updated: list[list[Any]] = []
        for s in range(SUMS):
            load = builder.inttoptr(builder.add(w_here, size(4 * OUTPUTS * s)), lanes.as_pointer())
            weights = builder.sext(builder.load(load, align=2), wide)
            updated.append([])
            for row, before_row in zip(x_here, found[s], strict=True):
                before_row.add_incoming(zero, before)
                load = builder.inttoptr(builder.add(row, size(4 * s)), pair.as_pointer())
                both = builder.insert_element(ir.Constant(total, ir.Undefined), builder.load(load, align=2), pair(0))
                values = builder.bitcast(builder.shuffle_vector(both, both, splat), lanes)
                products = builder.mul(builder.sext(values, wide), weights)
                added = builder.add(
                    builder.shuffle_vector(products, products, even), builder.shuffle_vector(products, products, odd)
                )
                updated[s].append(builder.add(before_row, added))
        for s in range(SUMS):
            for before_row, row_sums in zip(found[s], updated[s], strict=True):
                before_row.add_incoming(row_sums, loop)
        following = builder.add(p, size(SUMS))
        p.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, last), loop, after)
        builder.position_at_end(after)
        results = []
        for r in range(ROWS):
            parts = [builder.phi(total) for _ in range(SUMS)]
            for s, part in enumerate(parts):
                part.add_incoming(zero, before)
                part.add_incoming(updated[s][r], loop)
            results.append(parts)
        results = [reduce(builder.add, parts) for parts in results]
        one = builder.insert_element(ir.Constant(sum_row, ir.Undefined), shift, pair(0))
        shifts = builder.shuffle_vector(one, one, splat)
        out = builder.add(builder.ptrtoint(arrays[2].data, size), builder.mul(column, size(8)))
        for r, result in enumerate(results):
            place = builder.add(out, builder.mul(sums_stride, size(r)))
            place = builder.inttoptr(place, sum_row.as_pointer())
            shifted = builder.shl(builder.sext(result, sum_row), shifts)
            builder.store(builder.add(builder.load(place, align=8), shifted), place, align=8)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _copy_chunk(typing_context: Any, out: Any, start: Any, x: Any, first: Any) -> Any:
    """out[start + c] = x[first + c] for CHUNK elements of flat arrays of int16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source = (
            _place(context, builder, signature.args[i], arguments[i], arguments[i + 1], 16) for i in (0, 2)
        )
        builder.store(builder.load(source, align=2), target, align=2)
        return context.get_dummy_value()

    return types.void(out, types.intp, x, types.intp), generate


@intrinsic
def _store_chunk(
    typing_context: Any,
    sums: Any,
    start: Any,
    bias: Any,
    shift: Any,
    first: Any,
    low: Any,
    high: Any,
    leak: Any,
    values: Any,
    narrow: Any,
    place: Any,
) -> Any:
    """CHUNK values, clamp((sums + bias) >> shift, low, high), negative ones shifted by ``leak`` more.

    All arrays are flat: ``sums`` from ``start`` on, ``bias`` and ``shift`` from ``first`` on, int64; ``values`` int32
    and ``narrow`` int16 from ``place`` on. Returns the norm of the CHUNK, infinity where 16 bits do not do.
    """
    signature = types.float32(
        sums, types.intp, bias, shift, types.intp, types.int64, types.int64, types.int64,
        values, narrow, types.intp,
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, start, bias, shift, first, low, high, leak, values, narrow, place = arguments
        kinds = signature.args
        total, number = ir.VectorType(ir.IntType(64), CHUNK), ir.VectorType(ir.IntType(32), CHUNK)

        def load(i: int, at: Any) -> Any:
            return builder.load(_place(context, builder, kinds[i], arguments[i], at, 64), align=8)

        def everywhere(x: Any) -> Any:
            one = builder.insert_element(ir.Constant(total, ir.Undefined), x, ir.IntType(32)(0))
            return builder.shuffle_vector(one, one, ir.Constant(number, [0] * CHUNK))

        def chosen(order: str, x: Any, y: Any) -> Any:
            return builder.select(builder.icmp_signed(order, x, y), x, y)

        value = builder.ashr(builder.add(load(0, start), load(2, first)), load(3, first))
        value = chosen("<", chosen(">", value, everywhere(low)), everywhere(high))
        negative = builder.icmp_signed("<", value, ir.Constant(total, None))
        value = builder.trunc(builder.select(negative, builder.ashr(value, everywhere(leak)), value), number)
        short = builder.trunc(value, ir.VectorType(ir.IntType(16), CHUNK))
        builder.store(value, _place(context, builder, kinds[8], values, place, 32), align=4)
        builder.store(short, _place(context, builder, kinds[9], narrow, place, 16), align=2)
        beyond = builder.icmp_signed("!=", builder.sext(short, number), value)
        beyond = builder.icmp_signed("!=", builder.bitcast(beyond, ir.IntType(CHUNK)), ir.IntType(CHUNK)(0))
        squares = builder.sitofp(short, ir.VectorType(ir.FloatType(), CHUNK))
        squares = builder.fmul(squares, squares)
        half = CHUNK // 2
        while half:
            upper = ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(half, 2 * half)))
            lower = ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(half)))
            squares = builder.fadd(
                builder.shuffle_vector(squares, squares, lower), builder.shuffle_vector(squares, squares, upper)
            )
            half //= 2
        root = builder.module.declare_intrinsic("llvm.sqrt", [ir.FloatType()])
        norm = builder.call(root, [builder.extract_element(squares, ir.IntType(32)(0))])
        return builder.select(beyond, ir.Constant(ir.FloatType(), float("inf")), norm)

    return signature, generate


def _place(context: Any, builder: Any, kind: Any, array: Any, start: Any, bits: int) -> Any:
    """A pointer to CHUNK integers of a flat array from ``start`` on."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [start]), ir.VectorType(ir.IntType(bits), CHUNK).as_pointer())


_OUT = "int32[::1], int16[::1], float32[::1], float32[::1], int64, int64"  # see Rows.out
_VALUES, _CELLS = "int32[:, :, ::1]", "int64[::1]"
_LOWEST, _HIGHEST = -(1 << 31), (1 << 31) - 1


@compiled(f"void({_VALUES}, {_CELLS}, {_OUT})", nogil=True)
def _put(new: Any, cells: Any, values: Any, narrow: Any, norms: Any, largest: Any, count: Any, width: Any) -> None:
    row, nothing = np.zeros(width, np.int64), np.zeros(CHUNK, np.int64)
    for b in range(len(new)):
        for i in range(len(cells)):
            for c in range(new.shape[2]):
                row[c] = new[b, i, c]
            for k in range(0, width, CHUNK):
                place = (b * count + cells[i]) * width + k
                norm: Any = _store_chunk(row, k, nothing, nothing, 0, _LOWEST, _HIGHEST, 0, values, narrow, place)  # type: ignore[call-arg]
                norms[place // CHUNK] = norm
                largest[0] = max(largest[0], norm)


@compiled(f"void(int32[::1], int64, int64, int64, int64, int64, {_OUT})", nogil=True)
def _interleave(
    rows: Any, row_width: Any, height: Any, columns: Any, out_columns: Any, channels: Any,
    values: Any, narrow: Any, norms: Any, largest: Any, count: Any, width: Any,
) -> None:  # fmt: skip
    """Rows of a grid of ``height`` x ``columns`` with the channels of four parities to all rows but the last."""
    row, nothing = np.zeros(width, np.int64), np.zeros(CHUNK, np.int64)
    for b in range(len(values) // (count * width)):
        for i in range(count - 1):
            y, x = i // out_columns, i % out_columns
            cell = (b * height + y // 2) * columns + x // 2
            start = cell * row_width + (y % 2 * 2 + x % 2) * channels
            for c in range(channels):
                row[c] = rows[start + c]
            for k in range(0, width, CHUNK):
                place = (b * count + i) * width + k
                norm: Any = _store_chunk(row, k, nothing, nothing, 0, _LOWEST, _HIGHEST, 0, values, narrow, place)  # type: ignore[call-arg]
                norms[place // CHUNK] = norm
                largest[0] = max(largest[0], norm)


@compiled(f"void(int32[::1], int64, {_CELLS}, int32[::1], int64, {_OUT})", nogil=True)
def _scaled(
    rows: Any, row_count: Any, cells: Any, weights: Any, bits: Any,
    values: Any, narrow: Any, norms: Any, largest: Any, count: Any, width: Any,
) -> None:  # fmt: skip
    row, nothing, shift = np.zeros(width, np.int64), np.zeros(CHUNK, np.int64), np.full(CHUNK, bits)
    for b in range(len(weights) // (count * width) if count else 0):
        for i in range(count):
            own, first = (b * row_count + cells[i]) * width, (b * count + i) * width
            for c in range(width):
                row[c] = np.int64(rows[own + c]) * weights[first + c]
            for k in range(0, width, CHUNK):
                norm: Any = _store_chunk(row, k, nothing, shift, 0, _LOWEST, _HIGHEST, 0, values, narrow, first + k)  # type: ignore[call-arg]
                norms[(first + k) // CHUNK] = norm
                largest[0] = max(largest[0], norm)


@compiled("void(int32[::1], int16[::1], float32[::1])", nogil=True)
def _split(values: Any, planes: Any, norms: Any) -> None:
    """Rows of up to 22 bits as two planes of 11: of 16 such products no sum can pass 31."""
    for i in range(len(values)):
        planes[i] = np.int16(values[i] & np.int32((1 << HALF_BITS) - 1))
        planes[len(values) + i] = np.int16(values[i] >> np.int32(HALF_BITS))
    for k in range(len(norms)):
        total = np.float32(0)
        for c in range(k * CHUNK, (k + 1) * CHUNK):
            total += np.float32(planes[c]) * np.float32(planes[c])
        norms[k] = np.sqrt(total)


def _signature(parts: int) -> str:
    kinds = ("int16[::1]", "float32[::1]", "int64[:, ::1]", "int64", "int64")
    tuples = ", ".join(f"UniTuple({kind}, {parts})" for kind in kinds)
    weights = "int16[::1], float32[:, ::1], int64[:, ::1]"
    return f"void({tuples}, int64, int64, {weights}, int64, int64, int64, {_CELLS}, {_OUT})"


@compiled(*[_signature(parts) for parts in (1, 2, 3)], nogil=True)
def _layer(
    parts: Any,
    norms: Any,
    near: Any,
    counts: Any,
    widths: Any,
    planes: Any,
    batch: Any,
    weights: Any,
    weight_norms: Any,
    bias_and_shift: Any,
    low: Any,
    high: Any,
    leak: Any,
    cells: Any,
    values: Any,
    narrow: Any,
    out_norms: Any,
    largest: Any,
    out_count: Any,
    outputs: Any,
) -> None:
    """See ``Weights.apply``. ``parts``: planes of each part's rows; ``norms``: theirs."""
    bias, shift = bias_and_shift[0], bias_and_shift[1]
    count, chunks = len(near[0]), weight_norms.shape[1]
    inputs = chunks * CHUNK
    tile = np.zeros((ROWS, inputs), np.int16)
    flat_tile, sums = tile.reshape(-1), np.empty((ROWS, outputs), np.int64)
    flat_sums = sums.reshape(-1)
    bounds = np.empty(chunks, np.float32)
    for b in range(batch):
        for start in range(0, count, ROWS):
            rows = min(ROWS, count - start)
            sums[:] = 0
            for plane in range(planes):
                offset = 0
                bounds[:] = 0
                for p in range(len(parts)):
                    source, source_norms, table, width = parts[p], norms[p], near[p], widths[p]
                    first_row = (plane * batch + b) * counts[p]
                    for r in range(rows):
                        for t in range(table.shape[1]):
                            place = (first_row + table[start + r, t]) * width
                            target = offset + t * width
                            for k in range(0, width, CHUNK):
                                _copy_chunk(flat_tile, r * inputs + target + k, source, place + k)  # type: ignore[call-arg]
                                chunk = (target + k) // CHUNK
                                bounds[chunk] = max(bounds[chunk], source_norms[(place + k) // CHUNK])
                    offset += table.shape[1] * width
                for w in range(len(weight_norms)):
                    begin, bound = 0, np.float32(0)
                    for k in range(chunks + 1):
                        here = bounds[k] * weight_norms[w, k] if k < chunks else np.float32(0)
                        if k == chunks or bound + here >= _SUM_LIMIT:
                            end = k * CHUNK // 2
                            for first in range(0, outputs, OUTPUTS):
                                _add_products(
                                    tile, weights, (w * outputs + first) * inputs, begin, end,
                                    plane * HALF_BITS, sums, first,
                                )  # type: ignore[call-arg]  # fmt: skip
                            begin, bound = end, np.float32(0)
                        bound += here
            for r in range(rows):
                place = (b * out_count + cells[start + r]) * outputs
                for k in range(0, outputs, CHUNK):
                    norm: Any = _store_chunk(
                        flat_sums, r * outputs + k, bias, shift, k, low, high, leak, values, narrow, place + k
                    )  # type: ignore[call-arg]
                    out_norms[(place + k) // CHUNK] = norm
                    largest[0] = max(largest[0], norm)


def padded(channels: int) -> int:
    """As many channels as a row of so many has in memory."""
    return -(-channels // CHUNK) * CHUNK


class Rows:
    """Rows (B, n, C) of integers below 2 ** 22 in magnitude, as a layer gives and takes them.

    In flat arrays, with channels up to a multiple of CHUNK: int32, int16 where that does, the norm of every CHUNK
    (infinity where it does not), and the largest norm of all that were ever set.
    """

    __slots__ = ("batch", "channels", "count", "largest", "out")

    def __init__(self, batch: int, count: int, channels: int, make: Callable[..., np.ndarray] = np.zeros) -> None:
        """Zeros, unless ``make`` is np.empty."""
        self.batch, self.count, self.channels, width = batch, count, channels, padded(channels)
        size = batch * count * width
        self.largest = np.zeros(1, np.float32)
        # As the kernel's functions take what they write to.
        self.out = (
            make(size, np.int32), make(size, np.int16), make(size // CHUNK, np.float32), self.largest, count, width
        )  # fmt: skip

    @property
    def values(self) -> np.ndarray:
        """All of them, int32."""
        return self.out[0].reshape(self.batch, self.count, self.out[5])[:, :, : self.channels]

    def put(self, cells: np.ndarray, values: np.ndarray) -> None:
        """Set the rows ``cells`` (n,) to ``values`` (B, n, C), int32."""
        _put(values, cells, *self.out)

    def scaled(self, cells: np.ndarray, weights: Rows, bits: int) -> Rows:
        """floor(rows at ``cells`` * weights / 2 ** bits); ``weights`` has a row for each cell."""
        out = Rows(weights.batch, weights.count, weights.channels, np.empty)
        _scaled(self.out[0], self.count, cells, weights.out[0], bits, *out.out)
        return out

    def interleaved(self, size: tuple[int, int], out: tuple[int, int]) -> Rows:
        """Rows of a grid of ``size``, each with the channels of four parities of row and column, to those of ``out``
        and a row of zeros."""
        rows = Rows(self.batch, out[0] * out[1] + 1, self.channels // 4)
        _interleave(self.out[0], self.out[5], *size, out[1], rows.channels, *rows.out)
        return rows

    def part(self, split: bool) -> tuple[np.ndarray, np.ndarray, int, int]:
        """As ``_layer`` takes a part, in one plane or in two: the planes, their norms, n, and the width of a row."""
        values, narrow, norms, _, count, width = self.out
        if split:
            narrow, norms = np.empty(2 * len(narrow), np.int16), np.empty(2 * len(norms), np.float32)
            _split(values, narrow, norms)
        return narrow, norms, count, width


def _aligned(x: np.ndarray) -> np.ndarray:
    """The same flat array at a multiple of 64 bytes: elsewhere, loads of a register's size touch two cache lines."""
    room = np.empty(x.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    out = room[start : start + x.nbytes].view(x.dtype)
    out[:] = x
    return out


class Weights:
    """A layer's weights (inputs, outputs), of 16 bits or just 2 ** 15, as the kernel reads them.

    ``parts``: taps and channels of what the layer takes; ``weights`` has a row for each channel of each tap of each.
    ``bias`` and ``shift``: (outputs,) int64.
    """

    def __init__(
        self, weights: np.ndarray, bias: np.ndarray, shift: np.ndarray, parts: Sequence[tuple[int, int]]
    ) -> None:
        outputs = weights.shape[1]
        width = padded(outputs)
        blocks, start = [], 0
        for taps, channels in parts:
            block = np.zeros((taps, padded(channels), width), np.int64)
            end = start + taps * channels
            block[:, :channels, :outputs] = weights[start:end].reshape(taps, channels, -1)
            blocks.append(block.reshape(-1, width))
            start = end
        whole = np.concatenate(blocks)
        narrow = np.minimum(whole, (1 << 15) - 1)
        layers = [narrow, whole - narrow] if (whole != narrow).any() else [narrow]
        # For each OUTPUTS outputs, each two inputs together.
        pairs = [x.reshape(-1, 2, width // OUTPUTS, OUTPUTS).transpose(2, 0, 3, 1).ravel() for x in layers]
        self._pairs = _aligned(np.concatenate(pairs).astype(np.int16))
        squares = [x.reshape(-1, CHUNK, width).astype(np.float64) ** 2 for x in layers]
        self._norms = np.sqrt([x.sum(1).max(1) for x in squares]).astype(np.float32)
        self._largest = max(1.0, float(self._norms.max()))
        self._bias_and_shift = np.zeros((2, width), np.int64)
        self._bias_and_shift[:, :outputs] = bias, shift

    def apply(
        self,
        parts: Sequence[tuple[Rows, np.ndarray]],
        low: int,
        high: int,
        leak: int,
        out: Rows,
        cells: np.ndarray,
    ) -> None:
        """Set ``out`` at ``cells`` (n,) to clamp((sums + bias) >> shift, low, high), negative ones shifted by ``leak``
        more; ``sums`` are the products with each part's rows at its table (n, taps) int64. 0 is in the limits."""
        limit = _SUM_LIMIT / self._largest
        planes = 1 if all([rows.largest[0] < limit for rows, _ in parts]) else 2
        arrays, norms, counts, widths = zip(*[rows.part(planes == 2) for rows, _ in parts], strict=True)
        _layer(
            arrays, norms, tuple([near for _, near in parts]), counts, widths, planes, out.batch,
            self._pairs, self._norms, self._bias_and_shift, low, high, leak, cells, *out.out,
        )  # fmt: skip


@compiled(f"void({_VALUES}, int64, int64, int64, int64, int64, {_VALUES}, {_VALUES})", nogil=True)
def _scale_indices(
    outputs: Any, start: Any, factor: Any, offset: Any, bits: Any, highest: Any, index: Any, mean: Any
) -> None:
    channels = index.shape[2]
    for b in range(outputs.shape[0]):
        for i in range(outputs.shape[1]):
            row, indices, means = outputs[b, i], index[b, start + i], mean[b, start + i]
            for c in range(channels):
                indices[c] = min(max((np.int64(row[c]) * factor + offset) >> bits, 0), highest)
                means[c] = row[channels + c]


def scale_indices(
    outputs: tuple[Rows, Rows], factor: int, offset: int, bits: int, highest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of rows of log-scales and means (B, n, 2 C) of both views: indices (B, n + n', C), which are
    (log-scale * factor + offset) >> bits, in [0, highest], and means, both int32."""
    count = outputs[0].count
    shape = (outputs[0].batch, count + outputs[1].count, outputs[0].channels // 2)
    index, mean = np.empty(shape, np.int32), np.empty(shape, np.int32)
    for rows, start in zip(outputs, (0, count), strict=True):
        _scale_indices(np.ascontiguousarray(rows.values), start, factor, offset, bits, highest, index, mean)
    return index, mean


@compiled(
    f"void(float32[:, :, ::1], {_CELLS}, int64, {_VALUES}, {_VALUES}, float64, float64[::1], {_VALUES})", nogil=True
)
def _nearest(maps: Any, cells: Any, start: Any, index: Any, mean: Any, unit: Any, limits: Any, symbols: Any) -> None:
    for b in range(len(maps)):
        for i in range(len(cells)):
            cell, place = cells[i], start + i
            for c in range(maps.shape[1]):
                limit = limits[index[b, place, c]]
                symbol = np.floor(np.float64(maps[b, c, cell]) - mean[b, place, c] * unit + 0.5)
                if not -limit <= symbol <= limit:
                    symbol = limit if symbol > limit else -limit if symbol < -limit else 0.0
                symbols[b, place, c] = np.int32(symbol)


def nearest(
    maps: tuple[np.ndarray, np.ndarray],
    cells: tuple[np.ndarray, np.ndarray],
    index: np.ndarray,
    mean: np.ndarray,
    unit: float,
    limits: np.ndarray,
) -> np.ndarray:
    """The symbols (B, n + n', C) int32 that bring the means nearest to both views' ``maps`` (B, C, h * w) float32.

    ``mean`` is in units of ``unit``, a power of two. No symbol is beyond the one of ``limits`` that ``index`` chooses;
    what is no number gives 0.
    """
    symbols = np.empty_like(mean)
    for x, places, start in zip(maps, cells, (0, len(cells[0])), strict=True):
        _nearest(x, places, start, index, mean, unit, limits, symbols)
    return symbols
