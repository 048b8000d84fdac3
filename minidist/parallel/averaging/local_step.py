"""A local step: a rank trains on its own shard, and does not send its gradient.

This is the common part of local SGD and gossip. As in data parallelism, each rank has the whole
model and takes a shard of each batch; but it steps with its own gradient. Then parameters are
averaged: ``average_after`` of the method decides with which ranks, and how often.

A rank's gradient is multiplied by the number of ranks, so that the average of the ranks' steps,
over shards of any lengths, is the step of the global mean. The loss that ``step`` returns, 8 bytes,
is all-reduced in every step; training does not use it.
"""

from __future__ import annotations

import numpy as np

from minidist.collectives import ring
from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch, Dataset
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.versions import written
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.evaluation import with_values
from minidist.parallel.method import Method, StepCost
from minidist.parallel.model_costs import (
    frozen_count,
    largest_saved,
    parameter_count,
    training_seconds,
)
from minidist.parallel.state import State, by_parameter, mean_optimizer, own_replica


class LocalSteps(Method):
    """Base of the methods that step alone and average parameters in ``average_after``."""

    exact = False
    changeable = Method.changeable | {"microbatches"}
    refuses = Method.refuses | {
        "clip": "every rank steps with its own gradient, so no rank knows the whole norm"
    }

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
        self.model = model.init(seed)
        optimizer.bind(self.model.flat.slices)

    def train_on(self, batch: Batch) -> float:
        self.model.zero_grad()
        loss = np.array([self.accumulate(batch.shard(self.comm.rank, self.comm.size))])
        self.model.flat.grad *= self.comm.size
        self.update()
        self.average_after(self.steps)
        ring.all_reduce(self.comm, loss)
        return float(loss[0])

    def average_after(self, step: int) -> None:
        """Average parameters with other ranks, if the method does so after this step."""
        raise TypeError(f"{type(self).__name__} does not define average_after()")

    def average(self, data: Array) -> None:
        """The mean over all ranks, in place."""
        ring.all_reduce(self.comm, data)
        data /= self.comm.size
        written(data)

    def parameters(self) -> dict[str, np.ndarray]:
        """The average of all ranks' models, which is the result of training. Changes no model."""
        flat = self.model.flat
        mean = flat.data.copy()
        self.average(mean)
        return self.in_order(by_parameter(arrays.to_host(mean), flat.slices, self.model))

    def evaluate(self, dataset: Dataset, chunk: int = 1000) -> tuple[float, float]:
        """(mean loss, accuracy) of the average of all ranks' models."""
        data = self.model.flat.data
        mean = data.copy()
        self.average(mean)
        with with_values(data, mean):
            return super().evaluate(dataset, chunk)

    def own_arrays(self) -> dict[str, Array]:
        return own_replica(self.model.flat.data, self.optimizer)

    def optimizer_state(self, kept: State) -> State:
        """The mean of the ranks' optimizer states."""
        return mean_optimizer(kept, self.optimizer, self.whole)

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Compute, the averages (``plan``), and the loss."""
        ranks, series = range(self.comm.size), Series(machine, self.comm.size)
        shards = [batch.shard(r, self.comm.size).microbatches(self.microbatches) for r in ranks]
        series.compute([training_seconds(self.whole, shards[r], machine, r) for r in ranks])
        self.plan(series, self.steps)
        series.all_reduce(1, 8)
        n = parameter_count(self.whole) * self.itemsize
        peak = {
            "parameters": [n + frozen_count(self.whole) * self.itemsize for _ in ranks],
            "gradients": [n for _ in ranks],
            "optimizer": [len(self.optimizer.slots) * n for _ in ranks],
            "activations": [
                largest_saved(self.whole, shard, self.itemsize, self.loss) for shard in shards
            ],
        }
        return StepCost(series.messages, series.nbytes, peak, series.busy, series.seconds)

    def plan(self, series: Series, step: int) -> None:
        """Add the messages of ``average_after`` to ``series``."""
        raise TypeError(f"{type(self).__name__} does not define plan()")
