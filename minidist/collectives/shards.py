"""The two halves of a ring all-reduce, for parts that the ranks own: reduce-scatter and all-gather.

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
from minidist.comm.comm import Comm


def reduce_scatter(comm: Comm, array: Array, parts: list[slice], op: str = "sum") -> None:
    """Reduce ``array`` over all ranks; on return ``array[parts[rank]]`` is finished.

    The rest of ``array`` then holds half-finished sums: of no use to anybody.
    """
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    incoming = comm.scratch(max(part.stop - part.start for part in parts), array)
    for round in range(1, comm.size):
        with comm.step(f"reduce-scatter {round}/{comm.size - 1}"):
            sending = array[parts[(comm.rank - round) % comm.size]]
            growing = array[parts[(comm.rank - round - 1) % comm.size]]
            arrived = incoming[: growing.size]
            comm.sendrecv(sending, right, arrived, left)
            comm.combine(op, growing, arrived)


def all_gather(comm: Comm, array: Array, parts: list[slice]) -> None:
    """Fill ``array`` on every rank with the parts of all: rank r provides ``array[parts[r]]``."""
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    for round in range(comm.size - 1):
        with comm.step(f"all-gather {round + 1}/{comm.size - 1}"):
            known = array[parts[(comm.rank - round) % comm.size]]
            new = array[parts[(comm.rank - round - 1) % comm.size]]
            comm.sendrecv(known, right, new, left)
