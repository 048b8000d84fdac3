"""Start ranks, watch them to their end, and say in one report what went wrong.

``supervisor.py`` is ``minidist run``, and what ``compare``, ``trace`` and the benches start their
ranks with. Each rank begins in ``rank.py`` and has a line to the supervisor (``comm/link.py``);
``lines.py`` has the other ends of these. ``launcher.py`` finds the mpiexec that matches mpi4py,
``leftovers.py`` knows what crashed jobs leave in /dev/shm, and ``doctor.py`` says what is on this
machine.
"""

from __future__ import annotations

from minidist.lazy import offer

__getattr__, __dir__, __all__ = offer(
    __name__, {"supervisor": ["Job", "start"], "doctor": [], "launcher": [], "leftovers": []}
)
