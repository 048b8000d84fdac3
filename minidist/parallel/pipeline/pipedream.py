"""PipeDream: a pipeline that never waits for the optimizer, and remembers weights instead.

In 1F1B every stage steps once, after the last microbatch, and idles until then. PipeDream steps
after *every* backward:

    stage 0  F0 F1 F2 B0 S F3 B1 S . .     F3 goes forward with weights that have seen B0 alone
    stage 1  .  F0 F1 ...                  stage 1's F3 has seen B0 and B1
    stage 2  .  .  F0 B0 S F1 B1 S ...     stage 2's F3 has seen B0, B1 and B2

Two things are then no longer as in serial training. First, weights are *stale*: with p stages, a
microbatch meets weights on stage s that lack the last p - 1 - s updates. Second, stages are of
different ages. One thing must hold all the same: a microbatch's backward uses the very weights
that its forward used, or what it computes is the gradient of nothing. That is *weight stashing*:
an update writes into a copy, if microbatches are under way that still need the old weights.

    memory   as 1F1B, and up to p - s versions of the weights on stage s
    time     as 1F1B while m microbatches last; over a whole training the pipeline never drains

Here it drains at the end of each ``step``, so that all ranks know the loss: a step of m
microbatches is m small updates, each by its part of the global mean loss. With one microbatch, or
one stage, nothing is stale. What staleness costs: in 240 steps of 128 images on Fashion-MNIST
(4 stages, m = 4, SGD 0.05 with momentum 0.9), the mean loss of the last 40 steps is 0.45, where
serial training reaches 0.40. Narayanan et al., "PipeDream", SOSP'19, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.nn.layers import Sequential
from minidist.nn.loss import Loss
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import StepCost
from minidist.parallel.model_costs import parameter_count
from minidist.parallel.pipeline.instructions import Backward, Forward, Step
from minidist.parallel.pipeline.pipeline import Pipeline
from minidist.parallel.pipeline.stages import Bounds, part_cost


class PipeDream(Pipeline):
    """A step of the optimizer after every microbatch, with weight stashing."""

    stashes = True
    exact = False  # it trains with stale weights
    unskippable = "a stage steps before the others know their gradients"
    refuses = Pipeline.refuses | {
        "clip": "a stage steps before the others know their gradients, so there is no whole norm",
    }

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        microbatches: int = 4,
        bounds: Bounds | None = None,
        costs: Sequence[float] | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__(
            model, loss, optimizer, comm, seed, "pipedream", microbatches, bounds, costs, clip=clip
        )
        if shared := [*self.layout.tied, *(first.name for first, _ in self.separated)]:
            raise ValueError(
                f"PipeDream takes no tied parameters, such as {shared[0]}: its stages are of "
                "different ages, so two copies of one parameter would differ"
            )

    def update(self) -> None:
        """One microbatch's update, into a copy if others under way need the weights as they are."""
        if self.run.outputs:
            self.renew()
        super().update()
        self.model.zero_grad()

    def renew(self) -> None:
        """Go on with a copy of the weights. The tapes under way keep the old array alive."""
        flat = self.model.flat
        flat.hold_values(flat.data_and_loss.copy())

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """That of 1F1B, and with the activations the copies of weights that they belong to."""
        cost = super().cost(batch, machine)
        peaks = [self._peak(stage, batch) for stage in range(self.layout.stages)]
        return replace(cost, peak_bytes=cost.peak_bytes | {"activations": peaks})

    def _peak(self, stage: int, batch: Batch) -> int:
        """Bytes of activations and stashed weights, at the highest."""
        layout = self.layout
        weights = parameter_count(layout.stage_models[stage])
        stashed = (weights + 1) * self.itemsize if weights else 0  # with the slot for a loss
        parts = batch.microbatches(self.microbatches)
        last = stage == layout.stages - 1
        version = peak = 0
        under_way: dict[int, tuple[int, int]] = {}  # bytes and version, by microbatch
        for instruction in layout.programs[stage]:
            match instruction:
                case Forward(microbatch):
                    kept = part_cost(
                        layout.parts[stage],
                        layout.shapes_of(parts[microbatch])[stage],
                        self.itemsize,
                        self.loss if last else None,
                        first=stage == 0,
                        recompute=False,
                    )
                    under_way[microbatch] = kept.memory.saved, version
                    # Version 0 is the array that the stage keeps between steps: not counted twice.
                    versions = {version for _, version in under_way.values()} - {0}
                    saved = sum(nbytes for nbytes, _ in under_way.values())
                    peak = max(peak, saved + stashed * len(versions))
                case Backward(microbatch):
                    del under_way[microbatch]
                case Step():
                    version += bool(under_way)
        return peak
