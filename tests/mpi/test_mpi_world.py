"""The MPI world: the claims of the local one on real processes, and faults that end the job.

One mpiexec runs many checks, because starting it is what takes time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from minidist.comm.launch import mpi_environment
from tests.mpi.run import ROOT, mpiexec, needs_mpi

HERE = Path(__file__).parent
pytestmark = needs_mpi


@pytest.mark.parametrize("ranks", (1, 2, 3, 4))
def test_every_collective_and_every_kind_of_message(ranks):
    done = mpiexec(ranks, str(HERE / "program.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ranks} ranks: " in done.stdout


@pytest.mark.parametrize("module", (("-m", "mpi4py"), ()), ids=("-m mpi4py", "plain python"))
@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        ("exception", 1, "KeyError: 'lost my way'"),
        ("crash", 1, "Crash: power cut"),
        ("exit3", 3, "SystemExit: 3"),
        ("exit0", 1, "SystemExit: 0"),
        ("length", 1, "received 24 bytes from rank 2 where it expected float64[4], 32 bytes"),
    ],
)
def test_a_fault_on_one_rank_ends_the_job_with_its_traceback(fault, status, text, module):
    start = time.monotonic()
    done = mpiexec(3, str(HERE / "faults.py"), fault, python=module, timeout=30)
    assert time.monotonic() - start < 20
    assert done.returncode == status, f"got {done.returncode}, expected {status}\n{done.stderr}"
    assert text in done.stderr, done.stderr
    assert "failed, so the whole job ends" in done.stderr
    assert "finished" not in done.stdout


def test_a_longer_message_than_expected_ends_the_job_too():
    done = mpiexec(2, str(HERE / "faults.py"), "longer", timeout=30)
    assert done.returncode != 0
    assert "finished" not in done.stdout


def test_a_server_that_waits_for_anyone_leaves_its_core_to_others():
    done = mpiexec(3, str(HERE / "patient_program.py"), timeout=30)
    assert done.returncode == 0, done.stderr


def test_a_launcher_of_another_mpi_is_noticed():
    """A foreign mpirun starts N jobs of size 1, and says in its own variable that there are N."""
    environment = mpi_environment() | {"OMPI_COMM_WORLD_SIZE": "4"}
    script = "from minidist.comm import launch; launch(lambda comm: None)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert "mpirun started 4 processes" in done.stderr, done.stderr
    assert "sees 1: the mpirun belongs to another MPI" in done.stderr
