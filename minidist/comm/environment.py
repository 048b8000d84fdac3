"""What launchers leave in the environment of the processes that they start.

An interactive Slurm shell (``srun --pty bash``) has the variables of a job of one process. They say
nothing about a program that is started in it, so they do not count.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from minidist import LAUNCHER_SIZES

# Where launchers leave a process's rank, in the order of ``LAUNCHER_SIZES``.
LAUNCHER_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
# What a process has that can find the others: PMI 1 or 2 (MPICH), or PMIx (Open MPI).
MANAGERS = ("PMI_FD", "PMI_PORT", "PMI_RANK", "PMIX_RANK")


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
