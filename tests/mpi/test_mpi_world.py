"""The MPI world: the claims of the local one on real processes, and faults that end the job.

One mpiexec runs many checks, because starting it is what takes time.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minidist.comm.launcher import mpi_environment
from minidist.run import leftovers
from tests.mpi.run import ROOT, mpiexec, needs_mpi

HERE = Path(__file__).parent
pytestmark = needs_mpi


@pytest.mark.parametrize("ranks", [1, 2, 3, pytest.param(4, marks=pytest.mark.long)])
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


def hang(fault, ranks, monkeypatch):
    """What is printed when the watchdog ends the job, which it must."""
    monkeypatch.setenv("MINIDIST_TIMEOUT", "1.5")
    start = time.monotonic()
    done = mpiexec(ranks, str(HERE / "faults.py"), fault, timeout=45)
    assert time.monotonic() - start < 30
    assert done.returncode != 0
    assert "finished" not in done.stdout
    assert f"of {ranks} has waited more than 1.5 s in one call" in done.stderr, done.stderr
    return done.stderr


def test_both_send_first_is_ended_by_the_watchdog_which_names_calls_and_lines(monkeypatch):
    text = hang("both send first", 2, monkeypatch)
    for rank in (0, 1):
        expected = (
            rf"rank {rank}: send\(float64\[1048576\], to={1 - rank}, tag=7\), "
            r'at .*faults.py:\d+ in "main", for \d+\.\d s'
        )
        assert re.search(expected, text), text


def test_a_rank_that_stalls_is_named_with_the_collective_in_which_the_others_wait(monkeypatch):
    text = hang("stall", 3, monkeypatch)
    assert re.search(r"rank 2: in no call of communication, at .*faults.py:\d+ in \"main\"", text)
    call = r"rank 0: sendrecv of send\(float64\[2\], to=1, tag=0\) and "
    call += r"recv\(float64\[2\], source=2, tag=0\), in ring.reduce_scatter line \d+, "
    assert re.search(call + r"at .*faults.py:\d+ in \"main\", for \d+\.\d s", text), text


def test_requests_and_the_communication_stream_are_watched_too(monkeypatch):
    text = hang("waits", 3, monkeypatch)
    waits = r"rank 0: wait of recv\(float32\[5\], source=2, tag=3\), at .*faults.py"
    assert re.search(waits, text), text
    stream = r"send\(float64\[1048576\], to=2, tag=0\) on the communication stream"
    stream += r', at .*faults.py:\d+ in "<lambda>"'
    assert re.search(r"rank 1: .*" + stream, text), text


def test_what_was_spawned_and_never_waited_for_is_watched_to_its_end(monkeypatch):
    text = hang("unfinished", 2, monkeypatch)
    stream = r"rank [01]: .*recv\(float64\[3\], source=[01], tag=0\) on the communication stream"
    assert re.search(stream, text), text


def test_an_exception_on_the_stream_ends_the_job_at_once():
    done = mpiexec(2, str(HERE / "faults.py"), "stream", timeout=45)
    assert done.returncode != 0
    assert "rank 1 of 2 failed, so the whole job ends" in done.stderr, done.stderr
    assert "IndexError: index 2 is out of bounds" in done.stderr, done.stderr


def test_a_split_that_one_rank_never_calls_is_ended(monkeypatch):
    text = hang("split", 2, monkeypatch)
    assert re.search(r"rank 0: split\(\), at .*faults.py", text), text
    assert re.search(r"rank 1: barrier\(\), at .*faults.py", text), text


@pytest.mark.parametrize("fault", ["patient", "computes"])
def test_many_short_waits_and_long_computing_are_no_long_wait(fault, monkeypatch):
    monkeypatch.setenv("MINIDIST_TIMEOUT", "1.5")
    done = mpiexec(2, str(HERE / "faults.py"), fault, timeout=45)
    assert done.returncode == 0, done.stderr


def test_a_server_that_waits_for_anyone_leaves_its_core_to_others():
    done = mpiexec(3, str(HERE / "patient_program.py"), timeout=30)
    assert done.returncode == 0, done.stderr


def test_a_launcher_of_another_mpi_is_noticed():
    """A foreign mpirun starts N jobs of size 1, and says in its own variable that there are N."""
    environment = mpi_environment() | {"OMPI_COMM_WORLD_SIZE": "4"}
    script = "from minidist.comm import launch; launch(lambda comm: None)"
    with leftovers.removed():
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


# What mpi4py writes in small letters sends pickled objects; with a capital, buffers.
PICKLING = {
    "allgather", "allreduce", "alltoall", "bcast", "bsend", "exscan", "gather", "ibsend", "irecv",
    "isend", "issend", "mrecv", "recv", "reduce", "scan", "scatter", "send", "sendrecv", "ssend",
}  # fmt: skip


def test_objects_are_pickled_in_one_place_the_results_at_the_end_of_a_launch():
    found = []
    for path in sorted((ROOT / "minidist" / "comm" / "mpi").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in PICKLING:
                found.append(f"{path.stem}: {ast.unparse(node)}")
    assert found == ["world: process.comm.allgather"]
