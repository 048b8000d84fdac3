"""Collectives: one algorithm a file, written over send and receive alone, each with its cost.

The dictionaries say what there is, by name. ``all_reduce(comm, array, algorithm=...)`` looks an
algorithm up; a method that wants one in particular imports its file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minidist.collectives import (
    auto,
    binomial,
    binomial_gather,
    bruck,
    central,
    chain,
    double_tree,
    halving_doubling,
    hierarchical,
    library,
    pairwise,
    recursive_doubling,
    ring,
    scatter_all_gather,
    segmented_ring,
    shared_memory,
)
from minidist.collectives.barrier import barrier, barrier_cost
from minidist.collectives.chunks import chunks
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array

__all__ = [
    "ALL_GATHER",
    "ALL_GATHER_COST",
    "ALL_REDUCE",
    "ALL_REDUCE_COST",
    "ALL_TO_ALL",
    "ALL_TO_ALL_COST",
    "BROADCAST",
    "BROADCAST_COST",
    "GATHER",
    "GATHER_COST",
    "REDUCE",
    "REDUCE_COST",
    "REDUCE_SCATTER",
    "REDUCE_SCATTER_COST",
    "SCATTER",
    "SCATTER_COST",
    "Cost",
    "all_gather",
    "all_reduce",
    "all_reduce_cost",
    "all_to_all",
    "auto",
    "barrier",
    "barrier_cost",
    "broadcast",
    "chunks",
    "gather",
    "reduce",
    "reduce_scatter",
    "scatter",
]

Table = dict[str, Callable[..., Any]]
Costs = dict[str, Callable[..., Cost]]

# In order of increasing complexity.
ALL_REDUCE: Table = {
    "central": central.all_reduce,
    "binomial": binomial.all_reduce,
    "recursive_doubling": recursive_doubling.all_reduce,
    "ring": ring.all_reduce,
    "segmented_ring": segmented_ring.all_reduce,
    "halving_doubling": halving_doubling.all_reduce,
    "double_tree": double_tree.all_reduce,
    "hierarchical": hierarchical.all_reduce,
    "shared_memory": shared_memory.all_reduce,
}
ALL_REDUCE_COST: Costs = {
    "central": central.all_reduce_cost,
    "binomial": binomial.all_reduce_cost,
    "recursive_doubling": recursive_doubling.all_reduce_cost,
    "ring": ring.all_reduce_cost,
    "segmented_ring": segmented_ring.all_reduce_cost,
    "halving_doubling": halving_doubling.all_reduce_cost,
    "double_tree": double_tree.all_reduce_cost,
    "hierarchical": hierarchical.all_reduce_cost,
    "shared_memory": shared_memory.all_reduce_cost,
}
REDUCE: Table = {"central": central.reduce, "binomial": binomial.reduce}
REDUCE_COST: Costs = {"central": central.reduce_cost, "binomial": binomial.reduce_cost}
REDUCE_SCATTER: Table = {
    "ring": ring.reduce_scatter,
    "halving_doubling": halving_doubling.reduce_scatter,
}
REDUCE_SCATTER_COST: Costs = {
    "ring": ring.reduce_scatter_cost,
    "halving_doubling": halving_doubling.reduce_scatter_cost,
}
ALL_GATHER: Table = {
    "ring": ring.all_gather,
    "recursive_doubling": recursive_doubling.all_gather,
    "bruck": bruck.all_gather,
}
ALL_GATHER_COST: Costs = {
    "ring": ring.all_gather_cost,
    "recursive_doubling": recursive_doubling.all_gather_cost,
    "bruck": bruck.all_gather_cost,
}
BROADCAST: Table = {
    "central": central.broadcast,
    "binomial": binomial.broadcast,
    "chain": chain.broadcast,
    "scatter_all_gather": scatter_all_gather.broadcast,
}
BROADCAST_COST: Costs = {
    "central": central.broadcast_cost,
    "binomial": binomial.broadcast_cost,
    "chain": chain.broadcast_cost,
    "scatter_all_gather": scatter_all_gather.broadcast_cost,
}
ALL_TO_ALL: Table = {"pairwise": pairwise.all_to_all, "bruck": bruck.all_to_all}
ALL_TO_ALL_COST: Costs = {
    "pairwise": pairwise.all_to_all_cost,
    "bruck": bruck.all_to_all_cost,
}
GATHER: Table = {"central": central.gather, "binomial": binomial_gather.gather}
GATHER_COST: Costs = {
    "central": central.gather_cost,
    "binomial": binomial_gather.gather_cost,
}
SCATTER: Table = {"central": central.scatter, "binomial": binomial_gather.scatter}
SCATTER_COST: Costs = {
    "central": central.scatter_cost,
    "binomial": binomial_gather.scatter_cost,
}


def _choose(table: Table, algorithm: str) -> Callable[..., Any]:
    try:
        return table[algorithm]
    except KeyError:
        raise ValueError(
            f"unknown algorithm {algorithm!r}: choose one of {', '.join(table)}"
        ) from None


def all_reduce(comm: Comm, array: Array, op: str = "sum", algorithm: str = "ring") -> None:
    """Reduce ``array`` over all ranks, in place, by the algorithm of that name.

    "auto" takes the fastest for this size and rank count, measured or by formula; "library" is
    the MPI library's own, for comparison.
    """
    if algorithm == "auto":
        known = comm.chosen.get((array.size, array.itemsize))
        algorithm = known or auto.choose(comm, array)
    if algorithm == "library":
        library.all_reduce(comm, array, op)
    else:
        _choose(ALL_REDUCE, algorithm)(comm, array, op)


def all_reduce_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, algorithm: str = "ring"
) -> Cost:
    """What ``all_reduce`` by that algorithm costs ``rank``, and how long it takes."""
    table = ALL_REDUCE_COST | {"auto": auto.all_reduce_cost}
    return _choose(table, algorithm)(length, itemsize, rank, size, machine)


def reduce(
    comm: Comm, array: Array, op: str = "sum", root: int = 0, algorithm: str = "binomial"
) -> None:
    """Reduce ``array`` over all ranks into that of ``root``; the others' may be left half done."""
    _choose(REDUCE, algorithm)(comm, array, op, root)


