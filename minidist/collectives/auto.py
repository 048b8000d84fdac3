"""Choosing an all-reduce: the fastest measured on this machine, or the least by formula.

No algorithm is best everywhere: recursive doubling has the fewest rounds, a ring the fewest bytes
in the longest messages, halving and doubling is in between. So every MPI library chooses by size
and rank count, from tables measured on other machines. Here the table is measured on yours:
``minidist bench collectives --tune`` writes it, and an MPI world reads it when it starts. Until
then the first call for arrays of about a size measures, in a few milliseconds (``learn.py``).

Where time says nothing, there is no measuring. In the local world the formulas are evaluated for
its machine, and the algorithm with the shortest time is taken. Ranks of one machine that outnumber
its cores take what was best for two cores: a short table in ``comm/tuning.py``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.learn import LIBRARY, learn, size_class
from minidist.collectives.shared import cross_memory
from minidist.collectives.tables import ALL_REDUCE, by_name
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array

# What the formulas choose among: algorithms for any ranks that send messages.
CANDIDATES = {
    name: ALL_REDUCE[name]
    for name in ("recursive_doubling", "halving_doubling", "ring", "segmented_ring", "double_tree")
}
# What a table may name, and measuring may choose:
ANY = ALL_REDUCE | by_name(cross_memory.all_reduce, LIBRARY)


@algorithm("auto")
def all_reduce(comm: Comm, array: Array, op: str = "sum") -> None:
    """Reduce ``array`` over all ranks, in place, by the algorithm that is chosen for it."""
    try:
        name = comm.chosen[array.size, array.itemsize]
    except KeyError:
        name = choose(comm, array)
    ANY[name].run(comm, array, op)  # what it would check is checked


def choose(comm: Comm, array: Array) -> str:
    """The name of the algorithm to take for ``array``; the same on every rank."""
    name = by_table(array.nbytes, comm.size, comm.tuning)
    if name == "cross_memory" and not cross_memory.possible(comm):  # it is not allowed
        name = by_table(array.nbytes, comm.size, comm.tuning, without=name)
    name = (
        name
        or by_measuring(comm, array)
        or by_formula(array.size, array.itemsize, comm.size, comm.machine)
    )
    comm.chosen[array.size, array.itemsize] = name
    return name


def by_measuring(comm: Comm, array: Array) -> str | None:
    """The fastest, as measured now or before; None where nothing can be measured."""
    if comm.size == 1 or array.size == 0:
        return None
    key = f"{array.dtype} {size_class(array.nbytes)}"
    if key not in comm.learned:
        comm.learned[key] = learn(comm, array)
    return comm.learned[key]


def by_formula(length: int, itemsize: int, size: int, machine: Machine) -> str:
    """The candidate that takes the fewest seconds on ``machine``."""
    return min(
        CANDIDATES,
        key=lambda name: CANDIDATES[name].cost(length, itemsize, 0, size, machine).seconds,
    )


def by_table(
    nbytes: int, size: int, table: Mapping[str, Any] | None, without: str | None = None
) -> str | None:
    """The fastest measured at ``size`` ranks and the next size up; None if not measured."""
    table = table or {}
    measured = table.get(str(size)) or table.get("any") or []
    measured = [entry for entry in measured if entry[1] != without]
    if not measured:
        return None
    sizes = [entry[0] for entry in measured]
    return measured[min(bisect_left(sizes, nbytes), len(sizes) - 1)][1]


@all_reduce.costs
def all_reduce_cost(length: int, itemsize: int, rank: int, size: int, machine: Machine) -> Cost:
    """What the algorithm that the formulas choose costs."""
    name = by_formula(length, itemsize, size, machine)
    return CANDIDATES[name].cost(length, itemsize, rank, size, machine)
