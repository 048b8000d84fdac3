"""Collectives: one algorithm a file, written over send and receive alone, each with its cost.

The dictionaries say what there is, by name. ``all_reduce(comm, array, algorithm=...)`` looks an
algorithm up; a method that wants one in particular imports its file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minidist.array import Array
from minidist.collectives import central, ring
from minidist.collectives.barrier import barrier, barrier_cost
from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine

__all__ = [
    "ALL_REDUCE",
    "ALL_REDUCE_COST",
    "BROADCAST",
    "Cost",
    "all_reduce",
    "all_reduce_cost",
    "barrier",
    "barrier_cost",
    "broadcast",
    "central",
    "ring",
]

ALL_REDUCE: dict[str, Callable[..., Any]] = {
    "central": central.all_reduce,
    "ring": ring.all_reduce,
}
ALL_REDUCE_COST: dict[str, Callable[..., Cost]] = {
    "central": central.all_reduce_cost,
    "ring": ring.all_reduce_cost,
}
BROADCAST: dict[str, Callable[..., Any]] = {"central": central.broadcast}


def _choose(table: dict[str, Callable[..., Any]], algorithm: str) -> Callable[..., Any]:
    try:
        return table[algorithm]
    except KeyError:
        raise ValueError(
            f"unknown algorithm {algorithm!r}: choose one of {', '.join(table)}"
        ) from None


def all_reduce(comm: Comm, array: Array, op: str = "sum", algorithm: str = "ring") -> None:
    """Reduce ``array`` over all ranks, in place, by the algorithm of that name."""
    _choose(ALL_REDUCE, algorithm)(comm, array, op)


def all_reduce_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, algorithm: str = "ring"
) -> Cost:
    """What ``all_reduce`` by that algorithm costs ``rank``, and how long it takes."""
    return _choose(ALL_REDUCE_COST, algorithm)(length, itemsize, rank, size, machine)


def broadcast(comm: Comm, array: Array, root: int = 0, algorithm: str = "central") -> None:
    """Copy ``array`` of ``root`` to every rank, in place, by the algorithm of that name."""
    _choose(BROADCAST, algorithm)(comm, array, root)
