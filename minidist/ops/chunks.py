"""Work on an array in pieces that fit the processor's cache.

A fused op makes many passes over the same numbers. On a large array each pass would read and write
main memory. On a small piece, only the first and the last pass do; the scratch arrays stay in cache
and are used again. On a GPU it matters more to launch few kernels, so the whole array is one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from minidist.engine.array import Array

CHUNK = 128 * 1024  # bytes of a piece: with its scratch it fits a second-level cache of 1 MB


def chunks(array: Array, width: int = 1, chunk: int = CHUNK) -> Iterator[slice]:
    """Slices of the first axis of ``array``, whose rows have ``width`` elements each."""
    if not isinstance(array, np.ndarray):
        return iter((slice(0, len(array)),) if len(array) else ())
    return iter(_slices(len(array), max(1, chunk // (array.itemsize * max(1, width)))))


@lru_cache(maxsize=256)
def _slices(rows: int, step: int) -> tuple[slice, ...]:
    return tuple(slice(start, min(start + step, rows)) for start in range(0, rows, step))
