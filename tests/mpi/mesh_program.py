"""Meshes of real ranks: training against serial and its formula, and answers to requests.

python -m tests.mpi.mesh_program 8      starts 2, 3, 4 and 8 ranks: a job of make long
mpiexec -n 4 python -m mpi4py -m tests.mpi.mesh_program      one of each kind, in make test

The job runs every combination (combinations.py) on its number of ranks, all of them in one start.
"""

from __future__ import annotations

import sys
from time import perf_counter

from minidist import launch
from minidist.comm.launcher import launched_size
from minidist.comm.mpi.world import MpiWorld
from minidist.parallel import MeshParallel
from tests.inference.checks import check_answers, check_serving, model, requests
from tests.parallel.mesh import combinations
from tests.parallel.mesh.combinations import KEPT, SEQUENCE, WHOLE, Combination
from tests.parallel.tensor.checks import check_equals_serial, check_predictions


def some(ranks):
    """A few meshes in which each choice occurs."""
    half = ranks // 2
    yield Combination(2, 1, half, 1, "gpipe", SEQUENCE, "adamw")
    yield Combination(1, 2, half, 0, "zero_bubble_h1", KEPT, "momentum")
    yield Combination(2, half, 1, 3, "interleaved", WHOLE, "adamw")
    yield Combination(half, 1, 2, 2, "1f1b", WHOLE, "momentum", "mlp")


def main(comm):
    every = "every" in sys.argv
    chosen = list(some(comm.size))
    if every:
        chosen = [one for one in combinations.every() if one.ranks == comm.size]
    start = perf_counter()
    for one in chosen:
        check_equals_serial(comm, MeshParallel, one.task())
        check_predictions(comm, MeshParallel, one.task())
        if comm.rank == 0 and every:
            print(f"{perf_counter() - start:.0f} s: passed {one}", flush=True)
    inside = [{"tp": comm.size}, {"pp": comm.size}] if comm.size <= 4 else []
    if comm.size == 4:
        inside.append({"pp": 2, "tp": 2})
    check_answers(comm, inside, model(), requests(6))
    check_serving(comm, {"dp": 3} if comm.size == 3 else {"dp": 2, "pp": comm.size // 2})
    if comm.rank == 0:
        print(f"passed {len(chosen)} meshes of {comm.size} ranks")


if __name__ == "__main__":
    if launched_size() is None:
        from tests.mpi.run import mpiexec

        for ranks in (2, 3, 4, 8):
            if ranks <= int(sys.argv[1]):
                done = mpiexec(ranks, "-m", "tests.mpi.mesh_program", "every", timeout=7200)
                print(done.stdout, done.stderr, sep="", flush=True)
                if done.returncode:
                    sys.exit(done.returncode)
    else:
        launch(main, world=MpiWorld())
