"""Data parallelism: every rank holds the whole model and works on its part of the batch.

    rank 0   shard 0 → forward, backward → gradient 0 ╮
    rank 1   shard 1 → forward, backward → gradient 1 ├ all-reduce: every rank has the sum
    rank 2   shard 2 → forward, backward → gradient 2 ╯ → the same optimizer step everywhere

The loss of a shard is divided by the number of targets of the *global* batch, so the sum over
ranks is exactly the gradient of the global mean, whatever the shards' lengths. Nothing is divided
by the number of ranks: whoever averages the averages of uneven shards computes something else.
All ranks start from one seed and take equal steps, so the copies never part.

With p ranks, Ψ parameters of e bytes and a ring (one element more, for the loss):

    messages a rank  2(p - 1)
    bytes a rank     about 2(Ψ + 1)e(p - 1)/p
    memory a rank    as serial, but 1/p of the activations
    time             compute/p + 2(p - 1)α + 2(Ψ + 1)e(p - 1)/p·β + (Ψ + 1)e(p - 1)/p·γ

Li et al., "PyTorch Distributed", arXiv 2006.15704, section 3.1.
"""

from __future__ import annotations

from minidist.collectives import all_reduce, all_reduce_cost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import (
    Method,
    StepCost,
    parameter_count,
    saved_bytes,
    training_flops,
)


class DataParallel(Method):
    """One all-reduce of all gradients a step; ``algorithm`` names it."""

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        algorithm: str = "ring",
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        self.algorithm = algorithm
        self.model = model.init(seed)

    def step(self, batch: Batch) -> float:
        flat = self.model.flat
        self.model.zero_grad()
        loss = self.forward_backward(batch.shard(self.comm.rank, self.comm.size))
        flat.grad_and_loss[-1] = loss  # the loss rides in the slot after the gradients
        with self.comm.step("all-reduce"):
            all_reduce(self.comm, flat.grad_and_loss, algorithm=self.algorithm)
        self.update()
        return float(flat.grad_and_loss[-1])

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """The formula above, with the exact bytes of uneven chunks and shards.

        The time adds up because the slowest rank, the first, also starts the longest chunk.
        """
        ranks = range(self.comm.size)
        psi = parameter_count(self.whole)
        wire = [
            all_reduce_cost(
                psi + 1, self.itemsize, rank, self.comm.size, machine, algorithm=self.algorithm
            )
            for rank in ranks
        ]
        shapes = [
            (len(batch.shard(rank, self.comm.size)), *batch.dataset.input_shape) for rank in ranks
        ]
        compute = [
            machine.compute(sum(training_flops(self.model, shapes[rank])), rank) for rank in ranks
        ]
        n = psi * self.itemsize
        return StepCost(
            messages=[cost.messages for cost in wire],
            nbytes=[cost.nbytes for cost in wire],
            peak_bytes={
                "parameters": [n for _ in ranks],
                "gradients": [n for _ in ranks],
                "optimizer": [len(self.optimizer.slots) * n for _ in ranks],
                "activations": [
                    saved_bytes(self.model, shape, self.itemsize, self.loss) for shape in shapes
                ],
            },
            busy=[compute[rank] + machine.reduce(wire[rank].reduced) for rank in ranks],
            seconds=max(compute) + max(cost.seconds for cost in wire),
        )
