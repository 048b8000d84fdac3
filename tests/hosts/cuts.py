"""Cut the cable between two machines at a random moment, again and again: does everything end?

    python -m tests.hosts.cuts 10

For each cut: when it was, how long ``minidist run`` took to end after it, and how long until no
process of the job was left on either machine. Fails if that takes more than 60 s.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from minidist.run.launcher import mpi4py_library
from tests.hosts.machines import Machines, running

LIMIT = 60.0  # seconds


def main(cuts: int, seed: int = 0) -> int:
    open_mpi, worst = mpi4py_library() == "Open MPI", 0.0
    moments = random.Random(seed)
    for number in range(cuts):
        with Machines() as machines:
            machines.use(open_mpi)
            marker = str(machines.folder / "job")
            command = ("run", "-n", "4", "--hosts", machines.hosts, "tests/hosts/program.py")
            with machines.start(*command, "600", marker, open_mpi=open_mpi) as job:
                begun, wait = time.monotonic(), moments.uniform(0.5, 8)
                while number % 5 and not Path(marker).exists() and job.poll() is None:
                    time.sleep(0.02)  # four of five cuts come when it is under way
                time.sleep(wait)
                machines.cut()
                start = time.monotonic()
                wait = start - begun
                try:
                    printed, _ = job.communicate(timeout=2 * LIMIT)
                except subprocess.TimeoutExpired:
                    job.kill()
                    printed, _ = job.communicate()
                ended = time.monotonic() - start
                while running(marker) and time.monotonic() - start < 2 * LIMIT:
                    time.sleep(0.2)
                seconds = time.monotonic() - start
            worst = max(worst, seconds)
            why = [line for line in printed.splitlines() if line.startswith(("rank", "the "))]
            print(
                f"cut {number + 1} after {wait:.1f} s: minidist run ended {ended:.1f} s later with "
                f"status {job.returncode}, the last process {seconds:.1f} s later: {why[:1]}",
                flush=True,
            )
            if job.returncode == 0 or running(marker):
                print(printed)
                return 1
    print(f"{cuts} cuts: the last process was gone after at most {worst:.1f} s")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
