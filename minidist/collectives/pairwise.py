"""Pairwise all-to-all: in round k every rank sends to the rank k to the right.

    p = 4      rank 0    rank 1    rank 2    rank 3
      round 1  → 1       → 2       → 3       → 0
      round 2  → 2       → 3       → 0       → 1
      round 3  → 3       → 0       → 1       → 2

Each round is a permutation: every rank sends one message and receives one, so no message waits for
a port, as most would if all ranks began by sending to rank 0. With p ranks and n bytes on each:

    all_to_all    (p - 1)α + n(p - 1)/p·β

Each block is sent once, straight to its receiver: best for all but small blocks.
Thakur, Rabenseifner, Gropp, IJHPCA 19(1) 2005, section 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm, CommError
from minidist.comm.machine import Machine
from minidist.engine.array import Array


@algorithm("pairwise")
def all_to_all(comm: Comm, send: Array | Sequence[Array], recv: Array | Sequence[Array]) -> None:
    """``send[r]`` goes to rank r, and ``recv[r]`` comes from it.

    An array, whose rows are the blocks, or a list of arrays, which may differ in length.
    """
    if len(send) != comm.size or len(recv) != comm.size:
        raise CommError(
            f"all_to_all on {comm.size} ranks needs as many blocks to send and to receive, not "
            f"{len(send)} and {len(recv)}"
        )
    recv[comm.rank][...] = send[comm.rank]
    for distance in comm.rounds("all-to-all", comm.size - 1):
        to, source = (comm.rank + distance) % comm.size, (comm.rank - distance) % comm.size
        comm.sendrecv(send[to], to, recv[source], source)


@all_to_all.costs
def all_to_all_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_to_all`` of ``length`` elements on each rank costs; ``size`` divides them."""
    block = length // size * itemsize
    return Cost(size - 1, (size - 1) * block, (size - 1) * machine.message(block))


def check_blocks(comm: Comm, send: Array, recv: Array) -> None:
    """Raise CommError unless both are arrays of one block a rank, all of one length."""
    shapes = [getattr(blocks, "shape", None) for blocks in (send, recv)]
    if shapes[0] is None or shapes[0] != shapes[1] or shapes[0][:1] != (comm.size,):
        raise CommError(
            f"Bruck's all_to_all on {comm.size} ranks needs two arrays of {comm.size} rows each, "
            f"not shapes {shapes[0]} and {shapes[1]}: blocks of several lengths go pairwise"
        )
