"""How an array is cut between ranks: chunk r is rank r's, in every collective that has owners."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise


@lru_cache(maxsize=256)  # made once, and not p times for p ranks of the local world
def chunks(length: int, size: int, first: int = 0) -> tuple[slice, ...]:
    """``length`` elements in ``size`` contiguous parts; the first ones are one longer if uneven.

    The parts are listed from part ``first`` on: 1 means 1, 2, ..., 0.
    """
    base, longer = divmod(length, size)
    starts = [part * base + min(part, longer) for part in range(size + 1)]
    parts = [slice(*pair) for pair in pairwise(starts)]
    return (*parts[first:], *parts[:first])


def chunk_lengths(length: int, size: int) -> list[int]:
    """The lengths of those parts."""
    base, longer = divmod(length, size)
    return [base + (part < longer) for part in range(size)]


def power_below(size: int) -> int:
    """The largest power of two that is not above ``size``."""
    return 1 << (size.bit_length() - 1)
