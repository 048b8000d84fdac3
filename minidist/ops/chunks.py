"""Work on an array in pieces that fit the processor's cache.

A fused op makes many passes over the same numbers. Over a large array each pass would read and
write main memory; over a piece of it, only the first and last do, and the scratch arrays between
stay in cache and are used again. A GPU has no such cache and wants few launches: there the one
piece is the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from minidist.engine.array import Array

CHUNK = 128 * 1024  # bytes of a piece: with its scratch it fits a second-level cache of 1 MB


def chunks(array: Array, width: int = 1, chunk: int = CHUNK) -> Iterator[slice]:
    """Slices of the first axis of ``array``, whose rows hold ``width`` elements each."""
    if not isinstance(array, np.ndarray):
        return iter((slice(0, len(array)),) if len(array) else ())
    return iter(_slices(len(array), max(1, chunk // (array.itemsize * max(1, width)))))


@lru_cache(maxsize=256)
def _slices(rows: int, step: int) -> tuple[slice, ...]:
    return tuple(slice(start, min(start + step, rows)) for start in range(0, rows, step))
