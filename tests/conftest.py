"""What holds for all tests: one thread, and helpers imported by their bare names."""

import os
import sys
from pathlib import Path

import pytest

# Before NumPy is loaded: two cores shared by tests and their MPI ranks are soon crowded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No __init__.py in tests/inspect: a package of that name here would hide the standard library's.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "collectives")]


def pytest_runtest_setup(item):
    if item.get_closest_marker("mpi"):
        from minidist.comm.launch import find_mpiexec

        if find_mpiexec() is None:
            pytest.skip("no mpiexec on this machine")
