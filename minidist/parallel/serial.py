"""Serial training: one rank does everything. The oracle that every other method must equal.

``microbatches`` cuts the batch into parts whose gradients add up one after the other, as they do
in a pipeline: the order of the additions is then the same, and so is every bit of the result.
For the same reason the uses of a parameter that several blocks share (GPT's embedding) are then
summed apart, and brought together at the end: see ``pipeline/stages.py``.
"""

from __future__ import annotations

from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array
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
from minidist.parallel.pipeline.stages import separate
from minidist.parallel.resume import Resumable


class Serial(Resumable, Method):
    """The whole model on one rank. Sends nothing, and never waits."""

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        if comm.size != 1:
            raise ValueError(
                f"serial training is for one rank, not {comm.size}: pass comm.split(comm.rank)"
            )
        self.microbatches = microbatches
        self.clip = clip
        self.model = model.init(seed)
        optimizer.bind(self.model.flat.slices)
        self.twins = separate(self.model) if microbatches > 1 else []

    def step(self, batch: Batch) -> float:
        self.model.zero_grad()
        for _, twin in self.twins:
            twin.grad.fill(0)  # type: ignore[union-attr]
        loss = 0.0
        for microbatch in batch.microbatches(self.microbatches):
            loss += self.forward_backward(microbatch)
        for first, twin in self.twins:
            first.accumulate(twin.grad)
        self.update()
        return loss

    def holds(self) -> dict[str, list[Array]]:
        held = super().holds()
        held["gradients"] += [twin.grad for _, twin in self.twins]
        return held

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Nothing is sent: Ψ parameters, as many gradients, the optimizer's state, no idling."""
        n = parameter_count(self.whole) * self.itemsize
        shapes = [
            (len(part), *batch.dataset.input_shape)
            for part in batch.microbatches(self.microbatches)
        ]
        seconds = sum(machine.compute(sum(training_flops(self.model, shape))) for shape in shapes)
        return StepCost(
            messages=[0],
            nbytes=[0],
            peak_bytes={
                "parameters": [n],
                "gradients": [n + sum(twin.size for _, twin in self.twins) * self.itemsize],
                "optimizer": [len(self.optimizer.slots) * n],
                "activations": [
                    max(
                        saved_bytes(self.model, shape, self.itemsize, self.loss) for shape in shapes
                    )
                ],
            },
            busy=[seconds],
            seconds=seconds,
        )
