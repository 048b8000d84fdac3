"""Hierarchical all-reduce: few bytes over the slow links between nodes, most inside the nodes.

    node A: ranks 0 1      node B: ranks 2 3          n = the whole array, g = 2 ranks a node

    1  reduce-scatter inside      each rank has n/g, summed over its node
    2  all-reduce across          rank 0 with 2, rank 1 with 3: n/g each, over all ports at once
    3  all-gather inside          each rank has all of it

Rings everywhere; with g ranks a node and M nodes, links (α, β) inside and (α', β') across,

    time    2(g - 1)(α + n/g·β) + 2(M - 1)(α' + n/(gM)·β') + additions

A single ring sends 2n(p - 1)/p over every link, the slow ones too; here a slow link carries only
1/g of that, and the α' are 2(M - 1) instead of 2(gM - 1). Jia et al.,
arXiv 1807.11205, section 3.2.
"""

from __future__ import annotations

from math import isqrt

from minidist.collectives import ring
from minidist.collectives.algorithm import algorithm
from minidist.collectives.cost import Cost
from minidist.collectives.partition import chunks
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.array import Array


def node_size(size: int, machine: Machine | None = None) -> int:
    """Ranks a node: the machine's own if it has two levels and they divide the ranks evenly.

    Otherwise the divisor of ``size`` next below its square root.
    """
    if machine is not None and machine.node and size % machine.node == 0:
        return machine.node
    return next(g for g in range(isqrt(size), 0, -1) if size % g == 0)


@algorithm("hierarchical")
def all_reduce(comm: Comm, array: Array, op: str = "sum", node: int | None = None) -> None:
    """Reduce ``array`` over all ranks, in place; ``node`` ranks in a row are one node."""
    node = node or node_size(comm.size, comm.machine)
    inside, across = levels(comm, node)
    mine = ring.reduce_scatter(inside, array, op)
    ring.all_reduce(across, mine, op)
    ring.all_gather(inside, array)


def levels(comm: Comm, node: int) -> tuple[Comm, Comm]:
    """The ranks of this node, and those of the same place in all nodes; made once."""
    if comm.size % node:
        raise ValueError(
            f"hierarchical: {comm.size} ranks cannot be nodes of {node} each: choose a divisor"
        )

    def make() -> tuple[Comm, Comm]:
        return comm.split(comm.rank // node), comm.split(comm.rank % node)

    return comm.remember(("hierarchical", node), make)


@all_reduce.costs
def all_reduce_cost(
    length: int, itemsize: int, rank: int, size: int, machine: Machine, node: int | None = None
) -> Cost:
    """What ``all_reduce`` of ``length`` elements costs: the three steps."""
    node = node or node_size(size, machine)
    place = rank % node
    inside = (length, itemsize, place, node, machine)
    parts = chunks(length, node)

    def across(place: int) -> Cost:
        part = parts[place].stop - parts[place].start
        network = machine.network_level()
        return ring.all_reduce_cost(part, itemsize, rank // node, size // node, network)

    mine, longest = across(place), across(0)
    return (
        ring.reduce_scatter_cost(*inside)
        + Cost(mine.messages, mine.nbytes, longest.seconds, mine.reduced)
        + ring.all_gather_cost(*inside)
    )
