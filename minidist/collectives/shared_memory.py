"""Shared memory: ranks of one machine need no messages to see each other's data.

    1  every rank copies its array into its slot        slot 0   slot 1   slot 2
       barrier                                          ┌──────┐ ┌──────┐ ┌──────┐
    2  rank r adds chunk r of all slots                 │ 0 1 2│ │ 0 1 2│ │ 0 1 2│
       barrier                                          └──────┘ └──────┘ └──────┘
    3  every rank copies the result out of slot 0         ↑ rank r adds column r into slot 0
       barrier: before anyone writes its slot again

A rank reads n(p - 1)/p and copies 2n; nothing waits but the three barriers, of empty messages:

    messages a rank   3⌈lg p⌉, no bytes
    time              3⌈lg p⌉α + n(p - 1)/p·γ, and the copies, for which the model has no price

Graham, Shipman, "MPI support for multi-core architectures: optimized shared memory collectives",
EuroPVM/MPI 2008. MPI-3 calls such memory a window (Win_allocate_shared).
"""

from __future__ import annotations

import numpy as np

from minidist.array import Array, module_of, to_host
from minidist.collectives.barrier import barrier, barrier_cost
from minidist.collectives.chunks import chunk_lengths, chunks
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm, CommError
from minidist.comm.machine import Machine

HEAD = 16  # bytes: length and dtype of what a slot holds


def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place, in order of rank.

    Raises CommError where not all ranks are on one machine.
    """
    if comm.size == 1:
        return
    flat = array.reshape(-1)
    # One window for all dtypes. Its head says what is in it, because messages that would notice
    # two ranks that disagree are not sent.
    memory = comm.shared(HEAD + flat.nbytes, np.empty(0, np.uint8))
    heads = [slot[:HEAD].view(np.int64) for slot in memory]
    heads[comm.rank][:] = flat.nbytes, flat.dtype.num
    slots = [slot[HEAD:].view(flat.dtype) for slot in memory]
    slots[comm.rank][...] = to_host(flat)
    barrier(comm)
    if any(head.tolist() != heads[comm.rank].tolist() for head in heads):
        raise CommError(
            f"rank {comm.rank} reduces {flat.dtype}[{flat.size}], and another rank something "
            "else: all must agree on dtype and length"
        )
    part = chunks(flat.size, comm.size)[comm.rank]
    for slot in slots[1:]:
        comm.combine(op, slots[0][part], slot[part])
    barrier(comm)
    flat[...] = module_of(flat).asarray(slots[0])
    barrier(comm)


def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the formula above."""
    if size == 1:
        return Cost(0, 0, 0.0)
    lengths = [n * itemsize for n in chunk_lengths(length, size)]
    adding = Cost(0, 0, (size - 1) * machine.reduce(lengths[0]), (size - 1) * lengths[rank])
    waiting = barrier_cost(size, machine)
    return waiting + adding + waiting + waiting
