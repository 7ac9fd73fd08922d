# SPDX-License-Identifier: Apache-2.0
"""Child processes of the fuzzer that fail; apart from its tests, because each child imports this file."""

import ctypes
import os
import time

from fuzz_packets import HEADROOM, hold_memory


def troubled(shared, failures, seed, first, last):
    """Crashes in case 3, hangs in case 6, wants too much memory in case 8."""
    hold_memory()
    for number in range(first, last):
        shared.state[0] = number
        if number == 3:
            ctypes.string_at(0)
        if number == 6:
            time.sleep(60)
        if number == 8:
            try:
                bytearray(2 * HEADROOM)
            except MemoryError:
                failures.send((number, "cut", "MemoryError"))
        shared.count("cut", "FAILED" if number == 8 else "TruncatedPacketError")
    shared.state[0] = shared.IDLE


def stillborn(shared, failures, seed, first, last):
    """Does not even start."""
    os._exit(3)
