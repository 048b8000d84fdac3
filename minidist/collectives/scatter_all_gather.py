"""Broadcast by scatter and all-gather: each rank gets a part, then all exchange their parts.

    p = 4            rank 0     rank 1     rank 2     rank 3
      at first       A B C D
      scatter        A B C D                 C D                  binomial tree: half each time
                     A B C D       B         C D          D
      all-gather     A B C D    A B C D    A B C D    A B C D      ring

A binomial broadcast sends n bytes ⌈lg p⌉ times, one after the other. Here the root sends each byte
about once, and then all ranks send and receive at the same time:

    broadcast    (⌈lg p⌉ + p - 1)α + 2n(p - 1)/p·β

Barnett, Gupta, Payne, Shuler, van de Geijn, Watts, "Interprocessor collective communication
library", SHPCC 1994; Thakur, Rabenseifner, Gropp, IJHPCA 19(1) 2005, section 4.2.
"""

from __future__ import annotations

from minidist.collectives.algorithm import algorithm
from minidist.collectives.binomial import relatives
from minidist.collectives.binomial_gather import subtree
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array


@algorithm("scatter_all_gather")
def broadcast(comm: Comm, array: Array, root: int = 0) -> None:
    """Copy ``array`` of rank ``root`` into ``array`` of every other rank, in place."""
    flat = comm.flat(array)
    size, place = comm.size, (comm.rank - root) % comm.size
    parts = chunks(flat.size, size)  # of the places, counted from the root

    def span(first: int) -> Array:
        return flat[parts[first].start : parts[subtree(first, size) - 1].stop]

    parent, children = relatives(place, size)
    if place > 0:
        with comm.step("scatter, receive"):
            comm.recv(span(place), (parent + root) % size)
    for child in children:
        with comm.step("scatter, send"):
            comm.send(span(child), (child + root) % size)

    left, right = (comm.rank - 1) % size, (comm.rank + 1) % size
    for round in comm.rounds("all-gather", size - 1):
        sending = flat[parts[(place - round + 1) % size]]
        comm.sendrecv(sending, right, flat[parts[(place - round) % size]], left)


@broadcast.costs
def broadcast_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``broadcast`` of ``length`` elements costs: exact for uneven chunks, too.

    The root is the last to end the scatter, and has the longest chunk, which then goes around.
    """
    lengths = [n * itemsize for n in chunk_lengths(length, size)]

    def scattered(place: int) -> list[int]:
        _, children = relatives(place, size)
        return [sum(lengths[child : subtree(child, size)]) for child in children]

    place = (rank - root) % size
    mine = scattered(place)
    gathered = sum(lengths) - lengths[(place + 1) % size]
    seconds = sum(machine.message(n) for n in scattered(0))
    return Cost(
        len(mine) + size - 1,
        sum(mine) + (gathered if size > 1 else 0),
        seconds + (size - 1) * machine.message(lengths[0]),
    )
