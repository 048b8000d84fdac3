"""The collectives by the algorithm that one asks for: ``all_reduce(comm, array, algorithm=...)``.

``algorithm`` is a name in the collective's dictionary (``tables.py``), an ``Algorithm`` such as
``ring.all_reduce``, or a function of your own with the same arguments, which all ranks must pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.collectives import auto
from minidist.collectives.algorithm import Choice, cost_of, find
from minidist.collectives.cost import Cost
from minidist.collectives.learn import LIBRARY
from minidist.collectives.shared import cross_memory
from minidist.collectives.tables import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    BROADCAST,
    GATHER,
    REDUCE,
    REDUCE_SCATTER,
    SCATTER,
    by_name,
)
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array

# More names: what not every system allows, what ``auto.py`` chooses, and the MPI library's own.
ANY_ALL_REDUCE = ALL_REDUCE | by_name(cross_memory.all_reduce, auto.all_reduce, LIBRARY)


def all_reduce(comm: Comm, array: Array, op: str = "sum", algorithm: Choice = "auto") -> None:
    """Reduce ``array`` over all ranks, in place. ``op`` is "sum", "product", "max" or "min".

    "auto" takes the fastest for this size and rank count, measured or by formula; "library" is
    the MPI library's own, for comparison.
    """
    find(ANY_ALL_REDUCE, algorithm)(comm, array, op)


def all_reduce_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, algorithm: Choice = "auto"
) -> Cost:
    """What ``all_reduce`` by that algorithm costs ``rank``, and how long it takes.

    Raises UnknownCost for a function without a formula, and for the library's.
    """
    return cost_of(ANY_ALL_REDUCE, algorithm)(length, itemsize, rank, size, machine)


def reduce(
    comm: Comm, array: Array, op: str = "sum", root: int = 0, algorithm: Choice = "binomial"
) -> None:
    """Reduce ``array`` into that of ``root``; those of other ranks may hold partial results."""
    find(REDUCE, algorithm)(comm, array, op, root)


def reduce_scatter(comm: Comm, array: Array, op: str = "sum", algorithm: Choice = "ring") -> Array:
    """Reduce over all ranks; rank r gets chunk r, in its place in ``array``, and a view of it."""
    return find(REDUCE_SCATTER, algorithm)(comm, array, op)


def all_gather(comm: Comm, array: Array, algorithm: Choice = "ring") -> None:
    """Rank r brings chunk r of ``array``, in its place; afterwards every rank has them all."""
    find(ALL_GATHER, algorithm)(comm, array)


def broadcast(comm: Comm, array: Array, root: int = 0, algorithm: Choice = "central") -> None:
    """Copy ``array`` of ``root`` to every rank, in place."""
    find(BROADCAST, algorithm)(comm, array, root)


def gather(comm: Comm, array: Array, root: int = 0, algorithm: Choice = "binomial") -> None:
    """Chunk r of rank r's ``array`` goes to its place in that of ``root``."""
    find(GATHER, algorithm)(comm, array, root)


def scatter(comm: Comm, array: Array, root: int = 0, algorithm: Choice = "binomial") -> Array:
    """Chunk r of the root's ``array`` goes to rank r, to its place; returns a view of it there."""
    return find(SCATTER, algorithm)(comm, array, root)


def all_to_all(
    comm: Comm,
    send: Array | Sequence[Array],
    recv: Array | Sequence[Array],
    algorithm: Choice = "pairwise",
) -> None:
    """``send[r]`` goes to rank r, and ``recv[r]`` comes from it."""
    find(ALL_TO_ALL, algorithm)(comm, send, recv)
