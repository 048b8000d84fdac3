"""Pipelines of every schedule and model, on the ranks that mpiexec started.

Run by test_methods_mpi.py: the checks are those of tests/parallel/pipeline/test_pipeline.py.
"""

from functools import partial

import numpy as np

from minidist import launch
from minidist.comm.mpi.world import MpiWorld
from minidist.engine.array import defaults
from minidist.parallel import Buckets, ReduceScatter, ReduceScatterUnits, SymmetricMemory
from tests.parallel.pipeline.test_pipedream import check_pipedream
from tests.parallel.pipeline.test_pipeline import (
    MODELS,
    SYNCHRONOUS,
    adam,
    assert_equal,
    pipeline,
    serial,
    train,
)


def check_syncs(comm, model, dataset, expected):
    """Replicas whose gradients come together in other ways than by one all-reduce."""
    for sync in (partial(Buckets, 1e-3, 0), ReduceScatter, ReduceScatterUnits, SymmetricMemory):
        method = pipeline(comm, model, microbatches=3, replicas=2, sync=sync)
        assert_equal(train(method, dataset, batch=13), expected, bound=1e-12)
        again = pipeline(comm, model, microbatches=3, replicas=2, sync=sync)
        again.load(method.state())
        got, wanted = again.state(), method.state()
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def main(comm):
    for name, (model, dataset) in MODELS.items():
        for microbatches in (1, 2, 3, 9):
            expected = serial(comm, model, dataset, microbatches, adam)
            for schedule in SYNCHRONOUS:
                for recompute in {False, microbatches == 3}:
                    options = {"schedule": schedule, "microbatches": microbatches}
                    method = pipeline(comm, model, adam, recompute=recompute, **options)
                    assert_equal(train(method, dataset), expected)
        with defaults(dtype="float64"):
            expected = serial(comm, model, dataset, 1, batch=13)
            for replicas in range(1, comm.size + 1):
                if comm.size % replicas == 0:
                    method = pipeline(comm, model, microbatches=3, replicas=replicas)
                    assert_equal(train(method, dataset, batch=13), expected, bound=1e-12)
            if comm.size in (2, 4):
                check_syncs(comm, model, dataset, expected)
        if comm.rank == 0:
            print(f"passed {name} on {comm.size} ranks")
    for microbatches in (1, 4, 9):
        check_pipedream(comm, microbatches)
    if comm.rank == 0:
        print(f"passed pipedream on {comm.size} ranks")


launch(main, world=MpiWorld())
