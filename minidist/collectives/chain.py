"""Pipelined chain: each rank passes a piece of the array on while the next piece arrives.

    rank 0 → rank 1 → rank 2 → rank 3       time →
      link 0→1   │ 0 │ 1 │ 2 │ 3 │
      link 1→2       │ 0 │ 1 │ 2 │ 3 │
      link 2→3           │ 0 │ 1 │ 2 │ 3 │

With p ranks, n bytes and k pieces, the last piece leaves the root after k messages and has p - 2
more links to go:

    broadcast    (p - 2 + k)(α + nβ/k)       k* = √((p - 2)nβ/α)

For long arrays the time is about nβ for any p: no broadcast can be faster, since every byte must
pass a port once. For short arrays the chain is slow: p - 1 latencies, one after the other.
Pješivac-Grbović et al., "Performance analysis of MPI collective operations", Cluster Computing 10
2007, section 4.
"""

from __future__ import annotations

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array

PIECE = 1 << 16  # bytes


def piece_count(nbytes: int) -> int:
    """k: how many pieces ``nbytes`` are cut into."""
    return max(1, -(-nbytes // PIECE))


@algorithm("chain")
def broadcast(comm: Comm, array: Array, root: int = 0) -> None:
    """Copy ``array`` of rank ``root`` into ``array`` of every other rank, in place."""
    flat = comm.flat(array)
    place = (comm.rank - root) % comm.size
    before, after = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    k = piece_count(flat.nbytes)
    sends = []
    for number, piece in enumerate(chunks(flat.size, k), start=1):
        with comm.step("piece", number, k):
            if place > 0:
                comm.recv(flat[piece], before)
            if place < comm.size - 1:
                sends.append(comm.isend(flat[piece], after))
    for request in sends:
        request.wait()


@broadcast.costs
def broadcast_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``broadcast`` of ``length`` elements costs: exact for uneven pieces, too.

    The first piece, the longest, goes through all p - 1 links; the others follow it.
    """
    if size == 1:
        return Cost(0, 0, 0.0)
    pieces = [n * itemsize for n in chunk_lengths(length, piece_count(length * itemsize))]
    messages = len(pieces) if (rank - root) % size < size - 1 else 0
    seconds = (size - 1) * machine.message(pieces[0]) + sum(machine.message(n) for n in pieces[1:])
    return Cost(messages, length * itemsize if messages else 0, seconds)
