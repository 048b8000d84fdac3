"""Serial training: one rank does everything. Every exact method must give the same result.

    rank 0   batch → forward → loss → backward → gradient → optimizer step → next batch

Nothing is sent. With Ψ parameters of e bytes:

    memory   Ψe of parameters, Ψe of gradients, the optimizer's state (Adam: 2Ψe), all activations
    time     T_f + T_b, forward and backward of the whole batch, and the optimizer's step

``microbatches`` cuts the batch into parts, whose gradients are added one after the other. A
pipeline adds in the same order, so its result has the same bits. For the same reason, if several
blocks share a parameter (GPT's embedding), each use then gets a separate gradient; the two are
added at the end of the step. See ``shared_parameters.py``.
"""

from __future__ import annotations

from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import Method, StepCost
from minidist.parallel.model_costs import (
    frozen_count,
    largest_saved,
    parameter_count,
    training_seconds,
)
from minidist.parallel.shared_parameters import separate
from minidist.parallel.shares import Share


class Serial(Method):
    """The whole model on one rank. Raises ValueError if ``comm`` has more than one."""

    changeable = Method.changeable | {"microbatches"}

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        if comm.size != 1:
            raise ValueError(
                f"serial training is for one rank, not {comm.size}: pass comm.split(comm.rank)"
            )
        self.model = model.init(seed)
        optimizer.bind(self.model.flat.slices)
        self.separated = separate(self.model) if microbatches > 1 else []

    def train_on(self, batch: Batch) -> float:
        self.model.zero_grad()
        for _, later in self.separated:
            later.grad.fill(0)
        loss = self.accumulate(batch)
        for first, later in self.separated:
            first.accumulate(later.grad)
        self.update()
        return loss

    def state_shares(self) -> list[Share]:
        return self.own_shares()

    def changed(self, name: str) -> None:
        if self.microbatches > 1 and not self.separated:
            self.separated = separate(self.model)

    def arrays(self) -> dict[str, list[Array]]:
        arrays = super().arrays()
        arrays["gradients"] += [later.grad for _, later in self.separated]
        return arrays

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Sends nothing, never waits; memory: parameters, gradients, optimizer state."""
        n = parameter_count(self.whole) * self.itemsize
        parts = batch.microbatches(self.microbatches)
        seconds = training_seconds(self.model, parts, machine, 0)
        extra = sum(later.size for _, later in self.separated) * self.itemsize
        return StepCost(
            messages=[0],
            nbytes=[0],
            peak_bytes={
                "parameters": [n + frozen_count(self.whole) * self.itemsize],
                "gradients": [n + extra],
                "optimizer": [len(self.optimizer.slots) * n],
                "activations": [largest_saved(self.model, parts, self.itemsize, self.loss)],
            },
            busy=[seconds],
            seconds=seconds,
        )
