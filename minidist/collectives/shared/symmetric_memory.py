"""Symmetric memory: all-reduce of arrays in memory that all ranks of one machine see.

    array = symmetric_memory.allocate(comm, length, "float32")    on all ranks
    symmetric_memory.all_reduce(comm, array)                      the array, or a slice of it

Shared memory (``shared_memory.py``) copies every array into boxes and out again, because other
ranks cannot see the array. Here they can, so two steps are enough, and only the result is copied:

                             rank 0      rank 1      rank 2
    barrier                  [a b c]     [d e f]     [g h i]
    rank r adds chunk r      [A b c]     [d B f]     [g h C]       A = a + d + g, of all arrays
    and copies it to all     [A B C]     [A B C]     [A B C]
    barrier

Between the barriers only rank r reads and writes chunk r, in all arrays, so ranks need not wait for
each other. A chunk is added in pieces that are still in the cache when they are copied.

    messages a rank   2⌈lg p⌉, no bytes
    time              2⌈lg p⌉α + n(p - 1)/p·γ; the model counts no time for the copies

The idea is that of OpenSHMEM's symmetric heap; NCCL asks for registered buffers, and PyTorch calls
this algorithm a two-shot all-reduce over symmetric memory, for the same reason.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.dissemination import barrier, barrier_cost
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.collectives.shared.shared_memory import check_agreement, kind_of
from minidist.comm.comm import Comm, CommError
from minidist.comm.machine import Machine
from minidist.engine.array import Array, DType, address_of, module_of

PIECE = 1 << 18  # bytes
PAGE = 4096


class Slots(NamedTuple):
    """What one ``allocate`` made on all ranks: by rank, an array and what it is about to reduce."""

    arrays: list[Array]
    heads: list[np.ndarray]


def allocate(comm: Comm, length: int, dtype: DType = "float32", like: Array | None = None) -> Array:
    """A 1-D array of zeros on the host, which the other ranks' ``all_reduce`` can see.

    Every rank must call it, with the same arguments. Kept as long as the communicator. Raises
    CommError where not all ranks are on one machine. ``like`` is an array of the device to allocate
    on, the host if it is None: a GPU's memory cannot be shared.
    """
    kind = np.dtype(dtype)
    xp = np if like is None else module_of(like)
    pages = -(-length * kind.itemsize // PAGE)
    slots = Slots(
        comm.shared(pages * PAGE, xp.empty(0, np.uint8)), comm.shared(3, np.empty(0, np.int64))
    )
    comm.remember("symmetric memory", list[Slots]).append(slots)
    array = slots.arrays[comm.rank].view(kind)[:length]
    array.fill(0)
    return array


@algorithm("symmetric_memory")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array``, or the same slice of it on all ranks, in place.

    Raises CommError for an array that ``allocate`` did not make.
    """
    if comm.size == 1:
        return
    slots, start = find(comm, array)
    heads = slots.heads
    heads[comm.rank][:] = start, array.nbytes, kind_of(array)
    barrier(comm)
    check_agreement(comm, heads, array, "dtype, length and place")
    arrays = [slot[start : start + array.nbytes].view(array.dtype) for slot in slots.arrays]
    mine = arrays.pop(comm.rank)
    part = chunks(array.size, comm.size)[comm.rank]
    step = PIECE // array.itemsize
    for first in range(part.start, part.stop, step):
        piece = slice(first, min(first + step, part.stop))
        for other in arrays:
            comm.combine(op, mine[piece], other[piece])
        for other in arrays:
            other[piece] = mine[piece]
    barrier(comm)


def find(comm: Comm, array: Array) -> tuple[Slots, int]:
    """The memory of all ranks that ``array`` is part of, and at which byte it begins."""
    if array.flags.c_contiguous:
        for slots in comm.remember("symmetric memory", list[Slots]):
            own = slots.arrays[comm.rank]
            start = address_of(array) - address_of(own)
            if type(own) is type(array) and 0 <= start <= own.nbytes - array.nbytes:
                return slots, start
    raise CommError(
        f"rank {comm.rank}: the array is not in symmetric memory: make it by "
        "symmetric_memory.allocate(comm, ...), with this communicator, and take contiguous slices"
    )


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the formula above."""
    if size == 1:
        return Cost(0, 0, 0.0)
    lengths = [n * itemsize for n in chunk_lengths(length, size)]
    adding = Cost(0, 0, (size - 1) * machine.reduce(lengths[0]), (size - 1) * lengths[rank])
    return barrier_cost(size, machine) + adding + barrier_cost(size, machine)
