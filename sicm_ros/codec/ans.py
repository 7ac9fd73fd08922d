# SPDX-License-Identifier: Apache-2.0
"""Range asymmetric numeral systems (rANS) with a 64-bit state, 32-bit words and 24-bit probabilities, in numba.

``docs/packet.md``, section 2, has the arithmetic. A table row is the part of the flat arrays ``low`` and ``width`` that
belongs to one distribution: the symbol at position p has the interval [low[p], low[p] + width[p]) of [0, 2 ** 24).

The functions are compiled when this module is imported, not when the first packet comes.
"""

from __future__ import annotations

import numpy as np

from ..compiled import compiled

__all__ = ["BUCKETS", "PRECISION", "STATE", "WORDS_LEFT", "decode", "encode", "group"]

PRECISION = 24
BUCKETS = 256  # of each row in the decoder's table ``first``
STATE, WORDS_LEFT = 0, 1  # what a decoder's ``stack`` holds

_PRECISION, _WORD = np.uint64(PRECISION), np.uint64(32)
_MASK = np.uint64((1 << PRECISION) - 1)
_BUCKET = np.uint64(PRECISION - 8)
_LEAST = np.uint64(1 << 32)  # a smaller state takes in a word
_ZERO, _ONE = np.uint64(0), np.uint64(1)


@compiled("int32[::1](uint16[::1], int64)", nogil=True)
def _order(rows: np.ndarray, row_count: int) -> np.ndarray:
    """Order (n,) in which symbols of the table rows ``rows`` (n,) are coded: by row, then as they come."""
    place = np.zeros(row_count + 1, np.int32)
    for row in rows:
        if row >= row_count:
            raise ValueError("a table row that is not there")
        place[row + 1] += 1
    for row in range(row_count):
        place[row + 1] += place[row]
    order = np.empty(len(rows), np.int32)
    for i in range(len(rows)):
        order[place[rows[i]]] = i
        place[rows[i]] += 1
    return order


@compiled("float64(int32[::1], uint16[::1], int32[::1], int32[::1], float64[::1], int32[::1])", nogil=True)
def group(
    symbols: np.ndarray,
    rows: np.ndarray,
    limits: np.ndarray,
    centres: np.ndarray,
    bits: np.ndarray,
    positions: np.ndarray,
) -> float:
    """Set ``positions`` (n,) in the tables of symbols (n,) of ``rows`` (n,), in the order of coding; return their bits.

    ``centres`` is the position of each row's symbol 0, ``limits`` its largest symbol; ``bits`` those of each position.
    -1 if a symbol exceeds its limit.
    """
    total = 0.0
    order = _order(rows, len(limits))
    for k in range(len(order)):
        symbol, row = symbols[order[k]], rows[order[k]]
        if symbol > limits[row] or symbol < -limits[row]:
            return -1.0
        position = centres[row] + symbol
        positions[k] = position
        total += bits[position]
    return total


@compiled("uint32[::1](int32[::1], uint32[::1], uint32[::1])", nogil=True, error_model="numpy")
def encode(positions: np.ndarray, low: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The words, first pushed first, of symbols at ``positions`` (n,), the one that is to be decoded first at 0."""
    words = np.empty(len(positions) + 2, np.uint32)
    count = 0
    state = _ZERO
    for k in range(len(positions) - 1, -1, -1):
        p = positions[k]
        share = np.uint64(width[p])
        if (state >> np.uint64(64 - PRECISION)) >= share:
            words[count] = np.uint32(state & np.uint64(0xFFFFFFFF))
            count += 1
            state >>= _WORD
        prefix = state // share
        state = (prefix << _PRECISION) | (np.uint64(low[p]) + (state - prefix * share))
    while state != _ZERO:
        words[count] = np.uint32(state & np.uint64(0xFFFFFFFF))
        count += 1
        state >>= _WORD
    return words[:count]


@compiled(
    "void(uint32[::1], uint64[::1], uint16[::1], uint32[::1], uint32[::1], int32[:,::1], int32[::1], int32[::1])",
    nogil=True,
)
def decode(
    words: np.ndarray,
    stack: np.ndarray,
    rows: np.ndarray,
    low: np.ndarray,
    width: np.ndarray,
    first: np.ndarray,
    centres: np.ndarray,
    symbols: np.ndarray,
) -> None:
    """Take the ``symbols`` (n,) of ``rows`` (n,) from a stack: its state, and how many of ``words`` are left in it.

    ``first`` (rows, BUCKETS) is the position of the symbol that the bucket's first number belongs to. Any words give
    symbols within the tables.
    """
    state, left = stack[STATE], stack[WORDS_LEFT]
    for i in _order(rows, len(centres)):
        row = rows[i]
        part = state & _MASK
        p = first[row, np.int64(part >> _BUCKET)]
        while np.uint64(low[p]) + np.uint64(width[p]) <= part:
            p += 1
        state = (state >> _PRECISION) * np.uint64(width[p]) + (part - np.uint64(low[p]))
        if state < _LEAST and left > _ZERO:
            left -= _ONE
            state = (state << _WORD) | np.uint64(words[np.int64(left)])
        symbols[i] = p - centres[row]
    stack[STATE], stack[WORDS_LEFT] = state, left
