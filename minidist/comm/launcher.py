"""``launch(fn, ranks)``: the same function in either world.

    def main(comm):
        ...
    launch(main, ranks=4)

Under ``python script.py`` this runs four ranks in one process; under ``mpirun -n 4 python
script.py`` each process is a rank.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minidist.comm.comm import Comm
from minidist.comm.environment import launched_size
from minidist.comm.local.world import LocalWorld
from minidist.comm.mpi.world import MpiWorld
from minidist.comm.trace import Trace

__all__ = [
    "find_mpiexec",
    "first_process",
    "launch",
    "launched_size",
    "mpi_environment",
    "print_once",
]

# Set by ``minidist trace``: where to leave traces, and how many local ranks there are to be.
TRACE_FOLDER, TRACE_RANKS = "MINIDIST_TRACE", "MINIDIST_TRACE_RANKS"

# How glibc's malloc takes and keeps memory, for processes that allocate large arrays again and
# again: GLIBC_TUNABLES in the environment, read when a process starts. See docs/collectives.md.
TUNABLES = {
    "glibc.malloc.hugetlb": 1,  # ask the kernel for pages of 2 MB instead of 4 KB
    "glibc.malloc.mmap_threshold": 1 << 30,  # blocks of up to 1 GB from the heap
    "glibc.malloc.trim_threshold": 2**31 - 1,  # bytes: keep what is freed, up to 2 GB
    "glibc.malloc.top_pad": 16 << 20,  # bytes that the heap grows by, beyond what is asked for
    "glibc.malloc.arena_max": 1,  # threads, such as a communication stream, use the same heap
}


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


def find_mpiexec() -> str | None:
    """The ``mpiexec`` to use: the one installed beside this Python, else the first on the PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def mpi_environment(threads: int | str = 1) -> dict[str, str]:
    """The environment for an ``mpiexec``: ``threads`` a rank, and more ranks than cores allowed.

    MPICH needs no setting for that; Open MPI must be allowed oversubscription, and root. The C
    library keeps freed memory, and takes huge pages: see ``TUNABLES``.
    """
    return os.environ | {
        "GLIBC_TUNABLES": glibc_tunables(os.environ.get("GLIBC_TUNABLES", "")),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }


def glibc_tunables(given: str = "") -> str:
    """``TUNABLES`` as glibc reads them, after those ``given`` by the user, which stay as they are.

    >>> glibc_tunables("glibc.malloc.arena_max=4")[:50]
    'glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1:gl'
    """
    settings = [setting for setting in given.split(":") if setting]
    names = {setting.partition("=")[0] for setting in settings}
    ours = [f"{name}={value}" for name, value in TUNABLES.items() if name not in names]
    return ":".join([*settings, *ours])


def first_process() -> bool:
    """Whether to print and draw, outside ``launch``: rank 0 under ``mpirun``, else always."""
    return launched_size() is None or MpiWorld().rank == 0


def print_once(*values: Any, **options: Any) -> None:
    """``print``, but under ``mpirun`` on rank 0 alone: for scripts around ``launch``."""
    if first_process():
        print(*values, **options)
