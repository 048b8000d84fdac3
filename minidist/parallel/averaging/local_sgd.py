"""Local SGD: each rank trains alone for H steps; then all average their parameters.

    rank 0   ●─●─●─●╮   ╭●─●─●─●╮   ╭●
    rank 1   ●─●─●─●┤avg├●─●─●─●┤avg├●     H = 4 steps between averages
    rank 2   ●─●─●─●╯   ╰●─●─●─●╯   ╰●

Each rank follows the gradients of its own shards, so the models diverge. The larger H, the less is
sent, and the more the averaged models have diverged. "Post-local" SGD: the first ``start`` steps
use H = 1, while the gradients are large (Lin et al., arXiv 1808.07217).

DiLoCo uses the change of the average since the last one as a *gradient*, Δ = before - average, for
an outer optimizer with Nesterov momentum. This allows an H of several hundred steps.

With Ψ parameters of e bytes and p ranks:

    bytes a rank    2Ψe(p - 1)/p every H steps, so 1/H of data parallelism's
    memory a rank   as data parallelism; DiLoCo keeps the last average and a velocity: 2Ψe more
    exact if        H = 1 and the optimizer is linear in the gradient (SGD, momentum); for DiLoCo
                    also the outer optimizer must be plain SGD with learning rate 1

A rank's gradient is multiplied by p, so that the average of the ranks' steps, over shards of any
lengths, is the step of the global mean. (The loss that ``step`` returns, 8 bytes, is all-reduced in
every step; training does not use it.) Stich, arXiv 1805.09767, algorithm 1; Douillard et al.,
"DiLoCo", arXiv 2311.08105, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minidist.collectives.series import Series
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.nn.loss import Loss
from minidist.nn.module import Module
from minidist.optim import Nesterov
from minidist.optim.optimizer import Optimizer
from minidist.parallel.averaging.local_step import LocalSteps
from minidist.parallel.method import StepCost
from minidist.parallel.model_costs import parameter_count
from minidist.parallel.state import State, own


class LocalSGD(LocalSteps):
    """``every`` local steps between averages; before step ``start``, an average after each step.

    Raises ValueError if ``every`` is below 1.
    """

    changeable = LocalSteps.changeable | {"every", "start"}

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        every: int = 8,
        start: int = 0,
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        self.check_setting("every", every)
        self.every = every
        self.start = start

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        if name == "every" and value < 1:
            raise ValueError(f"local SGD averages every 1 or more steps, not {value}")

    def averages_after(self, step: int) -> bool:
        """Whether the ranks average after this step; ``every`` counts from ``start``."""
        return step < self.start or (step - self.start + 1) % self.every == 0

    def average_after(self, step: int) -> None:
        """Give all ranks the same parameters, if this step ends with an average."""
        if self.averages_after(step):
            with self.comm.step("average"):
                self.average_models()

    def average_models(self) -> None:
        self.average(self.model.flat.data)

    def plan(self, series: Series, step: int) -> None:
        if self.averages_after(step):
            series.all_reduce(parameter_count(self.whole), self.itemsize)


class DiLoCo(LocalSGD):
    """Local SGD in which an ``outer`` optimizer steps with the change of the average."""

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        every: int = 8,
        start: int = 0,
        outer: Callable[[], Optimizer] = lambda: Nesterov(0.7, momentum=0.9),
        microbatches: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, every, start, microbatches, clip)
        self.outer = outer()
        self.outer.bind(self.model.flat.slices)
        self.anchor = self.model.flat.data.copy()  # the common parameters after the last average
        self.outer.prepare(self.outer.only_part(), self.anchor)

    def average_models(self) -> None:
        flat = self.model.flat
        self.average(flat.data)
        outer_gradient = flat.grad  # its memory is free until the next step
        outer_gradient[...] = self.anchor
        outer_gradient -= flat.data
        self.outer.step(self.anchor, outer_gradient)
        flat.data[...] = self.anchor
        flat.written()

    def own_arrays(self) -> dict[str, Array]:
        outer = {f"outer/{slot}": array for slot, array in self.outer.only_part().state.items()}
        steps = np.array(self.outer.steps)
        return super().own_arrays() | {"anchor": self.anchor, "outer/count": steps} | outer

    def load(self, state: State) -> None:
        super().load(state)
        kept = own(self.comm, state)
        if "outer/count" in kept:
            self.outer.steps = int(kept["outer/count"])
        else:  # saved on another number of ranks, or by another method
            self.anchor[...] = self.model.flat.data

    def arrays(self) -> dict[str, list[Array]]:
        arrays = super().arrays()
        arrays["parameters"].append(self.anchor)
        arrays["optimizer"] += self.outer.arrays()
        return arrays

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        cost = super().cost(batch, machine)
        n = parameter_count(self.whole) * self.itemsize
        for kind, more in (("parameters", n), ("optimizer", len(self.outer.slots) * n)):
            cost.peak_bytes[kind] = [nbytes + more for nbytes in cost.peak_bytes[kind]]
        return cost
