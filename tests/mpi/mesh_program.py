"""Meshes of real ranks, each against serial training and its own formula.

python -m tests.mpi.mesh_program 8      starts 2, 4 and 8 ranks: a job of make long
mpiexec -n 4 python -m mpi4py -m tests.mpi.mesh_program      one of each kind, in make test

The job runs, on each number of ranks, combinations in which every pair of choices occurs that can
occur there (combinations.py), all of them in one start.
"""

from __future__ import annotations

import sys
from time import perf_counter

from minidist import launch
from minidist.comm.launcher import launched_size
from minidist.comm.mpi.world import MpiWorld
from minidist.parallel import MeshParallel
from tests.parallel.mesh.combinations import KEPT, SEQUENCE, WHOLE, Combination, covering_pairs
from tests.parallel.tensor.checks import check_equals_serial, check_predictions


def some(ranks):
    """A few meshes in which each choice occurs."""
    half = ranks // 2
    yield Combination(2, 1, half, 1, "gpipe", SEQUENCE, "adamw")
    yield Combination(1, 2, half, 0, "zero_bubble_h1", KEPT, "momentum")
    yield Combination(2, half, 1, 3, "interleaved", WHOLE, "adamw")
    yield Combination(half, 1, 2, 2, "one_f_one_b", WHOLE, "momentum", "mlp")


def main(comm):
    every = "every" in sys.argv
    chosen = covering_pairs(comm.size) if every else list(some(comm.size))
    start = perf_counter()
    for one in chosen:
        check_equals_serial(comm, MeshParallel, one.task())
        check_predictions(comm, MeshParallel, one.task())
        if comm.rank == 0 and every:
            print(f"{perf_counter() - start:.0f} s: passed {one}", flush=True)
    if comm.rank == 0:
        print(f"passed {len(chosen)} meshes of {comm.size} ranks")


if __name__ == "__main__":
    if launched_size() is None:
        from tests.mpi.run import mpiexec

        for ranks in (2, 4, 8):
            if ranks <= int(sys.argv[1]):
                done = mpiexec(ranks, "-m", "tests.mpi.mesh_program", "every", timeout=7200)
                print(done.stdout, done.stderr, sep="", flush=True)
                if done.returncode:
                    sys.exit(done.returncode)
    else:
        launch(main, world=MpiWorld())
