"""The collectives of ``minidist bench collectives``: their algorithms, data and expected results.

The bus bandwidth is the rate of the busiest link if only the necessary bytes are sent: n bytes over
the time, times a factor for each collective, as nccl-tests defines it (PERFORMANCE.md there):

    all_reduce                                             2(p - 1)/p
    reduce_scatter, all_gather, gather, scatter, all_to_all (p - 1)/p
    broadcast, reduce                                       1

n is the whole array: the input of each rank in a reduce-scatter, or its result in an all-gather.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    BROADCAST,
    GATHER,
    REDUCE,
    REDUCE_SCATTER,
    SCATTER,
    Algorithm,
    Cost,
    auto,
    barrier,
    barrier_cost,
    chunks,
    library,
)
from minidist.collectives.shared import cross_memory, symmetric_memory
from minidist.comm.comm import Comm

LIBRARY, SYMMETRIC, AUTO = "library", "symmetric_memory", "auto"
Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Kind:
    """One collective.

    ``run``: its algorithms, functions of a comm and the arrays.
    ``expected(rank, inputs)`` returns a part of the last array, and the expected values there if
    the ranks began with ``inputs``. ``factor(p)`` converts bytes a second to bus bandwidth; 0: no
    bytes. ``one_way``: the root sends or receives only, and this is the limit.
    """

    name: str
    run: dict[str, Callable[..., Any]]
    expected: Callable[[int, list[np.ndarray]], tuple[slice, np.ndarray]]
    factor: Callable[[int], float]
    one_way: bool = False

    @property
    def cost(self) -> dict[str, Callable[..., Cost]]:
        """The formulas of the algorithms that have their own."""
        known = {name: run.cost for name, run in self.run.items() if isinstance(run, Algorithm)}
        return {name: cost for name, cost in known.items() if name != AUTO}

    def arrays(self, comm: Comm, name: str, length: int, dtype: str) -> Arrays:
        """Arrays of this rank, allocated as the algorithm needs it."""
        if name == SYMMETRIC:
            return (symmetric_memory.allocate(comm, length, dtype),)
        if self.name == "barrier":
            return ()
        array = np.zeros(length, dtype)
        if self.name == "all_to_all":
            blocks = array.reshape(comm.size, -1)
            return blocks, np.zeros_like(blocks)
        return (array,)

    def length(self, nbytes: int, itemsize: int, size: int) -> int:
        """Elements for about ``nbytes``: an all-to-all has as many for each rank."""
        length = max(1, nbytes // itemsize)
        return -(-length // size) * size if self.name == "all_to_all" else length

    def check(self, comm: Comm, name: str, length: int, dtype: str, arrays: Arrays) -> None:
        """Check the result, before it is timed; ArithmeticError if it is wrong.

        Each rank begins with different data.
        """
        if not arrays:
            self.run[name](comm)
            return
        arrays[0].reshape(-1)[:] = pattern(comm.rank, length, dtype)
        for received in arrays[1:]:
            received.fill(0)
        chunk = self.run[name](comm, *arrays)
        inputs = [pattern(rank, length, dtype) for rank in range(comm.size)]
        part, expected = self.expected(comm.rank, inputs)
        got = arrays[-1].reshape(-1)[part] if chunk is None else chunk
        if not np.array_equal(got, expected):
            wrong = int(np.flatnonzero(got != expected)[0])
            raise ArithmeticError(
                f"{self.name} by {name} on {comm.size} ranks, {dtype}[{length}]: element {wrong} "
                f"of rank {comm.rank} is {got[wrong]}, expected {expected[wrong]}"
            )


def pattern(rank: int, length: int, dtype: str) -> np.ndarray:
    """Small integers, so that sums are exact in any dtype."""
    return (np.arange(length) % 7 + rank).astype(dtype)


# The expected result by rank: a part of the array, and its values.

ALL, NOTHING = slice(None), slice(0)


def _sum(rank: int, inputs: list[np.ndarray]) -> tuple[slice, np.ndarray]:
    return ALL, np.sum(inputs, axis=0, dtype=inputs[0].dtype)


def _sum_chunk(rank: int, inputs: list[np.ndarray]) -> tuple[slice, np.ndarray]:
    part = chunks(inputs[0].size, len(inputs))[rank]
    return part, _sum(rank, inputs)[1][part]


def _every_chunk(rank: int, inputs: list[np.ndarray]) -> tuple[slice, np.ndarray]:
    parts = chunks(inputs[0].size, len(inputs))
    return ALL, np.concatenate([x[part] for x, part in zip(inputs, parts, strict=True)])


def _at_root(expected: Callable[..., tuple[slice, np.ndarray]]) -> Callable[..., Any]:
    return lambda rank, inputs: expected(rank, inputs) if rank == 0 else (NOTHING, inputs[0][:0])


def _chunk_of_root(rank: int, inputs: list[np.ndarray]) -> tuple[slice, np.ndarray]:
    part = chunks(inputs[0].size, len(inputs))[rank]
    return part, inputs[0][part]


def _transposed(rank: int, inputs: list[np.ndarray]) -> tuple[slice, np.ndarray]:
    return ALL, np.concatenate([x.reshape(len(inputs), -1)[rank] for x in inputs])


def _barrier_cost(length: int, itemsize: int, rank: int, size: int, machine: Any) -> Any:
    return barrier_cost(size, machine)


def _share(size: int) -> float:
    return (size - 1) / size


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "all_reduce",
            {
                LIBRARY: library.all_reduce,
                **ALL_REDUCE,
                cross_memory.all_reduce.name: cross_memory.all_reduce,
                AUTO: auto.all_reduce,
                SYMMETRIC: symmetric_memory.all_reduce,
            },
            _sum,
            lambda p: 2 * _share(p),
        ),
        Kind(
            "reduce_scatter",
            {LIBRARY: library.reduce_scatter, **REDUCE_SCATTER},
            _sum_chunk,
            _share,
        ),
        Kind(
            "all_gather",
            {LIBRARY: library.all_gather, **ALL_GATHER},
            _every_chunk,
            _share,
        ),
        Kind(
            "broadcast",
            {LIBRARY: library.broadcast, **BROADCAST},
            lambda rank, inputs: (ALL, inputs[0]),
            lambda p: 1.0,
            one_way=True,
        ),
        Kind(
            "reduce",
            {LIBRARY: library.reduce, **REDUCE},
            _at_root(_sum),
            lambda p: 1.0,
            one_way=True,
        ),
        Kind(
            "gather",
            {LIBRARY: library.gather, **GATHER},
            _at_root(_every_chunk),
            _share,
            one_way=True,
        ),
        Kind(
            "scatter",
            {LIBRARY: library.scatter, **SCATTER},
            _chunk_of_root,
            _share,
            one_way=True,
        ),
        Kind(
            "all_to_all",
            {LIBRARY: library.all_to_all, **ALL_TO_ALL},
            _transposed,
            _share,
        ),
        Kind(
            "barrier",
            {
                LIBRARY: library.barrier,
                "dissemination": Algorithm("dissemination", barrier, _barrier_cost),
            },
            lambda rank, inputs: (NOTHING, inputs[0][:0]),
            lambda p: 0.0,
        ),
    )
}
