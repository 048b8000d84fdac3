"""The local world: ranks in one process, on a virtual clock.

``world.py`` is what a rank sees, ``simulator.py`` says when a message begins and ends, and
``scheduler.py`` which rank runs next. ``tasks.py`` has what they keep of ranks and messages, and
what is said of ranks that are stuck.
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
        "tasks": ["Deadlock"],
    },
)
