"""Several machines, emulated: see machines.py. Skipped where that is not allowed."""

from __future__ import annotations

import time

import pytest

from minidist.run.launcher import mpi4py_library
from tests.hosts.machines import Machines, allowed, running

OPEN_MPI = mpi4py_library() == "Open MPI"
pytestmark = [
    pytest.mark.mpi,
    pytest.mark.long,
    pytest.mark.skipif(not allowed(), reason="this process may not make network namespaces"),
]
PROGRAM = "tests/hosts/program.py"


def test_two_machines_train_lose_the_cable_and_go_on_with_the_one_that_is_left():
    with Machines() as machines:
        machines.use(OPEN_MPI)
        job = ("run", "-n", "4", "--hosts", machines.hosts, PROGRAM)
        with machines.start(*job, "0", open_mpi=OPEN_MPI) as first:
            printed, _ = first.communicate(timeout=60)
        assert first.returncode == 0, printed
        assert "machine0 machine0 machine1 machine1; shared(): only 2 of 4 ranks" in printed

        under_way = machines.folder / "under-way"
        options = ("--restarts", "1", "--min-ranks", "2")
        again = ("run", *options, *job[1:], "600", str(under_way))
        with machines.start(*again, open_mpi=OPEN_MPI) as second:
            while not under_way.exists() and second.poll() is None:
                time.sleep(0.1)
            machines.cut()
            printed, _ = second.communicate(timeout=90)
        assert second.returncode == 0, printed
        assert "the machine machine1 cannot be reached any longer" in printed, printed
        assert "restart 1 of 1, with 2 ranks" in printed
        assert "machine0 machine0; " in printed, printed
        until = time.monotonic() + 60
        while running(str(under_way)) and time.monotonic() < until:
            time.sleep(0.5)  # machine1's ranks find out by themselves
        assert running(str(under_way)) == []


def test_compare_leaves_out_what_needs_one_machine_and_goes_on():
    with Machines() as machines:
        machines.use(OPEN_MPI)
        program = "tests/hosts/compare_program.py"
        job = ("run", "-n", "4", "--hosts", machines.hosts, program)
        with machines.start(*job, open_mpi=OPEN_MPI) as ranks:
            printed, _ = ranks.communicate(timeout=120)
        assert ranks.returncode == 0, printed
        assert "6 rows; left out data_parallel/symmetric: shared(): only 2 of 4 ranks" in printed
