"""The mpiexec that matches mpi4py, and the command and environment that it needs.

Every MPI library has an mpiexec of its own. One of another library starts N jobs of one rank each.
So candidates are asked which library they are of: the one beside this Python, then those on the
PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minidist.comm.environment import mpi_environment
from minidist.comm.link import SUPERVISOR

PASSED = ("MINIDIST_", "PYTHON", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GLIBC_TUNABLES")


class NoLauncher(ValueError):
    """There is no mpiexec, or none of the library that mpi4py uses."""


@dataclass(frozen=True)
class Launcher:
    """An mpiexec: its path, and the library that it is of: "MPICH", "Open MPI" or "Slurm"."""

    path: str
    library: str

    def command(self, ranks: int, hosts: str | None, program: list[str]) -> list[str]:
        """The command that starts ``program`` on ``ranks`` ranks, on the machines of a file."""
        if self.library == "Slurm":
            return [self.path, "-n", str(ranks), *program]
        where = [] if hosts is None else ["--hostfile" if self.open_mpi else "-f", hosts]
        if self.open_mpi:  # it passes no variables to other machines, unless told to
            for name in sorted(
                os.environ.keys() | {SUPERVISOR, "MINIDIST_RESTART", "MINIDIST_RANKS"}
            ):
                if name.startswith(PASSED):
                    where += ["-x", name]
        return [self.path, "-n", str(ranks), *where, *program]

    @property
    def open_mpi(self) -> bool:
        return self.library == "Open MPI"


def find_launcher(path: str | None = None) -> Launcher:
    """The launcher to use: ``path``, or the first that matches mpi4py. Raises NoLauncher."""
    if path is not None:
        if shutil.which(path) is None:
            raise NoLauncher(f"--mpiexec {path}: there is no such program")
        return Launcher(path, launcher_library(path))
    wanted, found = mpi4py_library(), []
    for candidate in candidates():
        library = launcher_library(candidate)
        if library == wanted or not wanted:
            return Launcher(candidate, library)
        found.append(f"{candidate} is of {library or 'an unknown MPI'}")
    if found:
        raise NoLauncher(
            f"mpi4py uses {wanted}, but {' and '.join(found)}: install one MPI alone, such as "
            '"minidist[mpich]", or name the right one with --mpiexec'
        )
    raise NoLauncher('needs an mpiexec: pip install "minidist[mpich]"')


def candidates() -> list[str]:
    """Every mpiexec: beside this Python, then on the PATH."""
    folders = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
    paths = [Path(folder) / "mpiexec" for folder in dict.fromkeys(folders) if folder]
    return [str(path) for path in paths if os.access(path, os.X_OK)]


@cache
def launcher_library(path: str) -> str:
    """The library that an mpiexec is of; "" if it does not say."""
    if Path(path).name == "srun":
        return "Slurm"
    text = output([path, "--version"])
    if "HYDRA" in text or "MPICH" in text:
        return "MPICH"
    return "Open MPI" if "Open MPI" in text or "OpenRTE" in text or "prte" in text.lower() else ""


@cache
def mpi4py_library() -> str:
    """The MPI library of this Python's mpi4py; "" if that cannot be loaded."""
    text = mpi4py_version()
    return "Open MPI" if text.startswith("Open MPI") else "MPICH" if "MPICH" in text else ""


@cache
def mpi4py_version() -> str:
    """What the MPI library of mpi4py says of itself; "" if there is none."""
    program = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
    return output([sys.executable, "-c", program + "print(MPI.Get_library_version())"])


def output(command: list[str]) -> str:
    """What a program prints; "" if it fails. Variables of a launcher would mislead it."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PMI", "OMPI_"))}
    try:
        done = subprocess.run(
            command, env=own, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def environment(threads: int | str | None = None) -> dict[str, str]:
    """The environment of the ranks: see ``mpi_environment``; and against leftovers of Slurm.

    In an allocation of one machine MPICH's launcher would ask Slurm for a second step, and an
    interactive shell already holds all that there is: so ranks are started directly.
    """
    found = mpi_environment(threads or os.environ.get("OMP_NUM_THREADS") or 1)
    machines = found.get("SLURM_NNODES", found.get("SLURM_JOB_NUM_NODES", "1"))
    if "SLURM_JOB_ID" in found and machines == "1":
        found |= {"HYDRA_LAUNCHER": "fork", "HYDRA_RMK": "user"}  # MPICH
        found |= {"PRTE_MCA_plm": "ssh", "PRTE_MCA_ras": "^slurm"}  # Open MPI
        for name in ("PMI_FD", "PMI_RANK", "PMI_SIZE", "PMI_JOBID", "PMIX_RANK"):
            found.pop(name, None)
    return found
