"""Every check of every method, on the ranks that mpiexec started: run by test_methods_mpi.py."""

from minidist import launch
from minidist.comm.mpi.world import MpiWorld
from minidist.parallel import METHODS
from tests.parallel.checks import Setting, check_equals_serial, check_predictions, is_exact


def main(comm):
    for key in METHODS:
        if key == "serial":
            continue
        if is_exact(key):
            for dtype in ("float64", "float32"):
                check_equals_serial(comm, key, Setting(batch=13, dtype=dtype))
            check_equals_serial(comm, key, Setting(batch=3))
        check_predictions(comm, key, Setting(batch=13))
        if comm.rank == 0:
            print(f"passed {key} on {comm.size} ranks")


launch(main, world=MpiWorld())
