# SPDX-License-Identifier: Apache-2.0
"""Functions compiled by numba, kept on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["compiled"]


def compiled(*signatures: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: ``numba.njit`` with these options, and with a cache on disk.

    With signatures the function is compiled (or read from the cache) right here; without one, at its first call. The
    cache is in ``NUMBA_CACHE_DIR`` where that is set, else beside the source file, else in the user's cache folder.
    Where none of these can be written, or what is there is damaged, the function is compiled again in each process.
    """

    jit: Any = njit  # its annotations know no list of signatures that may be empty
    given = [list(signatures)] if signatures else []

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return jit(*given, cache=True, **options)(function)
        except Exception:  # noqa: BLE001 - no folder for the cache, no room in it, a damaged file in it
            return jit(*given, **options)(function)

    return decorate
