"""Two MPI ranks train on GPUs (one that they share, if there is one): losses equal serial's.

    mpiexec -n 2 python tests/gpu/two_ranks.py cuda

Prints one line of JSON for each method: the gap to serial, bytes sent and bytes staged through
host memory by rank 0, and ms a step.
"""

import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import strict

from minidist import launch
from minidist.comm import print_once
from minidist.data import Batches, fashion_mnist
from minidist.engine import array as arrays
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import (
    DataParallel,
    Overlapped,
    ParameterServer,
    Pipeline,
    Serial,
    Zero2,
    Zero3,
)

STEPS = 10
METHODS = (DataParallel, Overlapped, Zero2, Zero3, ParameterServer, Pipeline)


def train(method_type, comm):
    """Losses, and what the steps after the first one cost."""
    method = method_type(mlp(), CrossEntropy(), SGD(0.05, momentum=0.9), comm, seed=0)
    batches = Batches(fashion_mnist()[0], 128)
    losses = [method.step(batches[0])]
    start, sent, staged = time.perf_counter(), comm.trace.sent.nbytes, comm.trace.sent.staged
    losses += [method.step(batches[step]) for step in range(1, STEPS)]
    each = STEPS - 1
    return losses, {
        "bytes": (comm.trace.sent.nbytes - sent) // each,
        "staged": (comm.trace.sent.staged - staged) // each,
        "ms": 1e3 * (time.perf_counter() - start) / each,
    }


def main(comm):
    arrays.DEVICES["strict"] = lambda: strict
    with arrays.defaults(dtype="float64", device=sys.argv[1]):
        expected, _ = train(Serial, comm.split(comm.rank))
        for method_type in METHODS:
            losses, row = train(method_type, comm)
            gap = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
            row = {"method": method_type.__name__, "gap": gap} | row
            print_once(json.dumps(row), flush=True)
            assert gap < 1e-12, row


launch(main, 2)
