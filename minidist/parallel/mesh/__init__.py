"""Ranks in a grid: each axis cuts training in one way, and one method composes them.

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