def reduce_scatter(comm: Comm, array: Array, op: str = "sum", algorithm: str = "ring") -> Array:
    """Reduce over all ranks; rank r gets chunk r, in its place in ``array``, and a view of it."""
    return _choose(REDUCE_SCATTER, algorithm)(comm, array, op)


def all_gather(comm: Comm, array: Array, algorithm: str = "ring") -> None:
    """Rank r brings chunk r of ``array``, in its place; afterwards every rank has them all."""
    _choose(ALL_GATHER, algorithm)(comm, array)


def broadcast(comm: Comm, array: Array, root: int = 0, algorithm: str = "central") -> None:
    """Copy ``array`` of ``root`` to every rank, in place, by the algorithm of that name."""
    _choose(BROADCAST, algorithm)(comm, array, root)


def gather(comm: Comm, array: Array, root: int = 0, algorithm: str = "binomial") -> None:
    """Chunk r of rank r's ``array`` goes to its place in that of ``root``."""
    _choose(GATHER, algorithm)(comm, array, root)


def scatter(comm: Comm, array: Array, root: int = 0, algorithm: str = "binomial") -> Array:
    """Chunk r of the root's ``array`` goes to rank r, to its place; returns a view of it there."""
    return _choose(SCATTER, algorithm)(comm, array, root)


def all_to_all(comm: Comm, send: Any, recv: Any, algorithm: str = "pairwise") -> None:
    """``send[r]`` goes to rank r, and ``recv[r]`` comes from it."""
    _choose(ALL_TO_ALL, algorithm)(comm, send, recv)
