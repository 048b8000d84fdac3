"""Every check of every method, on the ranks that mpiexec started: run by test_methods_mpi.py."""

from functools import partial
from importlib.util import find_spec

import numpy as np

from minidist import launch
from minidist.comm.mpi.world import MpiWorld
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import METHODS, Overlapped
from minidist.privacy import PRIVATE_METHODS, FederatedAveraging, SecureFederatedAveraging
from tests.parallel.checks import (
    Setting,
    check_equals_serial,
    check_predictions,
    images,
    is_exact,
)
from tests.parallel.test_models import recomputed

SMALL_BUCKETS = partial(Overlapped, bucket_mb=0, last_mb=0)  # one for each parameter
WITH_RECOMPUTATION = ("data_parallel/overlapped", "zero/2", "zero/3", "pipeline/1f1b")


def check_recomputed(comm, key):
    """A layer used in two recomputed blocks, whose gradient is sent while the backward runs."""

    def trained(key, comm):
        with defaults(dtype="float64"):
            make = METHODS[key] if key[:4] != "data" else SMALL_BUCKETS
            method = make(recomputed(), CrossEntropy(), SGD(0.1), comm, 3)
            for step in range(4):
                method.step(Batches(images(), 13, 3)[step])
            return method.parameters()

    expected = trained("serial", comm.split(comm.rank))
    for name, values in trained(key, comm).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-10, atol=1e-13, err_msg=key)


def check_federated(comm):
    """One local step of all clients is synchronous training; secure sums send what they should."""
    METHODS["one step"] = partial(FederatedAveraging, clients=7)
    check_equals_serial(comm, "one step", Setting(batch=13))
    if find_spec("cryptography"):
        METHODS["secure"] = partial(SecureFederatedAveraging, clients=7, local_batch=1)
        check_predictions(comm, "secure", Setting(batch=13, steps=2))


def main(comm):
    check_federated(comm)
    METHODS.update(PRIVATE_METHODS)
    for key in METHODS:
        if "/" not in key:
            continue
        if is_exact(key):
            for dtype in ("float64", "float32"):
                check_equals_serial(comm, key, Setting(batch=13, dtype=dtype))
            check_equals_serial(comm, key, Setting(batch=3))
        check_predictions(comm, key, Setting(batch=13))
        if key in WITH_RECOMPUTATION:
            check_recomputed(comm, key)
        if comm.rank == 0:
            print(f"passed {key} on {comm.size} ranks")


if __name__ == "__main__":
    launch(main, world=MpiWorld())
