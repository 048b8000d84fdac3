"""How an array is cut between ranks: chunk r is rank r's, in every collective that has owners."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise


def chunks(length: int, size: int) -> list[slice]:
    """``length`` elements in ``size`` contiguous parts; the first ones are one longer if uneven."""
    return list(_chunks(length, size))


@lru_cache(maxsize=256)
def _chunks(length: int, size: int) -> tuple[slice, ...]:
    """Made once, and not p times for p ranks of the local world."""
    base, longer = divmod(length, size)
    starts = [part * base + min(part, longer) for part in range(size + 1)]
    return tuple(slice(*pair) for pair in pairwise(starts))


def chunk_lengths(length: int, size: int) -> list[int]:
    """The lengths of those parts."""
    base, longer = divmod(length, size)
    return [base + (part < longer) for part in range(size)]


def power_below(size: int) -> int:
    """The largest power of two that is not above ``size``."""
    return 1 << (size.bit_length() - 1)
