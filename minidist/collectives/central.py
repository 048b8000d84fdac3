"""Central algorithms: every message goes to or from one rank. The simplest, and the slowest.

    all_reduce          1   2   3          1   2   3
                         ╲  │  ╱            ↖  ↑  ↗
                          ↘ ↓ ↙              ╲ │ ╱
                            0  (adds)          0

Every message goes through the root's one port, so with p ranks and n bytes

    broadcast         (p - 1)(α + nβ)
    reduce            (p - 1)(α + nβ + nγ)
    all_reduce        2(p - 1)(α + nβ) + (p - 1)nγ
    gather, scatter   (p - 1)(α + nβ/p): the root sends or receives each byte once

The root sends (p - 1)n bytes, so the time grows with the number of ranks: nobody trains this way on
more than a few.
"""

from __future__ import annotations

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array


@algorithm("central")
def broadcast(comm: Comm, array: Array, root: int = 0) -> None:
    """Copy ``array`` of rank ``root`` into ``array`` of every other rank, in place."""
    if comm.rank != root:
        with comm.step("broadcast from", root):
            comm.recv(array, root)
        return
    for peer in range(comm.size):
        if peer != root:
            with comm.step("broadcast to", peer):
                comm.send(array, peer)


@algorithm("central")
def reduce(comm: Comm, array: Array, op: str = "sum", root: int = 0) -> None:
    """Reduce ``array`` over all ranks into that of ``root``; the others keep theirs.

    The root adds in order of rank, so the result does not depend on whose message came first.
    """
    if comm.rank != root:
        with comm.step("reduce to", root):
            comm.send(array, root)
        return
    incoming = comm.scratch(array.size, array).reshape(array.shape)
    for peer in range(comm.size):
        if peer != root:
            with comm.step("reduce from", peer):
                comm.recv(incoming, peer)
                comm.combine(op, array, incoming)


@algorithm("central")
def all_reduce(comm: Comm, array: Array, op: str = "sum", root: int = 0) -> None:
    """Reduce ``array`` over all ranks, in place: afterwards every rank holds the result."""
    reduce.run(comm, array, op, root)
    broadcast.run(comm, array, root)


@algorithm("central")
def scatter(comm: Comm, array: Array, root: int = 0) -> Array:
    """Chunk r of the root's ``array`` goes to rank r, to its place in ``array``; returns a view."""
    flat = comm.flat(array)
    parts = chunks(flat.size, comm.size)
    if comm.rank != root:
        with comm.step("scatter from", root):
            comm.recv(flat[parts[comm.rank]], root)
    else:
        for peer in range(comm.size):
            if peer != root:
                with comm.step("scatter to", peer):
                    comm.send(flat[parts[peer]], peer)
    return flat[parts[comm.rank]]


@algorithm("central")
def gather(comm: Comm, array: Array, root: int = 0) -> None:
    """Chunk r of rank r's ``array`` goes to its place in the root's."""
    flat = comm.flat(array)
    parts = chunks(flat.size, comm.size)
    if comm.rank != root:
        with comm.step("gather to", root):
            comm.send(flat[parts[comm.rank]], root)
    else:
        for peer in range(comm.size):
            if peer != root:
                with comm.step("gather from", peer):
                    comm.recv(flat[parts[peer]], peer)


@broadcast.costs
def broadcast_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``broadcast`` of ``length`` elements costs: the formula above."""
    nbytes = length * itemsize
    messages = size - 1 if rank == root else 0
    return Cost(messages, messages * nbytes, (size - 1) * machine.message(nbytes))


@reduce.costs
def reduce_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``reduce`` of ``length`` elements costs: the formula above."""
    nbytes = length * itemsize
    seconds = (size - 1) * (machine.message(nbytes) + machine.reduce(nbytes))
    if rank == root:
        return Cost(0, 0, seconds, (size - 1) * nbytes)
    return Cost(1, nbytes, seconds)


@all_reduce.costs
def all_reduce_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the formula above."""
    here = (length, itemsize, rank, size, machine, root)
    return reduce_cost(*here) + broadcast_cost(*here)


@scatter.costs
def scatter_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``scatter`` of ``length`` elements costs: the root sends all chunks but its own."""
    lengths = chunk_lengths(length, size)
    others = [n * itemsize for peer, n in enumerate(lengths) if peer != root]
    seconds = sum(machine.message(n) for n in others)
    return Cost(len(others), sum(others), seconds) if rank == root else Cost(0, 0, seconds)


@gather.costs
def gather_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``gather`` to ``length`` elements costs: every rank but the root sends its chunk."""
    lengths = chunk_lengths(length, size)
    seconds = scatter_cost(length, itemsize, rank, size, machine, root).seconds
    return Cost(0, 0, seconds) if rank == root else Cost(1, lengths[rank] * itemsize, seconds)
