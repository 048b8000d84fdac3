"""Meshes of real ranks, each against serial training and its own formula.

python -m tests.mpi.mesh_program 8      starts 1, 2, 4 and 8 ranks: a job of make long
mpiexec -n 4 python -m mpi4py -m tests.mpi.mesh_program      one of each kind, in make test
"""

from __future__ import annotations

import sys
from itertools import product

from minidist import launch
from minidist.comm.launcher import launched_size
from minidist.comm.mpi.world import MpiWorld
from minidist.parallel import MeshParallel
from tests.parallel.tensor.checks import MLP, Task, adamw, check_equals_serial, check_predictions

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble_h1")


def some(ranks):
    """A few meshes in which each choice occurs."""
    half = ranks // 2
    yield {"dp": 2, "tp": half}, {"zero": 1, "sequence": half > 1}, {}
    yield {"pp": 2, "tp": half}, {"schedule": "zero_bubble_h1", "sequence": half > 1}, {}
    yield {"dp": 2, "pp": half}, {"zero": 3, "schedule": "interleaved"}, {}
    yield {"dp": half, "tp": 2}, {"zero": 2 * (half > 1)}, MLP


def every(ranks):
    for dp, pp, tp in product((1, 2), repeat=3):
        if dp * pp * tp != ranks:
            continue
        for zero, schedule, sequence in product(range(4), SCHEDULES, (False, True)):
            if (zero and dp == 1) or (sequence and tp == 1):
                continue
            options = {"zero": zero, "schedule": schedule, "sequence": sequence}
            yield {"dp": dp, "pp": pp, "tp": tp}, options, {}
            if not sequence:
                yield {"dp": dp, "pp": pp, "tp": tp}, options, MLP


def main(comm):
    count = 0
    for mesh, options, more in (every if "every" in sys.argv else some)(comm.size):
        options = {"mesh": mesh, "microbatches": 2, **options}
        for optimizer in {} if more else {"optimizer": adamw}, {}:
            check_equals_serial(comm, MeshParallel, Task(**more | optimizer, options=options))
        check_predictions(comm, MeshParallel, Task(**more, options=options))
        count += 1
        if comm.rank == 0 and "every" in sys.argv:
            print("passed", options, "mlp" if more else "gpt", flush=True)
    if comm.rank == 0:
        print(f"passed {count} meshes of {comm.size} ranks")


if __name__ == "__main__":
    if launched_size() is None:
        from tests.mpi.run import mpiexec

        for ranks in (1, 2, 4, 8):
            if ranks <= int(sys.argv[1]):
                done = mpiexec(ranks, "-m", "tests.mpi.mesh_program", "every", timeout=7200)
                print(done.stdout, done.stderr, sep="", flush=True)
                if done.returncode:
                    sys.exit(done.returncode)
    else:
        launch(main, world=MpiWorld())
