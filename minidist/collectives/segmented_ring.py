"""Segmented ring: a ring in pieces, so that one is added while the next one is on its way.

In a plain ring the links are idle while a chunk is added. Cut every chunk into k segments, and send
a segment on as soon as it is added, while the next is still arriving:

    link    │ s0 │ s1 │ s2 │ s3 │ s0' │ s1' │ ...     never idle
    adding       │s0│ │s1│ │s2│ │s3│                  at the same time

What arrives in one round is what is sent in the next, so the whole algorithm is one stream of
2(p - 1)k segments: each that arrives is added (first half) or kept (second half), and sent on.
With n bytes, segments of n/(pk), and additions that take no longer than messages:

    messages a rank   2(p - 1)k
    bytes a rank      2n(p - 1)/p, as the ring
    time              2(p - 1)kα + 2n(p - 1)/p·β,  from k = 2 on: no γ

More segments cost more latency, so a chunk is cut only where it is longer than ``SEGMENT``: short
arrays go as in the plain ring. Segments are rarely all of one length, so some wait for others:
``all_reduce_seconds`` follows each of them, and its time is exact. Open MPI,
"ompi_coll_base_allreduce_intra_ring_segmented"; Patarasuk, Yuan, JPDC 69(2) 2009, section 3.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from minidist.collectives.algorithm import algorithm
from minidist.collectives.arrivals import arrivals
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.comm.comm import Comm, Request, Step
from minidist.comm.machine import Machine
from minidist.engine.array import Array

SEGMENT = 1 << 18  # bytes


def segment_count(length: int, itemsize: int, size: int) -> int:
    """k: how many segments a chunk is cut into, the same for all ranks."""
    longest = -(-length // size) * itemsize
    return max(1, -(-longest // SEGMENT))


@algorithm("segmented_ring")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place: afterwards every rank holds the same result."""
    if comm.size == 1:
        return
    flat = comm.flat(array)
    rounds = comm.size - 1
    k = segment_count(flat.size, flat.itemsize, comm.size)
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    places = [
        [flat[chunk][part] for part in chunks(chunk.stop - chunk.start, k)]
        for chunk in chunks(flat.size, comm.size)
    ]
    longest = places[0][0].size
    buffers = comm.scratch(2 * longest, flat).reshape(2, longest)  # one arrives, one is added

    def sent(number: int) -> Array:
        """The segment that this rank sends as its ``number``-th."""
        return places[(comm.rank - 1 - number // k) % comm.size][number % k]

    def received(number: int) -> Array:
        """The segment that this rank receives as its ``number``-th."""
        return places[(comm.rank - 2 - number // k) % comm.size][number % k]

    sends: list[Request] = [comm.isend(sent(number), right) for number in range(k)]

    def receive(number: int) -> Request:
        place = received(number)
        if number < rounds * k:
            return comm.irecv(buffers[number % 2][: place.size], left)
        sends[number - rounds * k].wait()  # from the memory that this one goes to
        return comm.irecv(place, left)

    def step(number: int) -> Step:
        name = "reduce-scatter" if number < rounds * k else "all-gather"
        return comm.step(name, number // k % rounds + 1, rounds)

    for number in arrivals(2 * rounds * k, receive, step):
        with step(number):
            if number < rounds * k:
                place = received(number)
                comm.combine(op, place, buffers[number % 2][: place.size])
            if number + k < 2 * rounds * k:
                sends.append(comm.isend(sent(number + k), right))
    for request in sends[rounds * k :]:
        request.wait()


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs."""
    if size == 1:
        return Cost(0, 0, 0.0)
    k, rounds = segment_count(length, itemsize, size), size - 1
    lengths = chunk_lengths(length, size)
    kept = lengths[rank] + lengths[(rank + 1) % size]
    return Cost(
        messages=2 * rounds * k,
        nbytes=(2 * length - kept) * itemsize,
        seconds=all_reduce_seconds(length, itemsize, size, machine),
        reduced=(length - lengths[(rank - 1) % size]) * itemsize,
    )


@lru_cache(maxsize=1024)
def all_reduce_seconds(length: int, itemsize: int, size: int, machine: Machine) -> float:
    """When the last rank is done, exactly: the stream above with a clock for every rank.

    A message begins when it is ready at the sender, its receive is posted at the receiver, and the
    message before it is through. All arrays are by rank.
    """
    k, rounds = segment_count(length, itemsize, size), size - 1
    ranks = np.arange(size)
    nbytes = np.array([chunk_lengths(n, k) for n in chunk_lengths(length, size)]) * itemsize
    now, posted, end = np.zeros((3, size))  # posted: the receive of the next message
    ready = [now] * k  # when each message can be sent, as far as known
    for number in range(2 * rounds * k):
        moving = nbytes[(ranks - 1 - number // k) % size, number % k]  # by sender
        end = np.maximum(np.maximum(ready[number], np.roll(posted, -1)), end)
        end = end + machine.message(moving)
        posted = now
        now = np.maximum(now, np.roll(end, 1))
        if number < rounds * k:
            now = now + machine.reduce(np.roll(moving, 1))
        ready.append(now)
    return float(now.max())
