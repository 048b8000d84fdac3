"""Tensor parallelism: every rank holds a part of every layer, and all compute the same samples.

    rank 0   batch → its columns, its heads, its tokens ╮ sums inside each layer
    rank 1   batch → its columns, its heads, its tokens ╯ → one loss, the same on both

Layers that are too large or too slow for one rank are cut (``layers.py``); ``plan.py`` decides how
each parameter is cut. All ranks compute the same loss from the same batch. The sums over ranks are
inside the layers, in the forward and in the backward, so gradients need no sum at the end. Then
each rank steps the optimizer on its own parts.

With b samples of s tokens, h features, L blocks, t ranks, and e bytes an element:

    bytes a rank    8bshLe(t - 1)/t; besides, 4bshe(t - 1)/t for the embedding and the logits, and
                    6bse(t - 1)/t for the loss
    memory a rank   1/t of what is cut: parameters, gradients, optimizer state, and activations
                    inside attention and MLP; norms, residuals and dropout masks are whole
    with sequence   these are cut too, along the sequence: 1/t

Every layer waits for its sums, so the ranks should have fast links between them. Of the axes of a
mesh this is the innermost. Shoeybi et al., "Megatron-LM", arXiv 1909.08053, section 3; with
``sequence``: Korthikanti et al., arXiv 2205.05198, section 4.
"""

from __future__ import annotations

import math

import numpy as np

from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch, Dataset
from minidist.nn.layers import Sequential
from minidist.nn.losses import Loss
from minidist.optim.clip import norm_of
from minidist.optim.optimizer import Optimizer
from minidist.parallel.evaluation import as_in_evaluation, means, sums_of
from minidist.parallel.method import Method, StepCost
from minidist.parallel.shares import Share, all_shares, box_share, whole_box
from minidist.parallel.state import State, load_optimizer, save_optimizer
from minidist.parallel.tensor.cost import step_cost
from minidist.parallel.tensor.part import (
    TensorPart,
    bind_norms,
    own_optimizer,
    whole_optimizer,
)
from minidist.parallel.tensor.plan import Plan


class TensorParallel(Method):
    """Rank r has part r of each cut parameter. ``plan``: patterns that change ``plan_for``.

    ``sequence``: norms, dropout and residuals are cut along the sequence, whose length the number
    of ranks must divide. ``keep``: then a layer keeps its gathered input, and does not gather it
    again. ``overlap``: a sum of input gradients runs while the weights' gradient is computed.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        microbatches: int = 1,
        clip: float | None = None,
        plan: Plan | None = None,
        sequence: bool = False,
        keep: bool = False,
        overlap: bool = True,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        self.part = TensorPart(model, loss, comm, plan, sequence, keep, overlap)
        self.model, self.loss = self.part.model.init(seed), self.part.loss
        optimizer.bind(self.model.flat.slices)
        bind_norms(optimizer, self.part)

    def check_targets(self, batch: Batch) -> None:
        self.part.check_targets(f"{type(self).__name__}.step", batch.dataset)

    def train_on(self, batch: Batch) -> float:
        self.model.zero_grad()
        loss = self.accumulate(batch)  # the same on every rank
        self.part.complete(self.model)
        self.update()
        return loss

    def update(self) -> None:
        """Clip by the norm of the whole gradient, and step the optimizer on this rank's parts."""
        flat = self.model.flat
        with self.comm.step("optimizer"):
            if self.clip is not None:
                norm = self.gradient_norm()
                if norm > self.clip:
                    flat.grad *= self.clip / norm
            self.optimizer.step(flat.data, flat.grad)

    def gradient_norm(self) -> float:
        """The whole gradient's norm: cut parameters count on every rank, others on the first."""
        flat, elsewhere = self.model.flat, self.part.elsewhere
        counted = [part for name, part in flat.slices.items() if name not in elsewhere]
        square = np.array([sum(norm_of(flat.grad[part]) ** 2 for part in counted)], np.float64)
        self.part.square_of_all(square)
        return math.sqrt(float(square[0]))

    @property
    def copies(self) -> int:
        return 1  # the batch is not cut

    def evaluate(self, dataset: Dataset, chunk: int = 1000) -> tuple[float, float]:
        """(mean loss, accuracy): every rank computes every chunk, with its parts of the layers."""
        self.part.check_targets(f"{type(self).__name__}.evaluate", dataset)
        with as_in_evaluation(self.model):
            sums = sums_of(self.forward, self.loss, dataset, chunk, 0, 1)
        return means(sums)

    # Saving and loading: with serial names and shapes

    def parameters(self) -> dict[str, np.ndarray]:
        return self.part.whole(super().parameters())

    def optimizer_state(self, kept: State) -> State:
        return whole_optimizer(self.part, save_optimizer(self.comm, self.optimizer_shards()))

    def state_shares(self) -> list[Share]:
        """This rank's parts of cut parameters; rank 0 writes the others."""
        shards, found = self.optimizer_shards(), list[Share]()
        flat, serial = self.model.flat, self.whole.named_parameters()
        kinds = {"parameters": flat.data}
        for shard in shards:
            kinds |= {f"optimizer/{slot}": array for slot, array in shard.part.state.items()}
        for kind, array in kinds.items():
            for name, parameter in self.model.named_parameters().items():
                values = array[flat.slices[name]].reshape(parameter.declared)
                cut, shape = self.part.cuts.get(name), serial[name].declared
                if cut is not None:
                    for box, inside in cut.boxes(shape, self.comm.rank):
                        found.append(box_share(f"{kind}/{name}", shape, box, values[inside]))
                elif self.comm.rank == 0:
                    found.append(box_share(f"{kind}/{name}", shape, whole_box(shape), values))
        own = self.own_arrays()
        return all_shares(self.comm, found, shards, self.steps, self.buffers(), own)

    def load_parameters(self, by_name: State) -> None:
        super().load_parameters(self.part.own(by_name))

    def load_optimizer(self, state: State) -> None:
        load_optimizer(self.comm, self.optimizer_shards(), own_optimizer(self.part, state))

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """By the formulas of ``cost.py``. The time has no formula: see the simulator."""
        return step_cost(
            self.part,
            self.optimizer,
            batch.microbatches(self.microbatches),
            self.clip is not None,
            self.itemsize,
            machine,
        )
