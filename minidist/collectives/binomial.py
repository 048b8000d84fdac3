"""Binomial tree: each rank that has the array sends it to one that has not, so they double a round.

    broadcast, p = 8, root 0              the tree

      round 1   0 → 4                            0
      round 2   0 → 2   4 → 6                 ╱  │  ╲
      round 3   0 → 1   2 → 3               4    2    1
                4 → 5   6 → 7             ╱ │    │
                                         6  5    3
                                         │
                                         7

Reduce is the same tree in reverse, adding on the way up. Ranks are counted from the root, and p
need not be a power of two: messages to ranks that do not exist are left out. With p ranks and n
bytes

    broadcast     ⌈lg p⌉(α + nβ)
    reduce        ⌈lg p⌉(α + nβ + nγ)
    all_reduce    2⌈lg p⌉(α + nβ) + ⌈lg p⌉nγ     reduce to the root, then broadcast

The latency is logarithmic, since all ranks that have the array send it. But the whole array is sent
⌈lg p⌉ times one after the other, which makes it slow for large arrays. Thakur, Rabenseifner,
Gropp, IJHPCA 19(1) 2005, sections 4.2 and 4.5.
"""

from __future__ import annotations

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array


def relatives(place: int, size: int) -> tuple[int, list[int]]:
    """Parent and children of ``place``, counted from the root; the largest subtree comes first.

    The parent is the place without its lowest bit; a child adds a bit below that.
    """
    lowest = place & -place or 1 << (size - 1).bit_length()
    bits = [1 << bit for bit in reversed(range(lowest.bit_length() - 1))]
    return place & (place - 1), [place + bit for bit in bits if place + bit < size]


@algorithm("binomial")
def broadcast(comm: Comm, array: Array, root: int = 0) -> None:
    """Copy ``array`` of rank ``root`` into ``array`` of every other rank, in place."""
    place = (comm.rank - root) % comm.size
    parent, children = relatives(place, comm.size)
    if place > 0:
        with comm.step("broadcast, receive"):
            comm.recv(array, (parent + root) % comm.size)
    for child in children:
        with comm.step("broadcast, send"):
            comm.send(array, (child + root) % comm.size)


@algorithm("binomial")
def reduce(comm: Comm, array: Array, op: str = "sum", root: int = 0) -> None:
    """Reduce ``array`` over all ranks into that of ``root``; the others' holds partial sums."""
    place = (comm.rank - root) % comm.size
    parent, children = relatives(place, comm.size)
    incoming = comm.scratch(array.size, array).reshape(array.shape)
    for child in reversed(children):  # the smallest subtree is ready first
        with comm.step("reduce, receive"):
            comm.recv(incoming, (child + root) % comm.size)
            comm.combine(op, array, incoming)
    if place > 0:
        with comm.step("reduce, send"):
            comm.send(array, (parent + root) % comm.size)


@algorithm("binomial")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place: afterwards every rank holds the same result."""
    reduce.run(comm, array, op)
    broadcast.run(comm, array)


@broadcast.costs
def broadcast_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``broadcast`` of ``length`` elements costs: a message to each child."""
    nbytes = length * itemsize
    _, children = relatives((rank - root) % size, size)
    rounds = (size - 1).bit_length()
    return Cost(len(children), len(children) * nbytes, rounds * machine.message(nbytes))


@reduce.costs
def reduce_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``reduce`` of ``length`` elements costs: a message to the parent."""
    nbytes = length * itemsize
    _, children = relatives((rank - root) % size, size)
    messages = 0 if rank == root else 1
    rounds = (size - 1).bit_length()
    seconds = rounds * (machine.message(nbytes) + machine.reduce(nbytes))
    return Cost(messages, messages * nbytes, seconds, len(children) * nbytes)


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: both."""
    here = (length, itemsize, rank, size, machine)
    return reduce_cost(*here) + broadcast_cost(*here)
