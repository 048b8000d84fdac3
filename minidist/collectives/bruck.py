"""Bruck's algorithms: ⌈lg p⌉ rounds for any number of ranks.

All-gather: every rank lists the chunks in the order rank, rank + 1, ... . In round k it has the
first 2ᵏ of its list, sends them to rank - 2ᵏ, and gets the next 2ᵏ from rank + 2ᵏ:

    p = 3      rank 0     rank 1     rank 2
      has      0          1          2
      round 1  0 1        1 2        2 0
      round 2  0 1 2      1 2 0      2 0 1       one chunk is enough; then sort the list

All-to-all: block i of the list must go i ranks to the right. Write i in binary: in round k all
blocks whose bit k is set move 2ᵏ to the right, together in one message.

    all_gather    ⌈lg p⌉α + n(p - 1)/p·β        n bytes in the end
    all_to_all    ⌈lg p⌉α + about (n/2)⌈lg p⌉β   n bytes on each rank: each is sent ⌈lg p⌉/2 times

Both copy the data once or twice more than other algorithms, so they suit small arrays. Bruck, Ho,
Kipnis, Upfal, Weathersby, "Efficient algorithms for all-to-all communications in multiport
message-passing systems", IEEE TPDS 8(11) 1997.
"""

from __future__ import annotations

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.pairwise import check_blocks
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array


@algorithm("bruck")
def all_gather(comm: Comm, array: Array) -> None:
    """Rank r brings chunk r of ``array``, in its place; afterwards every rank has them all."""
    flat = comm.flat(array)
    size, rank = comm.size, comm.rank
    parts = chunks(flat.size, size)
    order = [
        (rank + place) % size for place in range(size)
    ]  # by place in this rank's list: whose chunk
    ends = [0]
    for owner in order:
        ends.append(ends[-1] + parts[owner].stop - parts[owner].start)
    listed = comm.scratch(flat.size, flat)  # the chunks in that order
    listed[: ends[1]] = flat[parts[rank]]

    distance = 1
    for _ in comm.rounds("all-gather", (size - 1).bit_length()):
        count = min(distance, size - distance)
        sending, arriving = listed[: ends[count]], listed[ends[distance] : ends[distance + count]]
        comm.sendrecv(sending, (rank - distance) % size, arriving, (rank + distance) % size)
        distance *= 2
    for place, owner in enumerate(order):
        flat[parts[owner]] = listed[ends[place] : ends[place + 1]]


@algorithm("bruck")
def all_to_all(comm: Comm, send: Array, recv: Array) -> None:
    """``send[r]`` goes to rank r, and ``recv[r]`` comes from it; rows of equal length."""
    check_blocks(comm, send, recv)
    size, rank, width = comm.size, comm.rank, send[0].size
    blocks, outgoing = comm.scratch(2 * size * width, send).reshape(2, size, width)
    for place in range(size):
        blocks[place] = send[(rank + place) % size].reshape(-1)
    distance = 1
    for _ in comm.rounds("all-to-all", (size - 1).bit_length()):
        moving = [place for place in range(size) if place & distance]
        packed, incoming = outgoing[: len(moving)], recv[: len(moving)]
        for row, place in enumerate(moving):  # one by one: blocks[moving] would be a new array
            packed[row] = blocks[place]
        comm.sendrecv(packed, (rank + distance) % size, incoming, (rank - distance) % size)
        for row, place in enumerate(moving):
            blocks[place] = incoming[row].reshape(-1)
        distance *= 2
    for place in range(size):
        recv[(rank - place) % size] = blocks[place].reshape(recv[0].shape)


@all_gather.costs
def all_gather_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_gather`` to ``length`` elements costs: rank 0 always sends the most."""
    lengths = chunk_lengths(length, size)
    cost = Cost(0, 0, 0.0)
    distance = 1
    while distance < size:
        count = min(distance, size - distance)
        sent = sum(lengths[(rank + place) % size] for place in range(count))
        cost += Cost(1, sent * itemsize, machine.message(sum(lengths[:count]) * itemsize))
        distance *= 2
    return cost


@all_to_all.costs
def all_to_all_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_to_all`` of ``length`` elements on each rank costs; ``size`` divides them."""
    cost = Cost(0, 0, 0.0)
    distance = 1
    while distance < size:
        moving = sum(1 for place in range(size) if place & distance)
        nbytes = moving * (length // size) * itemsize
        cost += Cost(1, nbytes, machine.message(nbytes))
        distance *= 2
    return cost
