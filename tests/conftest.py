"""What holds for all tests: one thread, and helpers imported by their bare names."""

import os
import sys
import time
from pathlib import Path

import pytest

# Before NumPy is loaded: two cores shared by tests and their MPI ranks are soon crowded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No __init__.py in tests/inspect: a package of that name here would hide the standard library's.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "collectives")]


def pytest_runtest_setup(item):
    if item.get_closest_marker("mpi"):
        from minidist.comm.launcher import find_mpiexec

        if find_mpiexec() is None:
            pytest.skip("no mpiexec on this machine")


def pytest_sessionstart(session):
    session.config.began = time.time()


def pytest_sessionfinish(session):
    """MPICH leaves files in /dev/shm when a job is killed, and some tests kill jobs."""
    if hasattr(session.config, "workerinput"):
        return  # the process that started the workers does it, after them
    from minidist.run import leftovers

    if leftovers.leftovers(session.config.began, young=0):
        time.sleep(leftovers.YOUNG)  # a file of another job may not be mapped so far
        leftovers.remove(leftovers.leftovers(session.config.began))


def pytest_addoption(parser):
    parser.addoption(
        "--cases", type=int, help="of each parametrised test, run this many cases, evenly spread"
    )


def pytest_collection_modifyitems(config, items):
    if "long" not in config.getoption("markexpr") and not config.getoption("keyword"):
        leave_out(config, items, [item for item in items if item.get_closest_marker("long")])
    few = config.getoption("--cases")
    if few is None:
        return
    by_function = {}
    for item in items:
        by_function.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {
        id(cases[(2 * number + 1) * len(cases) // (2 * few)])
        for cases in by_function.values()
        for number in range(few)
    }
    leave_out(config, items, [item for item in items if id(item) not in kept])


def leave_out(config, items, unwanted):
    config.hook.pytest_deselected(items=unwanted)
    gone = set(map(id, unwanted))
    items[:] = [item for item in items if id(item) not in gone]
