"""The two halves of a ring all-reduce, for parts of any lengths: reduce-scatter and all-gather.

    reduce_scatter   every rank holds everything     →  rank r holds the sum of part r
    all_gather       rank r holds part r             →  every rank holds everything

``parts`` cuts the array into one slice a rank, of any lengths, empty ones included; part r belongs
to rank r. Each half takes p - 1 rounds, in which a rank passes one part to the right:

    messages a rank   p - 1
    bytes a rank      n - (the one part it never sends), about n(p - 1)/p
    time              (p - 1)(α + n/p·β), and n(p - 1)/p·γ more for reduce_scatter

What ZeRO and fully sharded data parallelism are made of; sources as in ring.py.
"""

from __future__ import annotations

from minidist.array import Array
from minidist.collectives import ring
from minidist.comm.comm import Comm


def reduce_scatter(comm: Comm, array: Array, parts: list[slice], op: str = "sum") -> None:
    """Reduce ``array`` over all ranks; on return ``array[parts[rank]]`` is finished.

    The rest of ``array`` then holds half-finished sums: of no use to anybody.
    """
    ring.reduce_scatter(comm, array, op, parts)


def all_gather(comm: Comm, array: Array, parts: list[slice]) -> None:
    """Fill ``array`` on every rank with the parts of all: rank r provides ``array[parts[r]]``."""
    ring.all_gather(comm, array, parts)
