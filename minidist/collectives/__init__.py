"""Collectives: one algorithm a file, written over send and receive alone, each with its cost.

Read ``ring.py`` first: it is how large models are trained; ``central.py`` is the simplest.
``algorithm.py`` is the object that holds an algorithm's run and its cost, ``tables.py`` has all of
them by name, and ``operations.py`` runs one by name: ``all_reduce(comm, array, algorithm="ring")``.
Algorithms that need common memory are in ``shared/``.
"""

from __future__ import annotations

from minidist.lazy import offer

__path__.append(f"{__path__[0]}/../moved/collectives")  # modules under old names: see there

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "operations": [
            "all_gather",
            "all_reduce",
            "all_reduce_cost",
            "all_to_all",
            "broadcast",
            "gather",
            "reduce",
            "reduce_scatter",
            "scatter",
        ],
        "tables": [
            "ALL_GATHER",
            "ALL_REDUCE",
            "ALL_REDUCE_COST",
            "ALL_TO_ALL",
            "BROADCAST",
            "GATHER",
            "REDUCE",
            "REDUCE_SCATTER",
            "SCATTER",
        ],
        "algorithm": ["Algorithm", "UnknownCost"],
        "cost": ["Cost"],
        "dissemination": ["barrier", "barrier_cost"],
        "partition": ["chunks"],
        "auto": [],
        "binomial": [],
        "binomial_gather": [],
        "bruck": [],
        "central": [],
        "chain": [],
        "double_tree": [],
        "halving_doubling": [],
        "hierarchical": [],
        "library": [],
        "pairwise": [],
        "recursive_doubling": [],
        "ring": [],
        "scatter_all_gather": [],
        "segmented_ring": [],
        "two_trees": [],
    },
)
