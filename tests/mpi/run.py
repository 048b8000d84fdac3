"""Start a program on real MPI ranks, with a limit, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minidist.comm.launcher import find_mpiexec, mpi_environment
from minidist.run import leftovers

ROOT = Path(__file__).parents[2]

needs_mpi = pytest.mark.mpi  # tests/conftest.py skips these where there is no mpiexec


def mpiexec(
    ranks: int, *command: str, timeout: float = 90, python: tuple[str, ...] = ("-m", "mpi4py")
) -> subprocess.CompletedProcess[str]:
    """``mpiexec -n RANKS python -m mpi4py COMMAND``, from the root of the repository."""
    launcher = find_mpiexec()
    assert launcher is not None
    environment = mpi_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment.setdefault("MINIDIST_TUNING", os.devnull)  # whatever was measured here before
    with leftovers.removed():
        return subprocess.run(
            [launcher, "-n", str(ranks), sys.executable, *python, *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
