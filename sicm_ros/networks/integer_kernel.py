# SPDX-License-Identifier: Apache-2.0
"""Exact integer layers of the entropy model, compiled for a CPU: 16-bit products, 32-bit sums, 64-bit totals.

What processors do fastest with integers is to multiply 16-bit numbers and to add two products to a 32-bit sum. Here the
inputs of a layer are split into segments whose sums cannot pass 32 bits: by the Cauchy-Schwarz inequality a sum of
products is at most the product of both Euclidean norms, and these are known for every 16 inputs. The segments' sums are
added in 64 bits. Values that need more than 16 bits, which damaged packets can bring about, are split into two parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..compiled import compiled

__all__ = ["Products", "finish", "padded"]

ROWS, OUTPUTS, CHUNK = 6, 16, 16  # of a tile: what fits the registers of AVX2; inputs of which the norm is known
HALF_BITS = 11
_SUM_LIMIT = 2.0**31 * (1 - 1e-4)  # norms are float32


@intrinsic
def _tile_sums(typing_context: Any, x: Any, w: Any, w_offset: Any, first: Any, last: Any, sums: Any) -> Any:
    """sums[r, o] = sum over the pairs ``first`` to ``last`` - 1 of x[r, 2 p] w[p, o, 0] + x[r, 2 p + 1] w[p, o, 1].

    ``x`` (ROWS, inputs) and ``w`` int16, ``sums`` (ROWS, OUTPUTS) int32, modulo 2 ** 32; ``w_offset`` in elements.
    Written for LLVM, whose vectoriser does not find the instruction in loops.
    """
    signature = types.void(x, w, types.intp, types.intp, types.intp, sums)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, w, w_offset, first, last, sums = arguments
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip((signature.args[0], signature.args[1], signature.args[5]), (x, w, sums), strict=True)
        ]
        pair, lanes = ir.IntType(32), ir.VectorType(ir.IntType(16), 2 * OUTPUTS)
        total, wide = ir.VectorType(ir.IntType(32), OUTPUTS), ir.VectorType(ir.IntType(32), 2 * OUTPUTS)
        size = ir.IntType(64)
        stride = builder.extract_value(arrays[0].strides, 0)  # bytes
        x_bytes = builder.ptrtoint(arrays[0].data, size)
        w_bytes = builder.add(builder.ptrtoint(arrays[1].data, size), builder.mul(w_offset, size(2)))
        rows = [builder.add(x_bytes, builder.mul(stride, size(r))) for r in range(ROWS)]

        before = builder.block
        loop, after = builder.append_basic_block("pairs"), builder.append_basic_block("sums")
        builder.cbranch(builder.icmp_signed("<", first, last), loop, after)
        builder.position_at_end(loop)
        p = builder.phi(size)
        p.add_incoming(first, before)
        found = [builder.phi(total) for _ in range(ROWS)]
        zero = ir.Constant(total, None)
        load = builder.inttoptr(builder.add(w_bytes, builder.mul(p, size(4 * OUTPUTS))), lanes.as_pointer())
        weights = builder.sext(builder.load(load, align=2), wide)
        even = ir.Constant(ir.VectorType(pair, OUTPUTS), list(range(0, 2 * OUTPUTS, 2)))
        odd = ir.Constant(ir.VectorType(pair, OUTPUTS), list(range(1, 2 * OUTPUTS, 2)))
        splat = ir.Constant(ir.VectorType(pair, OUTPUTS), [0] * OUTPUTS)
        updated = []
        for row, before_row in zip(rows, found, strict=True):
            before_row.add_incoming(zero, before)
            load = builder.inttoptr(builder.add(row, builder.mul(p, size(4))), pair.as_pointer())
            both = builder.insert_element(ir.Constant(total, ir.Undefined), builder.load(load, align=2), pair(0))
            values = builder.bitcast(builder.shuffle_vector(both, both, splat), lanes)
            products = builder.mul(builder.sext(values, wide), weights)
            added = builder.add(
                builder.shuffle_vector(products, products, even), builder.shuffle_vector(products, products, odd)
            )
            updated.append(builder.add(before_row, added))
        for before_row, row_sums in zip(found, updated, strict=True):
            before_row.add_incoming(row_sums, loop)
        following = builder.add(p, size(1))
        p.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, last), loop, after)
        builder.position_at_end(after)
        results = [builder.phi(total) for _ in updated]
        for result, row_sums in zip(results, updated, strict=True):
            result.add_incoming(zero, before)
            result.add_incoming(row_sums, loop)
        out = builder.ptrtoint(arrays[2].data, size)
        for r, result in enumerate(results):
            store = builder.inttoptr(builder.add(out, size(4 * OUTPUTS * r)), total.as_pointer())
            builder.store(result, store, align=4)
        return context.get_dummy_value()

    return signature, generate


_ROWS, _PACKED, _NORMS = "int32[:, :, ::1]", "int16[:, :, ::1]", "float32[:, :, ::1]"


@compiled(f"int32({_ROWS}, int64, int32, {_PACKED}, {_NORMS})", nogil=True, fastmath={"reassoc"})
def _pack(x: Any, shift: Any, mask: Any, out: Any, norms: Any) -> Any:
    """(x >> shift) & mask of rows (B, n, C) as 16 bits, channels padded with zeros, and the norm of every CHUNK.

    Gives 0 if all of them have 16 bits.
    """
    batch, count, channels = x.shape
    beyond = np.int32(0)
    for b in range(batch):
        for i in range(count):
            for c in range(channels):
                value = (x[b, i, c] >> shift) & mask
                out[b, i, c] = np.int16(value)
                beyond |= (value ^ (value >> np.int32(31))) & np.int32(~0x7FFF)
            for c in range(channels, out.shape[2]):
                out[b, i, c] = 0
            for k in range(norms.shape[2]):
                total = np.float32(0)
                for c in range(k * CHUNK, (k + 1) * CHUNK):
                    narrow = np.float32(out[b, i, c])
                    total += narrow * narrow
                norms[b, i, k] = np.sqrt(total)
    return beyond


@compiled(f"void({_PACKED}, {_NORMS}, int64[:, ::1], int16[::1], float32[::1], int64, int64[:, :, ::1])", nogil=True)
def _accumulate(x: Any, norms: Any, near: Any, weights: Any, weight_norms: Any, shift: Any, sums: Any) -> None:
    """Add the products with rows ``x`` at ``near``, shifted to the left, to ``sums``."""
    batch, channels = len(x), x.shape[2]
    count, taps = near.shape
    inputs, outputs, chunks = taps * channels, sums.shape[2], channels // CHUNK
    tile = np.zeros((ROWS, inputs), np.int16)
    part = np.empty((ROWS, OUTPUTS), np.int32)
    ends = np.empty(len(weight_norms) + 1, np.int64)  # of the segments, in pairs
    for b in range(batch):
        for start in range(0, count, ROWS):
            rows = min(ROWS, count - start)
            for r in range(rows):
                for t in range(taps):
                    place = near[start + r, t]
                    for c in range(channels):
                        tile[r, t * channels + c] = x[b, place, c]
            segments, bound = 0, np.float32(0)
            for t in range(taps):
                for k in range(chunks):
                    norm = np.float32(0)
                    for r in range(rows):
                        norm = max(norm, norms[b, near[start + r, t], k])
                    norm *= weight_norms[t * chunks + k]
                    if bound + norm >= _SUM_LIMIT:
                        ends[segments] = (t * channels + k * CHUNK) // 2
                        segments, bound = segments + 1, np.float32(0)
                    bound += norm
            ends[segments] = inputs // 2
            for first_output in range(0, outputs, OUTPUTS):
                begin = np.int64(0)
                for segment in range(segments + 1):
                    _tile_sums(tile, weights, first_output * inputs, begin, ends[segment], part)  # type: ignore[call-arg]
                    begin = ends[segment]
                    for r in range(rows):
                        for o in range(OUTPUTS):
                            sums[b, start + r, first_output + o] += np.int64(part[r, o]) << shift


@compiled(f"void({_ROWS}, int64[:, ::1], int16[::1], float32[::1], int64[:, :, ::1])", nogil=True)
def _add(rows: Any, near: Any, weights: Any, weight_norms: Any, sums: Any) -> None:
    batch, count, _ = rows.shape
    if not rows.size:  # of latents of one cell, a step has no targets in one view
        return
    chunks = len(weight_norms) // near.shape[1]
    packed = np.empty((batch, count, chunks * CHUNK), np.int16)
    norms = np.empty((batch, count, chunks), np.float32)
    everything = np.int32(-1)
    if _pack(rows, 0, everything, packed, norms) == 0 and norms.max() * weight_norms.max() < _SUM_LIMIT:
        _accumulate(packed, norms, near, weights, weight_norms, 0, sums)
        return
    # In two parts of 11 bits: no input has more than 22, and 16 such products cannot pass 31.
    _pack(rows, 0, np.int32((1 << HALF_BITS) - 1), packed, norms)
    _accumulate(packed, norms, near, weights, weight_norms, 0, sums)
    _pack(rows, HALF_BITS, everything, packed, norms)
    _accumulate(packed, norms, near, weights, weight_norms, HALF_BITS, sums)


@compiled(f"void(int64[:, :, ::1], int64[::1], int64[::1], int64, int64, int64, {_ROWS})", nogil=True)
def finish(sums: Any, bias: Any, shift: Any, low: Any, high: Any, leak: Any, out: Any) -> None:
    """out = clamp((sums + bias) >> shift, low, high), negative ones shifted by ``leak`` more.

    ``sums`` (B, n, outputs or more) int64, ``bias`` and ``shift`` (outputs) int64, ``out`` (B, n, outputs) int32.
    """
    batch, count, outputs = out.shape
    for b in range(batch):
        for i in range(count):
            for o in range(outputs):
                value = min(max((sums[b, i, o] + bias[o]) >> shift[o], low), high)
                out[b, i, o] = np.int32(value if value >= 0 else value >> leak)


def padded(outputs: int) -> int:
    """As many sums as the kernel makes for so many outputs."""
    return -(-outputs // OUTPUTS) * OUTPUTS


class Products:
    """A block of a layer's weights, (taps * C, outputs) int32 of 16 bits or just 2 ** 15, as the kernel reads them."""

    def __init__(self, weights: np.ndarray, taps: int) -> None:
        inputs, outputs = weights.shape
        channels = -(-inputs // taps // CHUNK) * CHUNK
        whole = np.zeros((taps, channels, padded(outputs)), np.int64)
        whole[:, : inputs // taps, :outputs] = weights.reshape(taps, -1, outputs)
        narrow = np.minimum(whole, (1 << 15) - 1)
        # For each OUTPUTS outputs, each two inputs together.
        pairs = narrow.reshape(-1, 2, narrow.shape[2] // OUTPUTS, OUTPUTS).transpose(2, 0, 3, 1)
        self._pairs = pairs.astype(np.int16).ravel()
        squares = narrow.reshape(-1, CHUNK, narrow.shape[2]).astype(np.float64) ** 2
        self._norms = np.sqrt(squares.sum(1).max(1)).astype(np.float32)
        rest = (whole - narrow)[:, : inputs // taps, :outputs].reshape(inputs, outputs)
        self._rest = Products(rest, taps) if rest.any() else None

    def add(self, rows: np.ndarray, near: np.ndarray, sums: np.ndarray) -> None:
        """Add the products with ``rows`` (B, m, C) int32 at ``near`` (n, taps) int64 to ``sums``.

        ``sums`` is (B, n, padded(outputs)) int64. The rows are below 2 ** 22 in magnitude.
        """
        _add(rows, near, self._pairs, self._norms, sums)
        if self._rest is not None:
            self._rest.add(rows, near, sums)
