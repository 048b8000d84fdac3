"""What some exercises give an answer to build on: collectives over the answer's own ``comm``.

They are written here once more, over send and receive, so that their messages are counted as the
answer's, and so that minidist's own can stay out of reach.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Calls:
    """Collectives that remember how often they were called, and with how many numbers."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []

    def all_reduce(self, comm: Any, array: np.ndarray) -> None:
        """Replace an array of any shape by the sum over all ranks, in place. A ring."""
        self.log.append(("all_reduce", array.size))
        flat = array.reshape(-1)  # a copy, if the array is not in one piece
        parts = np.array_split(flat, comm.size)
        _scatter(comm, parts)
        _gather(comm, parts, 1)
        if not np.shares_memory(flat, array):
            array[...] = flat.reshape(array.shape)

    def reduce_scatter(self, comm: Any, array: np.ndarray) -> np.ndarray:
        """The sum over all ranks of this rank's part of the array; ``array`` is used up."""
        self.log.append(("reduce_scatter", array.size))
        parts = np.array_split(array, comm.size)
        shifted = parts[-1:] + parts[:-1]  # so that rank r ends with part r
        _scatter(comm, shifted)
        return parts[comm.rank].copy()

    def all_gather(self, comm: Any, array: np.ndarray) -> None:
        """Each rank brings its part of the array, in place; afterwards all have all parts."""
        self.log.append(("all_gather", array.size))
        parts = np.array_split(array, comm.size)
        _gather(comm, parts, 0)


def _scatter(comm: Any, parts: list[np.ndarray]) -> None:
    """Afterwards rank r has the sum of ``parts[r + 1]``."""
    p, rank = comm.size, comm.rank
    incoming = np.empty(max(part.size for part in parts))
    for round in range(p - 1):
        growing = parts[(rank - round - 1) % p]
        arrived = incoming[: growing.size]
        comm.sendrecv(parts[(rank - round) % p], (rank + 1) % p, arrived, (rank - 1) % p)
        growing += arrived


def _gather(comm: Any, parts: list[np.ndarray], first: int) -> None:
    """Pass around what rank r has in ``parts[r + first]``."""
    p, rank = comm.size, comm.rank
    for round in range(p - 1):
        comm.sendrecv(
            parts[(rank + first - round) % p],
            (rank + 1) % p,
            parts[(rank + first - round - 1) % p],
            (rank - 1) % p,
        )
