"""Ring all-reduce: every rank sends the least that is possible, and always to its neighbour.

Cut the array into p chunks, one for each rank. In p - 1 rounds every rank passes one chunk to the
right, and adds the chunk that comes from the left to its own; the sum of chunk c grows as it
travels:

    reduce-scatter, p = 3          chunk 0     chunk 1     chunk 2
      rank 0 holds                   a0          a1          a2
      rank 1                         b0          b1          b2
      rank 2                         c0          c1          c2
    round 1: r sends chunk r         |           |           |
      rank 0                         a0          a1        a2+c2
      rank 1                       b0+a0         b1          b2
      rank 2                         c0        c1+b1         c2
    round 2: r sends chunk r - 1
      rank 0                         a0       a1+c1+b1     a2+c2
      rank 1                       b0+a0        b1       b2+a2+c2
      rank 2                      c0+b0+a0    c1+b1         c2

Now each rank owns one finished chunk, and p - 1 more rounds pass the finished chunks around (the
all-gather). With p ranks and n bytes:

    messages a rank   2(p - 1)
    bytes a rank      2n(p - 1)/p, which no all-reduce can beat
    time              2(p - 1)α + 2n(p - 1)/p·β + n(p - 1)/p·γ

The bytes hardly depend on p: that is why rings train large models. The latency grows with p: that
is why small arrays want a tree. Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for
clusters of workstations", JPDC 69(2) 2009, section 3; Horovod, arXiv 1802.05799.
"""

from __future__ import annotations

from itertools import pairwise

from minidist.array import Array
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine


def chunks(length: int, size: int) -> list[slice]:
    """``length`` elements in ``size`` contiguous parts; the first ones are one longer if uneven."""
    base, longer = divmod(length, size)
    starts = [part * base + min(part, longer) for part in range(size + 1)]
    return [slice(*pair) for pair in pairwise(starts)]


def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place: afterwards every rank holds the same result.

    Any contiguous array, any number of ranks; an array shorter than the ranks makes empty chunks.
    ``op`` is "sum", "product", "max" or "min".
    """
    flat = array.reshape(-1)
    parts = chunks(flat.size, comm.size)
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    incoming = comm.scratch(-(-flat.size // comm.size), flat)

    for round in range(comm.size - 1):
        with comm.step(f"reduce-scatter {round + 1}/{comm.size - 1}"):
            sending = flat[parts[(comm.rank - round) % comm.size]]
            growing = flat[parts[(comm.rank - round - 1) % comm.size]]
            arrived = incoming[: growing.size]
            comm.sendrecv(sending, right, arrived, left)
            comm.combine(op, growing, arrived)

    # Rank r now owns the finished chunk r + 1.
    for round in range(comm.size - 1):
        with comm.step(f"all-gather {round + 1}/{comm.size - 1}"):
            finished = flat[parts[(comm.rank + 1 - round) % comm.size]]
            comm.sendrecv(finished, right, flat[parts[(comm.rank - round) % comm.size]], left)


def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the formula above.

    Exact for uneven chunks too: a rank never sends chunk ``rank + 1`` in the first half and
    ``rank + 2`` in the second, and the longest chunk, always on its way, sets the time.
    """
    if size == 1:
        return Cost(0, 0, 0.0)
    lengths = [part.stop - part.start for part in chunks(length, size)]
    kept = lengths[(rank + 1) % size] + lengths[(rank + 2) % size]
    longest = lengths[0] * itemsize
    seconds = (size - 1) * (2 * machine.message(longest) + machine.reduce(longest))
    reduced = (length - lengths[rank]) * itemsize  # every chunk but the one it sends first
    return Cost(2 * (size - 1), (2 * length - kept) * itemsize, seconds, reduced)
