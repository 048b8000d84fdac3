"""The local world: ranks in one process, on a virtual clock.

``world.py`` runs a function on ranks, and ``comm.py`` is one rank. ``simulator.py`` says when a
message begins and ends, and ``scheduler.py`` which rank runs next. ``folded.py`` lets one rank
stand for many that do the same.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "comm": ["LocalComm"],
        "folded": ["Fold", "FoldedComm"],
        "world": ["LocalWorld"],
        "simulator": ["Simulator"],
        "scheduler": ["Deadlock"],
    },
)
