"""Every algorithm of every collective, by name, in order of increasing complexity.

``ALL_REDUCE["ring"](comm, array)`` runs one, ``ALL_REDUCE["ring"].cost(...)`` is what it costs.
"""

from __future__ import annotations

from typing import Any

from minidist.collectives import (
    binomial,
    binomial_gather,
    bruck,
    central,
    chain,
    double_tree,
    halving_doubling,
    hierarchical,
    pairwise,
    recursive_doubling,
    ring,
    scatter_all_gather,
    segmented_ring,
)
from minidist.collectives.algorithm import Algorithm
from minidist.collectives.shared import shared_memory

Table = dict[str, Algorithm[..., Any]]


def by_name(*algorithms: Algorithm[..., Any]) -> Table:
    return {one.name: one for one in algorithms}


ALL_REDUCE = by_name(
    central.all_reduce,
    binomial.all_reduce,
    recursive_doubling.all_reduce,
    ring.all_reduce,
    segmented_ring.all_reduce,
    halving_doubling.all_reduce,
    double_tree.all_reduce,
    hierarchical.all_reduce,
    shared_memory.all_reduce,
)
REDUCE = by_name(central.reduce, binomial.reduce)
REDUCE_SCATTER = by_name(ring.reduce_scatter, halving_doubling.reduce_scatter)
ALL_GATHER = by_name(ring.all_gather, recursive_doubling.all_gather, bruck.all_gather)
BROADCAST = by_name(
    central.broadcast, binomial.broadcast, chain.broadcast, scatter_all_gather.broadcast
)
ALL_TO_ALL = by_name(pairwise.all_to_all, bruck.all_to_all)
GATHER = by_name(central.gather, binomial_gather.gather)
SCATTER = by_name(central.scatter, binomial_gather.scatter)

ALL_REDUCE_COST = {name: one.cost for name, one in ALL_REDUCE.items()}  # its name in version 0.1
