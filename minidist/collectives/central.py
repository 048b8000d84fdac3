"""Central algorithms: one rank does it all. The simplest, and the bottleneck to be beaten.

    all_reduce          1   2   3          1   2   3
                         ╲  │  ╱            ↖  ↑  ↗
                          ↘ ↓ ↙              ╲ │ ╱
                            0  (adds)          0

Every message goes through the root's one port, so with p ranks and n bytes

    broadcast     (p - 1)(α + nβ)
    all_reduce    2(p - 1)(α + nβ) + (p - 1)nγ

The root sends (p - 1)n bytes: p times as much data needs p times as long, which is why nobody
trains this way on more than a few ranks.
"""

from __future__ import annotations

from minidist.array import Array
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine


def broadcast(comm: Comm, array: Array, root: int = 0) -> None:
    """Copy ``array`` of rank ``root`` into ``array`` of every other rank, in place."""
    if comm.rank != root:
        comm.recv(array, root)
        return
    for peer in range(comm.size):
        if peer != root:
            with comm.step(f"broadcast to {peer}"):
                comm.send(array, peer)


def all_reduce(comm: Comm, array: Array, op: str = "sum", root: int = 0) -> None:
    """Reduce ``array`` over all ranks, in place: afterwards every rank holds the result.

    The root adds in order of rank, so the result does not depend on who was fastest.
    """
    if comm.rank != root:
        with comm.step("reduce"):
            comm.send(array, root)
    else:
        incoming = comm.scratch(array.size, array).reshape(array.shape)
        for peer in range(comm.size):
            if peer != root:
                with comm.step(f"reduce from {peer}"):
                    comm.recv(incoming, peer)
                    comm.combine(op, array, incoming)
    broadcast(comm, array, root)


def broadcast_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``broadcast`` of ``length`` elements costs: the formula above."""
    nbytes = length * itemsize
    messages = size - 1 if rank == root else 0
    return Cost(messages, messages * nbytes, (size - 1) * machine.message(nbytes))


def all_reduce_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the formula above."""
    nbytes = length * itemsize
    messages = size - 1 if rank == root else 1
    seconds = (size - 1) * (2 * machine.message(nbytes) + machine.reduce(nbytes))
    reduced = (size - 1) * nbytes if rank == root else 0
    return Cost(messages, messages * nbytes, seconds, reduced)
