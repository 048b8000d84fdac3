"""Each fault ends the job in bounded time, with a status that is not 0, and a report that names it.

Under ``minidist run``, and under a plain ``mpirun python``; table.py measures all of them for
docs/faults.md, here are those that differ in kind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mpi.run import ROOT, mpiexec

PROGRAM = str(Path(__file__).parent / "program.py")
pytestmark = [pytest.mark.mpi, pytest.mark.slow]
LIMIT = 60  # seconds: on a busy machine starting takes some
WAIT = {"MINIDIST_TIMEOUT": "3"}  # in one call, MPI_Init too: for what is not noticed otherwise


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``minidist run ARGUMENTS``."""
    return subprocess.run(
        [sys.executable, "-m", "minidist", "run", *arguments],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "MINIDIST_TUNING": os.devnull, "MINIDIST_TIMEOUT": "30"}
        | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


SUPERVISED = {
    "raise before the first": r"rank 1 first(.|\n)*ValueError: raised before the first",
    # Its leaving ends the others within milliseconds: then all of them are named.
    "os._exit(0)": "rank 1 ended without an exception and without having finished|"
    r"ended without an exception and(.|\n)*rank 1: ended at nearly the same time",
    "sleep in a launch": r"waited more than 3 s in one call(.|\n)*"
    r'rank 1: in no call of communication, at .*program.py:\d+ in "first"',
    "skip a launch": r"rank 0: launch of first, at .*\n  rank 1: the end of the program",
    "exit 3": "rank 1 of 3 failed",
    # Open MPI ends the others before they can say that they wait.
    "exit before the first": "rank 1 has ended with status 0 before its first launch, and the|"
    "rank 1: had finished",
    "sleep at the end of MPI": r"rank \d of 3 has waited more than 3 s in one call(.|\n)*"
    r"MPI_Finalize\(\), for ",
}


@pytest.mark.parametrize("fault", SUPERVISED)
def test_minidist_run_names_the_fault(fault):
    done = run("-n", "3", PROGRAM, fault, **(WAIT if fault.startswith("sleep") else {}))
    assert done.returncode == (3 if fault == "exit 3" else 1), done.stderr
    assert re.search(SUPERVISED[fault], done.stderr), done.stderr
    assert done.stderr.count("minidist run: the job failed") == 1
    assert "BAD TERMINATION" not in done.stdout + done.stderr  # the launcher's own words
    assert done.stdout.count("finished") < 3 or fault == "sleep at the end of MPI"


def test_a_job_without_a_fault_has_status_0_and_prints_nothing_more():
    done = run("-n", "3", PROGRAM, "none", MINIDIST_DEBUG="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "finished\n" * 3


PLAIN = {
    "raise between two": "ValueError: raised between two",
    "skip a launch": r"the ranks are not at the same place",
    "isend that nobody receives": "nobody received 64 bytes from rank 1 of its group, tag 5",
    "irecv that nobody sends": r"nobody waited for recv\(float64\[8\], source=0, tag=5\)",
}


@pytest.mark.parametrize("fault", PLAIN)
def test_plain_mpirun_ends_too(fault, monkeypatch):
    monkeypatch.setenv("MINIDIST_TIMEOUT", "30")
    done = mpiexec(2, PROGRAM, fault, python=(), timeout=LIMIT)
    assert done.returncode != 0, done.stdout
    assert re.search(PLAIN[fault], done.stderr), done.stderr


MISMATCHES = {
    "other dtype": r"all_reduce by recursive_doubling of int64\[8\], op='sum', at .*program.py",
    "other operation": r"rank 1 has called broadcast by central of float64\[8\], root=0, at ",
}


@pytest.mark.parametrize("fault", MISMATCHES)
def test_debug_mode_compares_collectives(fault):
    done = run("-n", "2", PROGRAM, fault, MINIDIST_DEBUG="1")
    assert done.returncode == 1, done.stdout
    assert "CollectiveMismatch" in done.stderr, done.stderr
    assert re.search(MISMATCHES[fault], done.stderr), done.stderr


RESTARTED = """
import os, sys
from pathlib import Path
from minidist import launch
from minidist.comm.environment import launched_size

restart, kept = int(os.environ["MINIDIST_RESTART"]), Path(sys.argv[1])

def main(comm):
    done = int(kept.read_text()) if kept.exists() else 0  # a stand-in for a checkpoint
    comm.barrier()
    for step in range(done, 6):
        if comm.rank == 1 and step == 2 * restart + 1 and restart < 2:
            os.kill(os.getpid(), 9)
        comm.barrier()
        if comm.rank == 0:
            aside = kept.with_suffix(".new")
            aside.write_text(str(step + 1))
            aside.replace(kept)
    return done

found = launch(main)
sys.stdout.write(f"restart {restart} ranks {launched_size()} from {found[0]}\\n")
"""


def test_restarts_go_on_from_what_was_kept_with_fewer_ranks_if_they_may(tmp_path):
    script = tmp_path / "again.py"
    script.write_text(RESTARTED)
    job = ("-n", "3", "--restarts", "2", "--min-ranks", "2", str(script), str(tmp_path / "kept"))
    done = run(*job)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {"restart 2 ranks 2 from 3"}, done.stdout
    assert "restart 1 of 2, with 2 ranks" in done.stderr


def processes(marker: str) -> str:
    """The commands of all processes that have this argument."""
    done = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True)
    return "\n".join(line for line in done.stdout.splitlines() if marker in line)


COMPARE = ["compare", "--world", "mpi", "--ranks", "2", "--steps", "100000", "--batch", "20"]
LONG = {
    "run": ["run", "-n", "2", PROGRAM, "sleep in a launch"],
    "compare": [*COMPARE, "--methods", "serial", "--out"],
}


@pytest.mark.parametrize("name", LONG)
def test_a_signal_goes_to_all_ranks_and_nothing_is_left(tmp_path, name):
    marker = str(tmp_path / f"marker-{os.getpid()}")
    with subprocess.Popen(
        [sys.executable, "-m", "minidist", *LONG[name], marker],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as job:  # fmt: skip
        while processes(marker).count("minidist.run.rank") < 3:  # mpiexec and two ranks
            time.sleep(0.1)
        job.terminate()
        _, printed = job.communicate(timeout=LIMIT)
    assert job.returncode == 128 + 15
    assert "the job was ended by SIGTERM" in printed, printed
    assert processes(marker) == ""
