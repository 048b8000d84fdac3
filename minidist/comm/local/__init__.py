"""The local world: ranks in one process, on a virtual clock.

``world.py`` is what a rank sees, ``simulator.py`` decides who runs next and when a message arrives,
``tasks.py`` is what it keeps of each rank, and what it says of ranks that are stuck.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "world": ["LocalComm", "LocalWorld"],
        "simulator": ["Simulator"],
        "tasks": ["Deadlock"],
    },
)
