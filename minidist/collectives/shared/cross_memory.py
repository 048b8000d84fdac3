"""Cross memory: all-reduce of ordinary arrays, which the kernel copies from process to process.

Rank r adds chunk r of all arrays, and writes the sum to all arrays, as in ``symmetric_memory.py``.
Here other ranks do not see the arrays. But the kernel lets a process read and write the memory of
another one (``Comm.cross_memory``), and that one need not take part:

                                        rank 0      rank 1      rank 2
    barrier                             [a b c]     [d e f]     [g h i]
    rank r reads chunk r of all others,
    adds it to its own                  [A b c]     [d B f]     [g h C]       A = a + d + g
    and writes the sum to all others    [A B C]     [A B C]     [A B C]
    barrier

A rank goes through its chunk in pieces: a piece is read, added and written while it is in the
cache of this rank's core. Compare what crosses from core to core, for two ranks and n bytes:

    this file             n/2 read, n/2 written                                      by each rank
    ``shared_memory.py``  n/2 each into inboxes, from inboxes, into outboxes, from outboxes

A ring's long messages are copied by the kernel, too, but each begins with a handshake of both
ranks, and a chunk has left the cache when it is sent on.

    messages a rank   2⌈lg p⌉, no bytes
    time              2⌈lg p⌉α + n(p - 1)/p·γ; the model counts no time for the copies

Chakraborty, Subramoni, Panda, "Contention-aware kernel-assisted MPI collectives for multi-/
many-core systems", IEEE Cluster 2017. Linux calls it cross-memory attach.
"""

from __future__ import annotations

import numpy as np

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.dissemination import barrier
from minidist.collectives.partition import chunks
from minidist.collectives.shared import symmetric_memory
from minidist.collectives.shared.shared_memory import LINE, check_agreement, kind_of, shift_to
from minidist.comm.comm import Comm
from minidist.comm.cross_memory import CrossMemory
from minidist.comm.errors import CommError, NoSharedMemory
from minidist.comm.machine import Machine
from minidist.engine.array import Array, module_of, to_host

PIECE = 1 << 18  # bytes: a piece here and what arrives for it fit in a core's own cache


@algorithm("cross_memory")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place; each chunk is added by one rank, for all.

    Raises NoSharedMemory, on every rank, where the ranks cannot reach each other's memory, and
    CommError for an array that is read-only.
    """
    if comm.size == 1:
        return
    flat = comm.flat(array)
    if not getattr(flat.flags, "writeable", True):  # the kernel of another rank would not notice
        raise CommError(f"rank {comm.rank}: all_reduce of an array that is read-only: pass a copy")
    host = to_host(flat)  # itself, unless it is on a GPU
    memory, heads = reached(comm)
    heads[comm.rank][:] = flat.nbytes, kind_of(flat)
    memory.expose(host)
    barrier(comm)
    check_agreement(comm, heads, flat, "dtype and length")
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    chunk = chunks(host.size, comm.size)[comm.rank]
    step = PIECE // host.itemsize
    arriving = work_array(comm, min(step, chunk.stop - chunk.start), host[chunk])
    for first in range(chunk.start, chunk.stop, step):
        piece = host[first : min(first + step, chunk.stop)]
        arrived = arriving[: piece.size]
        for rank in others:
            memory.read(rank, first, arrived)
            comm.combine(op, piece, arrived)
        for rank in others:
            memory.write(rank, first, piece)
    barrier(comm)
    if host is not flat:
        flat[...] = module_of(flat).asarray(host)


def work_array(comm: Comm, length: int, like: Array) -> Array:
    """One that begins where ``like`` does in a cache line: copying and adding are then faster."""
    memory = comm.scratch(length + LINE // like.itemsize, like)
    shift = shift_to(like, memory) // like.itemsize
    return memory[shift : shift + length]


def reached(comm: Comm) -> tuple[CrossMemory, list[np.ndarray]]:
    """The other ranks' memory, and by rank what it is about to reduce; made at the first call."""
    return comm.remember(
        "cross memory", lambda: (comm.cross_memory(), comm.shared(2, np.empty(0, np.int64)))
    )


def possible(comm: Comm) -> bool:
    """Whether these ranks reach each other's memory; every rank must call it."""
    try:
        return comm.size == 1 or bool(reached(comm))
    except NoSharedMemory:  # raised by every rank
        return False


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: what symmetric memory costs."""
    return symmetric_memory.all_reduce_cost(length, itemsize, rank, size, machine)
