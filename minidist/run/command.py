"""The commands ``minidist run`` and ``minidist doctor``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from minidist.comm.errors import CommError
from minidist.run.supervisor import Job


def parser() -> argparse.ArgumentParser:
    """The arguments of ``minidist run``."""
    found = argparse.ArgumentParser(
        prog="minidist run",
        description="Run a script on MPI ranks, watch it to its end, and report what went wrong. "
        "The status is 0 only if every rank has finished.",
        epilog="In the script's environment: MINIDIST_RESTART, how often it was started again; "
        "MINIDIST_TIMEOUT, seconds that a rank may wait in one call; MINIDIST_DEBUG=1, compare "
        "each collective over the ranks. What stands on the input, or is typed, is rank 0's.",
    )
    found.add_argument("-n", "--ranks", type=int, default=4, help="how many ranks (default 4)")
    found.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="K",
        help="start again after a failure, up to K times; the script goes on from its checkpoint",
    )
    found.add_argument(
        "--min-ranks",
        type=int,
        metavar="M",
        help="restart without ranks that were killed, or whose machine is gone, down to M ranks",
    )
    found.add_argument("--hosts", metavar="FILE", help="host file, in the MPI library's own form")
    found.add_argument("--mpiexec", metavar="PATH", help="the launcher, such as srun, to use")
    found.add_argument("--threads", type=int, help="threads of each rank (default 1)")
    found.add_argument("-m", dest="module", action="store_true", help="the script is a module")
    found.add_argument("script", help="a Python program, or with -m a module")
    found.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    return found


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    options = parser().parse_args(arguments)
    program = [options.script, *options.arguments]
    try:
        job = Job(
            ["-m", *program] if options.module else program,
            options.ranks,
            restarts=options.restarts,
            min_ranks=options.min_ranks,
            hosts=options.hosts,
            threads=options.threads,
            mpiexec=options.mpiexec,
        )
        return job.run()
    except (ValueError, CommError) as error:
        print(f"minidist run: {error}", file=sys.stderr)
        return 2


def run_doctor(arguments: Sequence[str]) -> int:
    """Say what is on this machine; returns 1 if something should be done."""
    found = argparse.ArgumentParser(
        prog="minidist doctor",
        description="Say what there is for MPI on this machine, and what to do, by symptom.",
    )
    found.add_argument("--clean", action="store_true", help="remove what crashed jobs have left")
    options = found.parse_args(arguments)
    from minidist.run import doctor

    return doctor.show(options.clean)
