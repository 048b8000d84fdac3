"""Ranks in a grid: each axis is one kind of parallelism, and one method combines them.

``mesh.py`` is the grid and its communicators, ``mesh_parallel.py`` the method.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__,
    {
        "mesh": ["Mesh"],
        "mesh_parallel": ["MeshParallel"],
    },
)
