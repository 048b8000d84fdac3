"""The MLP of ``minidist bench scaling`` on up to 256 ranks of named machines, in one process.

Weak scaling: each rank has a whole batch. Two tricks keep this cheap, and do not change the virtual
times:

- A rank computes *one* sample of its batch of b, on a machine 1/b as fast: the clock charges
  FLOPs / speed, and the FLOPs of a batch are b times those of a sample.
- All ranks share one array for their parameters, and one for their gradients. The numbers in them
  are meaningless, but times depend on lengths only.

The prediction runs one rank for all, on shapes (``simulate(..., fold=...)``), so that it takes each
ring's closed formula. The tests check that the times of both are equal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from minidist.bench.scaling_jobs import BUCKET_MB, JOBS
from minidist.comm.comm import Comm
from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalWorld
from minidist.comm.machine import Machine, profile
from minidist.data import Batches
from minidist.nn import CrossEntropy
from minidist.nn.layers import Sequential
from minidist.optim import SGD
from minidist.parallel import Method, Overlapped, simulate

RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
# One shared-memory machine, a cluster on 1 Gbit/s Ethernet, and one GPU of each HGX node.
MACHINES = [profile("laptop"), profile("gigabit"), profile("hgx").network_level()]


def virtual(largest: int) -> list[dict[str, Any]]:
    """Rows: machine and ranks; seconds of one step on the virtual clock, and by the formula."""
    return [
        {"machine": machine.name, "ranks": ranks, **_step(machine, ranks)}
        for machine in MACHINES
        for ranks in RANKS
        if ranks <= largest
    ]


def _step(machine: Machine, ranks: int) -> dict[str, float]:
    job = JOBS["mlp"]
    slower = replace(machine, flops=machine.flops / job.batch)
    batch = Batches(job.data(ranks), ranks)[0]
    memory: list[Any] = []  # of all ranks

    def run(comm: Comm) -> float:
        model = job.model()
        for parameter in model.parameters():
            parameter.initialiser = _nothing
        method = Overlapped(model, CrossEntropy(), SGD(0.0), comm, bucket_mb=BUCKET_MB)
        method.guard(not_finite="go on")  # the sum of the shared array overflows
        _share(method.model, memory)
        comm.barrier()
        start = comm.time()
        with np.errstate(all="ignore"):
            method.step(batch)
        return comm.time() - start

    def make(comm: Comm) -> Method:
        return Overlapped(job.model(), CrossEntropy(), SGD(0.0), comm, bucket_mb=BUCKET_MB)

    batches = Batches(job.data(ranks), ranks)
    found = simulate(make, batches, ranks, slower, fold={"dp": ranks})
    seconds = max(launch(run, ranks, LocalWorld(slower)))
    return {"seconds": seconds, "predicted_seconds": found.step_seconds}


def _nothing(random: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)


def _share(model: Sequential, memory: list[Any]) -> None:
    """Put the model into ``memory``, which the first rank allocates."""
    flat = model.flat
    if not memory:
        memory += [flat.data_and_loss, flat.grad_and_loss]
    flat.hold_values(memory[0])
    flat.hold_gradients(memory[1])
