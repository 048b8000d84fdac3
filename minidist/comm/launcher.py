"""``launch(fn, ranks)``: the same function in either world.

    def main(comm):
        ...
    launch(main, ranks=4)

Under ``python script.py`` this runs four ranks in one process; under ``mpirun -n 4 python
script.py`` each process is a rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minidist.comm.comm import Comm
from minidist.comm.environment import (
    TUNABLES,
    find_mpiexec,
    glibc_tunables,
    launched_size,
    mpi_environment,
)
from minidist.comm.local.world import LocalWorld
from minidist.comm.mpi.world import MpiWorld
from minidist.comm.trace import Trace

__all__ = [
    "TUNABLES",
    "find_mpiexec",
    "first_process",
    "glibc_tunables",
    "launch",
    "launched_size",
    "mpi_environment",
    "print_once",
]

# Set by ``minidist trace``: where to leave traces, and how many local ranks there are to be.
TRACE_FOLDER, TRACE_RANKS = "MINIDIST_TRACE", "MINIDIST_TRACE_RANKS"


def launch(
    function: Callable[[Comm], Any],
    ranks: int = 4,
    world: LocalWorld | MpiWorld | None = None,
) -> list[Any]:
    """Run ``function(comm)`` on every rank and return the list of their results, on every rank.

    Started by ``mpirun``, the ranks are its processes, as many as it was told, and ``ranks`` is
    not used. Otherwise they are ``ranks`` greenlets in this process. ``world`` chooses instead:
    ``LocalWorld(machine=...)`` sets the simulator's speeds. An exception on one rank ends them
    all. Raises ``LauncherError`` if the launcher belongs to another MPI than mpi4py's.
    """
    launched = launched_size()
    if world is None:
        world = LocalWorld() if launched is None else MpiWorld()
    folder = os.environ.get(TRACE_FOLDER)
    world.record = world.record or folder is not None
    if isinstance(world, LocalWorld):
        results = world.run(function, int(os.environ.get(TRACE_RANKS, ranks)))
    else:
        if launched is not None:
            world.check_size(launched)
        results = world.run(function)
    if folder is not None and first_process():
        _save_trace(world.traces, Path(folder))
    return results


def _save_trace(traces: list[Trace], folder: Path) -> None:
    """Leave picture and JSON of one launch in the folder; a script may launch several times."""
    from minidist.comm.timeline import Timeline

    number = 1
    while (folder / f"trace-{number}.json").exists():
        number += 1
    timeline = Timeline(traces)
    timeline.save(folder / f"trace-{number}.json")
    timeline.plot(folder / f"trace-{number}.png", f"launch {number}: {len(traces)} ranks")


def first_process() -> bool:
    """Whether to print and draw, outside ``launch``: rank 0 under ``mpirun``, else always."""
    return launched_size() is None or MpiWorld().rank == 0


def print_once(*values: Any, **options: Any) -> None:
    """``print``, but under ``mpirun`` on rank 0 alone: for scripts around ``launch``."""
    if first_process():
        print(*values, **options)
