"""Data parallelism and ZeRO on the ranks that mpiexec started: run by test_methods_mpi.py.

What methods_program.py does not run: buckets of a few parameters, accumulation, clipping, bits,
a tied embedding, parameters that some ranks do not use, evaluation, and resuming on fewer ranks.
"""

from functools import partial

import numpy as np

from minidist import launch
from minidist.collectives import central
from minidist.comm import print_once
from minidist.comm.mpi.world import MpiWorld
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.inspect.metrics import accuracy, mean_loss
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import LAMB
from minidist.parallel import METHODS, Overlapped, evaluate
from tests.parallel.checks import (
    Setting,
    check_equals_serial,
    check_predictions,
    images,
    make,
    serial,
    train,
)
from tests.parallel.data_parallel.test_data_parallel import (
    FAMILY,
    TINY,
    VARIANTS,
    check_two_ranks_bitwise,
    check_unused,
)
from tests.parallel.test_clipping import CLIPPED, LIMIT, check_clipped, expected
from tests.parallel.zero.test_zero import STAGES, check_shared_table


def main(comm):
    for key, factory in VARIANTS.items():
        METHODS[key] = factory
        for batch in (13, 3):
            check_equals_serial(comm, key, Setting(batch=batch))
        check_predictions(comm, key, Setting())
    for key, factory in CLIPPED.items():
        METHODS[f"clipped {key}"] = partial(factory, clip=LIMIT)
        check_clipped(comm, key, Setting(), *EXPECTED)
    for key in FAMILY:
        bits(comm, key)
        if comm.size == 2:
            check_two_ranks_bitwise(comm, key, 13)
    for factory in (partial(Overlapped, bucket_mb=TINY, last_mb=0), *STAGES.values()):
        check_shared_table(comm, factory)
    check_unused(comm, partial(Overlapped, bucket_mb=TINY, last_mb=0))
    model = mlp(Setting().widths).init(1)
    got = evaluate(model, CrossEntropy(), images(31), comm, chunk=7)
    alone = mean_loss(model, CrossEntropy(), images(31)), accuracy(model, images(31))
    np.testing.assert_allclose(got, alone, rtol=1e-6)
    for key in ("data_parallel/ring", *STAGES):
        resume(comm, key)
    return "passed"


def bits(comm, key):
    """A repeated run is the same run, and all replicas are the same, in every bit."""
    setting = Setting(dtype="float32")
    with defaults(dtype="float32"):
        losses, states = train(make(key, comm, setting), setting)
        again = train(make(key, comm, setting), setting)
    assert losses == again[0], f"{key}: {losses} and then {again[0]}"
    for name, values in states[-1].items():
        assert np.array_equal(values, again[1][-1][name]), f"{key}: {name} is not repeated"
        first = values.copy()
        central.broadcast(comm, first)
        assert np.array_equal(values, first), f"{key}: {name} differs between ranks"


def resume(comm, key):
    """Saved by all ranks, loaded by all but one; serial if one is left."""
    setting = Setting(optimizer=lambda: LAMB(1e-2))
    batches = Batches(setting.dataset, setting.batch, setting.seed)
    with defaults(dtype="float64"):
        losses, _ = serial(comm, setting)
        method = make(key, comm, setting)
        for step in range(3):
            method.step(batches[step])
        state = method.state()
        fewer = comm.split(comm.rank < max(1, comm.size - 1))
        method = make(key, fewer, setting)
        method.load(state)
        got = [method.step(batches[step]) for step in range(3, 6)]
    np.testing.assert_allclose(got, losses[3:], rtol=1e-12)


EXPECTED = expected(Setting(), LIMIT)
print_once(*launch(main, world=MpiWorld())[:1])
