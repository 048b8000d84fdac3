"""Ring: every rank sends as few bytes as possible, and always to its neighbour.

Cut the array into p chunks, chunk r for rank r. In p - 1 rounds every rank passes one chunk to the
right, and adds the chunk that comes from the left to its own. The sum of a chunk grows from rank to
rank, and reaches its owner last:

    reduce-scatter, p = 3          chunk 0     chunk 1     chunk 2
      rank 0 holds                   a0          a1          a2
      rank 1                         b0          b1          b2
      rank 2                         c0          c1          c2
    round 1: r sends chunk r - 1     |           |           |
      rank 0                         a0        a1+c1         a2
      rank 1                         b0          b1        b2+a2
      rank 2                       c0+b0         c1          c2
    round 2: r sends chunk r - 2
      rank 0                      a0+c0+b0     a1+c1         a2
      rank 1                         b0      b1+a1+c1      b2+a2
      rank 2                       c0+b0         c1      c2+b2+a2

Now rank r owns the finished chunk r, and p - 1 more rounds pass the finished chunks around: the
all-gather. Both together are an all-reduce. With p ranks and n bytes:

    messages a rank   p - 1 each,                 together 2(p - 1)
    bytes a rank      n(p - 1)/p each,            together 2n(p - 1)/p: no all-reduce sends less
    time              (p - 1)(α + (nβ + nγ)/p), and without γ for the all-gather

The bytes hardly depend on p: that is why rings train large models. The latency grows with p: that
is why small arrays want a tree. Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for
clusters of workstations", JPDC 69(2) 2009, section 3; Horovod, arXiv 1802.05799.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array


@algorithm("ring")
def reduce_scatter(
    comm: Comm, array: Array, op: str = "sum", parts: Sequence[slice] | None = None
) -> Array:
    """Reduce over all ranks; rank r gets chunk r of the result, in its place in ``array``.

    Any contiguous array, any number of ranks; an array shorter than the ranks makes empty chunks.
    ``parts`` are the chunks, if they are not to be of equal length. Returns a view of the chunk.
    The rest of ``array`` holds partial results. ``op`` is "sum", "product", "max" or "min".
    """
    flat = comm.flat(array)
    parts = parts or chunks(flat.size, comm.size)
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    incoming = comm.scratch(max(part.stop - part.start for part in parts), flat)

    for round in comm.rounds("reduce-scatter", comm.size - 1):
        sending = flat[parts[(comm.rank - round) % comm.size]]
        growing = flat[parts[(comm.rank - round - 1) % comm.size]]
        arrived = incoming[: growing.size]
        comm.sendrecv(sending, right, arrived, left)
        comm.combine(op, growing, arrived)
    return flat[parts[comm.rank]]


@algorithm("ring")
def all_gather(comm: Comm, array: Array, parts: Sequence[slice] | None = None) -> None:
    """Rank r brings chunk r of ``array``, in its place; afterwards every rank has them all."""
    flat = comm.flat(array)
    parts = parts or chunks(flat.size, comm.size)
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size

    for round in comm.rounds("all-gather", comm.size - 1):
        sending = flat[parts[(comm.rank - round + 1) % comm.size]]
        comm.sendrecv(sending, right, flat[parts[(comm.rank - round) % comm.size]], left)


@algorithm("ring")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place: afterwards every rank holds the same result.

    Between the two, rank r owns chunk r + 1. So each rank begins by sending chunk r, and the chunk
    that begins on the slowest rank is not the one that all others wait for first.
    """
    parts = chunks(array.size, comm.size, first=1)
    reduce_scatter.run(comm, array, op, parts)
    all_gather.run(comm, array, parts)


# Exact for uneven chunks too: the longest chunk moves in every round, and so sets the time.


@reduce_scatter.costs
def reduce_scatter_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``reduce_scatter`` of ``length`` elements costs: a rank never sends its own chunk."""
    lengths = chunk_lengths(length, size)
    longest = lengths[0] * itemsize
    return Cost(
        messages=size - 1,
        nbytes=(length - lengths[rank]) * itemsize,
        seconds=(size - 1) * (machine.message(longest) + machine.reduce(longest)),
        reduced=(length - lengths[(rank - 1) % size]) * itemsize,  # all but what it sends first
    )


@all_gather.costs
def all_gather_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_gather`` to ``length`` elements costs: the right neighbour's is never sent."""
    lengths = chunk_lengths(length, size)
    sent = (length - lengths[(rank + 1) % size]) * itemsize
    return Cost(size - 1, sent, (size - 1) * machine.message(lengths[0] * itemsize))


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the halves, by whose chunk is the rank's.

    The next rank owns, in a plain reduce-scatter, what this one owns here.
    """
    here = (length, itemsize, (rank + 1) % size, size, machine)
    return reduce_scatter_cost(*here) + all_gather_cost(*here)
