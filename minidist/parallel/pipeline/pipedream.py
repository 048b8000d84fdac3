"""PipeDream: a pipeline that steps after every microbatch, and keeps old versions of the weights.

In 1F1B every stage steps once, after the last microbatch, and the stages idle before it. PipeDream
steps after *every* backward:

    stage 0  F0 F1 F2 B0 S F3 B1 S . .     F3 uses weights with the update of B0 only
    stage 1  .  F0 F1 ...                  on stage 1, F3 uses the updates of B0 and B1
    stage 2  .  .  F0 B0 S F1 B1 S ...     on stage 2, F3 uses the updates of B0, B1 and B2

This differs from serial training. Weights are *stale*: with p stages, stage s computes a microbatch
with weights that lack the last p - 1 - s updates. And the stages' weights have different numbers of
updates. But a microbatch's backward must use the same weights as its forward; otherwise its result
is not a gradient. This is *weight stashing*: while any microbatch between its forward and backward
needs the old weights, an update writes into a copy.

    memory   as 1F1B, and up to p - s versions of the weights on stage s
    time     as 1F1B for m microbatches; in the paper a whole training is one run, without idling

Here a run ends with each ``step``, so that all ranks know the loss. A step of m microbatches makes
m small updates, each with its part of the global mean loss. With one microbatch or one stage
nothing is stale. Measured effect of staleness: in 240 steps of 128 images on Fashion-MNIST (4
stages, m = 4, SGD 0.05 with momentum 0.9), the mean loss of the last 40 steps is 0.45; serial
training reaches 0.40. Narayanan et al., "PipeDream", SOSP'19, section 3.3.
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
    """A step of the optimizer after every microbatch, with weight stashing.

    Raises ValueError for a model with tied parameters.
    """

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
                f"PipeDream takes no tied parameters, such as {shared[0]}: its stages have "
                "different numbers of updates, so two copies of one parameter would differ"
            )

    def update(self) -> None:
        """One microbatch's update: into a copy if other microbatches need the old weights."""
        if self.run.outputs:
            self.copy_weights()
        super().update()
        self.model.zero_grad()

    def copy_weights(self) -> None:
        """Continue with a copy of the weights; tapes of other microbatches keep the old array."""
        flat = self.model.flat
        flat.hold_values(flat.data_and_loss.copy())

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """That of 1F1B; stashed weights count as activations."""
        cost = super().cost(batch, machine)
        peaks = [self._peak(stage, batch) for stage in range(self.layout.stages)]
        return replace(cost, peak_bytes=cost.peak_bytes | {"activations": peaks})

    def _peak(self, stage: int, batch: Batch) -> int:
        """Peak bytes of activations and stashed weights."""
        layout = self.layout
        weights = parameter_count(layout.stage_models[stage])
        stashed = (weights + 1) * self.itemsize if weights else 0  # with the slot for a loss
        parts = batch.microbatches(self.microbatches)
        last = stage == layout.stages - 1
        version = peak = 0
        in_progress: dict[int, tuple[int, int]] = {}  # bytes and version, by microbatch
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
                    in_progress[microbatch] = kept.memory.saved, version
                    # Without version 0, the stage's own array: it counts as parameters.
                    versions = {version for _, version in in_progress.values()} - {0}
                    saved = sum(nbytes for nbytes, _ in in_progress.values())
                    peak = max(peak, saved + stashed * len(versions))
                case Backward(microbatch):
                    del in_progress[microbatch]
                case Step():
                    version += bool(in_progress)
        return peak
