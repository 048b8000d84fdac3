"""Fifty jobs that crash in a row, with 64 MB in /dev/shm; then one that does not.

    python -m tests.faults.shm 50 --private     # in a mount of its own, which needs root

Each crashes at another place, with shared memory in use. ``minidist run`` removes what they leave.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from tempfile import NamedTemporaryFile

from minidist.comm.mpi.room import SHARED, shared_memory_left
from tests.mpi.run import ROOT

CRASH = """
import os, sys, time
import numpy as np
from minidist import launch
from minidist.collectives import all_reduce

def main(comm):
    array = np.ones(1 << 18)
    all_reduce(comm, array, algorithm="shared_memory")
    if comm.rank == 0 and sys.argv[1] != "fine":
        time.sleep(0.02 * (int(sys.argv[1]) % 7))
        os.kill(os.getpid(), (9, 11, 6)[int(sys.argv[1]) % 3])
    all_reduce(comm, array, algorithm="shared_memory")

launch(main)
"""


def job(script: str, which: str) -> int:
    command = [sys.executable, "-m", "minidist", "run", "-n", "2", script, which]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, timeout=120, check=False
    ).returncode


def job_when_full() -> str:
    """What a job says that has no room to start."""
    filler = f"{SHARED}/filler"
    with open(filler, "wb") as file:
        file.write(bytes(int(shared_memory_left())))
    command = [sys.executable, "-m", "minidist", "run", "-n", "2", "-m", "this"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    os.unlink(filler)
    return f"with {SHARED} full: status {done.returncode}, {done.stderr.strip()}"


def main(jobs: int) -> int:
    full = job_when_full()
    with NamedTemporaryFile("w", suffix=".py", delete=False) as file:
        file.write(CRASH)
    script = file.name
    start, least = time.monotonic(), shared_memory_left()
    statuses = []
    for number in range(jobs):
        statuses.append(job(script, str(number)))
        least = min(least, shared_memory_left())
    last = job(script, "fine")
    print(full)
    print(
        f"{jobs} crashing jobs in {time.monotonic() - start:.0f} s, {statuses.count(0)} with "
        f"status 0; {SHARED}: at least {least / 2**20:.1f} MB were left, now "
        f"{shared_memory_left() / 2**20:.1f} MB and {len(os.listdir(SHARED))} files; the job that "
        f"does not crash has status {last}"
    )
    os.unlink(script)
    return int(last != 0 or 0 in statuses or "to start" not in full)


if __name__ == "__main__":
    if sys.argv[2:] == ["--private"]:
        inside = (
            f"mount -t tmpfs -o size=64m tmpfs {SHARED} && exec {sys.executable} -m {__spec__.name}"
        )
        os.execvp("unshare", ["unshare", "--mount", "sh", "-c", f"{inside} {sys.argv[1]}"])
    sys.exit(main(int(sys.argv[1])))
