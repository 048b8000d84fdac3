"""Averaging: ranks train separately, and average their parameters every few steps.

Read ``local_sgd.py`` first: the average of all ranks (with an outer optimizer it is DiLoCo). In
``gossip.py`` each rank averages with its neighbours, in ``easgd.py`` with a centre.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "local_sgd": ["DiLoCo", "LocalSGD"],
        "gossip": ["GRAPHS", "Gossip", "exponential_graph", "ring_graph"],
        "easgd": ["ElasticAveraging"],
    },
)
