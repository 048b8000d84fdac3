"""The environment of MPI's processes: what launchers leave there, and what they need.

An interactive Slurm shell (``srun --pty bash``) has the variables of a job of one process. They say
nothing about a program that is started in it, so they are ignored.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from minidist import LAUNCHER_SIZES

# Where launchers leave a process's rank, in the order of ``LAUNCHER_SIZES``.
LAUNCHER_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
# Variables of a process that can connect to the others: by PMI 1 or 2 (MPICH), or PMIx (Open MPI).
MANAGERS = ("PMI_FD", "PMI_PORT", "PMI_RANK", "PMIX_RANK")
# A rank of Open MPI that waits in the library's own calls gives up its core. Otherwise each of the
# messages in them, such as those of ``split``, takes a time slice where other programs run.
YIELD = "OMPI_MCA_mpi_yield_when_idle"

# How glibc's malloc takes and keeps memory, for processes that allocate large arrays again and
# again: GLIBC_TUNABLES in the environment, read when a process starts. See docs/collectives.md.
TUNABLES = {
    "glibc.malloc.hugetlb": 1,  # ask the kernel for pages of 2 MB instead of 4 KB
    "glibc.malloc.mmap_threshold": 1 << 30,  # blocks of up to 1 GB from the heap
    "glibc.malloc.trim_threshold": 2**31 - 1,  # bytes: keep what is freed, up to 2 GB
    "glibc.malloc.top_pad": 16 << 20,  # bytes that the heap grows by, beyond what is asked for
    "glibc.malloc.arena_max": 1,  # threads, such as a communication stream, use the same heap
}


def launched_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many processes an MPI launcher says it started; None outside of one."""
    for variable in LAUNCHER_SIZES:
        if not environment.get(variable, "").isdigit():
            continue
        size = int(environment[variable])
        if _is_shell(environment, size) or (variable.startswith("SLURM") and size == 1):
            if variable.startswith("SLURM") and _managed(environment):
                return size  # srun -n 1 --mpi=... python
            continue
        return size
    return None


def _managed(environment: Mapping[str, str]) -> bool:
    return "SLURM_PTY_PORT" not in environment and any(name in environment for name in MANAGERS)


def _is_shell(environment: Mapping[str, str], size: int) -> bool:
    """Whether the variables are an interactive Slurm shell's, and not those of an mpiexec in it."""
    mpiexec = "HYDI_CONTROL_FD" in environment or "PRTE_LAUNCHED" in environment
    return (
        "SLURM_PTY_PORT" in environment
        and not mpiexec
        and environment.get("SLURM_STEP_NUM_TASKS") == str(size)
    )


def rank_in_environment(environment: Mapping[str, str] = os.environ) -> int:
    """The rank that the launcher has given to this process; 0 if there is none."""
    for name in LAUNCHER_RANKS:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return 0


def find_mpiexec() -> str | None:
    """The ``mpiexec`` to use: the one installed beside this Python, else the first on the PATH."""
    installed = Path(sys.executable).parent / "mpiexec"
    return str(installed) if installed.exists() else shutil.which("mpiexec")


def mpi_environment(threads: int | str = 1) -> dict[str, str]:
    """The environment for an ``mpiexec``: ``threads`` a rank, and more ranks than cores allowed.

    MPICH needs no setting for that; Open MPI must be allowed oversubscription, and root, and
    ``YIELD``. The C library keeps freed memory, and takes huge pages: see ``TUNABLES``.
    """
    return os.environ | {
        "GLIBC_TUNABLES": glibc_tunables(os.environ.get("GLIBC_TUNABLES", "")),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        YIELD: os.environ.get(YIELD, "1"),
    }


def glibc_tunables(current: str = "") -> str:
    """``TUNABLES`` as glibc reads them, after the ``current`` ones, which stay as they are.

    >>> glibc_tunables("glibc.malloc.arena_max=4")[:50]
    'glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1:gl'
    """
    settings = [setting for setting in current.split(":") if setting]
    names = {setting.partition("=")[0] for setting in settings}
    ours = [f"{name}={value}" for name, value in TUNABLES.items() if name not in names]
    return ":".join([*settings, *ours])
