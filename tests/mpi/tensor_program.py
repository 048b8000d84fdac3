"""Ops that send and tensor parallelism, on the ranks that mpiexec started."""

from functools import partial

from minidist import launch
from minidist.comm.mpi.world import MpiWorld
from minidist.parallel import TensorParallel
from tests.ops.collectives_checks import check_all
from tests.parallel.tensor.checks import (
    MLP,
    Task,
    adamw,
    check_equals_serial,
    check_predictions,
    small_gpt,
)


def main(comm):
    check_all(comm)
    for task in (
        Task(),
        Task(optimizer=adamw, options={"overlap": False}),
        Task(options={"sequence": True, "microbatches": 2}),
        Task(options={"sequence": True, "keep": True}),
        Task(model=partial(small_gpt, groups=2), optimizer=adamw),
        Task(**MLP),
    ):
        check_equals_serial(comm, TensorParallel, task)
        check_predictions(comm, TensorParallel, task)
    if comm.rank == 0:
        print("passed")


launch(main, world=MpiWorld())
