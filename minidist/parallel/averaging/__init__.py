"""Averaging: ranks train on their own, and average their parameters now and then.

Read ``local_sgd.py`` first: all with all, every few steps (with an outer optimizer it is DiLoCo).
In ``gossip.py`` each averages with its neighbours, in ``easgd.py`` with a centre.
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
