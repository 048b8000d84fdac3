"""Binomial scatter and gather: several ranks' chunks in one message, along a binomial tree.

    scatter, p = 8, root 0: whose chunks are in each message

      round 1   0 → 4: 4 5 6 7
      round 2   0 → 2: 2 3       4 → 6: 6 7
      round 3   0 → 1: 1         2 → 3: 3       4 → 5: 5       6 → 7: 7

Gather is the same tree in reverse. A rank's place is its number counted from the root, and p need
not be a power of two. A bundle is the chunks in one message, in order of places. With p ranks and
n bytes in all

    scatter, gather    ⌈lg p⌉α + n(p - 1)/p·β

The root sends or receives every chunk but its own once, as in ``central``, but in ⌈lg p⌉ messages
instead of p - 1. In return a chunk is sent about ⌈lg p⌉/2 times, through ranks that do not use it.
Thakur, Rabenseifner, Gropp, IJHPCA 19(1) 2005, section 4.2.
"""

from __future__ import annotations

from itertools import accumulate

from minidist.collectives.algorithm import algorithm
from minidist.collectives.binomial import relatives
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunk_lengths, chunks
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array


def subtree(place: int, size: int) -> int:
    """The place after the last one in the binomial subtree of ``place``."""
    lowest = place & -place or size
    return min(place + lowest, size)


def bundle_ends(length: int, size: int, root: int) -> list[int]:
    """Where each place's chunk ends, if all stand one after the other; begins with 0."""
    lengths = chunk_lengths(length, size)
    return [0, *accumulate(lengths[root:] + lengths[:root])]


@algorithm("binomial")
def scatter(comm: Comm, array: Array, root: int = 0) -> Array:
    """Chunk r of the root's ``array`` goes to rank r, to its place in ``array``; returns a view."""
    flat, size = comm.flat(array), comm.size
    place = (comm.rank - root) % size
    parts, ends = chunks(flat.size, size, root), bundle_ends(flat.size, size, root)
    first = ends[place]
    bundle = comm.scratch(ends[subtree(place, size)] - first, flat)  # of this rank's subtree
    parent, children = relatives(place, size)
    if place == 0:
        for part, end in zip(parts, ends[1:], strict=True):
            bundle[end - (part.stop - part.start) : end] = flat[part]
    else:
        with comm.step("scatter, receive"):
            comm.recv(bundle, (parent + root) % size)
    for child in children:
        with comm.step("scatter, send"):
            theirs = bundle[ends[child] - first : ends[subtree(child, size)] - first]
            comm.send(theirs, (child + root) % size)
    mine = flat[parts[place]]
    mine[...] = bundle[: mine.size]
    return mine


@algorithm("binomial")
def gather(comm: Comm, array: Array, root: int = 0) -> None:
    """Chunk r of rank r's ``array`` goes to its place in the root's."""
    flat, size = comm.flat(array), comm.size
    place = (comm.rank - root) % size
    parts, ends = chunks(flat.size, size, root), bundle_ends(flat.size, size, root)
    first = ends[place]
    bundle = comm.scratch(ends[subtree(place, size)] - first, flat)  # of this rank's subtree
    mine = flat[parts[place]]
    bundle[: mine.size] = mine
    parent, children = relatives(place, size)
    for child in reversed(children):  # the smallest subtree is ready first
        with comm.step("gather, receive"):
            theirs = bundle[ends[child] - first : ends[subtree(child, size)] - first]
            comm.recv(theirs, (child + root) % size)
    if place > 0:
        with comm.step("gather, send"):
            comm.send(bundle, (parent + root) % size)
    else:
        for part, end in zip(parts, ends[1:], strict=True):
            flat[part] = bundle[end - (part.stop - part.start) : end]


# Exact for uneven chunks and any p, because the tree is followed: both decide which rank is last.


@scatter.costs
def scatter_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``scatter`` of ``length`` elements costs: a bundle to each child."""
    ends = bundle_ends(length, size, root)

    def nbytes(place: int) -> int:
        return (ends[subtree(place, size)] - ends[place]) * itemsize

    def last(place: int, now: float) -> float:
        """When the last of this subtree has its chunk, if ``place`` has the bundle at ``now``."""
        done = now
        for child in relatives(place, size)[1]:
            now += machine.message(nbytes(child))
            done = max(done, last(child, now))
        return done

    sent = [nbytes(child) for child in relatives((rank - root) % size, size)[1]]
    return Cost(len(sent), sum(sent), last(0, 0.0))


@gather.costs
def gather_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, root: int = 0
) -> Cost:
    """What ``gather`` to ``length`` elements costs: the own bundle to the parent."""
    ends = bundle_ends(length, size, root)

    def nbytes(place: int) -> int:
        return (ends[subtree(place, size)] - ends[place]) * itemsize

    def ready(place: int) -> float:
        """When ``place`` has the bundle of its subtree."""
        now = 0.0
        for child in reversed(relatives(place, size)[1]):
            now = max(now, ready(child)) + machine.message(nbytes(child))
        return now

    place = (rank - root) % size
    return Cost(1, nbytes(place), ready(0)) if place else Cost(0, 0, ready(0))
