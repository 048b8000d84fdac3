"""Pipeline parallelism: every rank holds a stage, some consecutive blocks of the model.

    microbatch → stage 0 → activations → stage 1 → activations → stage 2 → loss
                 rank 0  ←  gradients  ← rank 1  ←  gradients  ← rank 2

A stage receives its input, computes, and sends its output on; backward the same in reverse, since
the backward of a send is a receive. To keep all stages at work the batch is cut into
microbatches; in which order a stage works on them is its schedule (``schedules.py``). Any schedule
will do: here it becomes a program for each stage, is proved to be one that can run (``prover.py``),
priced (``cost.py``) and run (``executor.py``).

A rank sends activations and their gradients only, never parameters: for each microbatch of b rows
and a boundary of h values, b·h elements to the right and as many to the left, and one element,
the loss, at the end. Memory: a stage's own parameters, gradients and optimizer state, and what the
schedule keeps of activations. Time: see ``pricing.price``, which reads the same program.

Parameters that two stages share (GPT's embedding) live on both, take the sum of both gradients,
and so stay equal. With ``replicas`` = d there are d copies of the pipeline, each for its part of
the batch: rank r is stage r % p of copy r // p. A stage's gradients come together over the copies
by ``sync`` (``gradient_sync.py``); by default each chunk is all-reduced as soon as it is complete,
while other stages still go backward. To clip, the stages all-reduce 8 bytes: the squared norm.

Huang et al., "GPipe", arXiv 1811.06965; Narayanan et al., arXiv 2104.04473, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minidist.collectives import central
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.data_parallel.all_reduce import AllReduce
from minidist.parallel.gradient_sync import GradientSync, Sync, make_sync
from minidist.parallel.method import Method, StepCost
from minidist.parallel.model_costs import parameter_count
from minidist.parallel.pipeline.cost import price_step, replicas_of, step_cost
from minidist.parallel.pipeline.executor import Executor, OwnStage
from minidist.parallel.pipeline.layout import make_layout
from minidist.parallel.pipeline.programs import program
from minidist.parallel.pipeline.schedules import SCHEDULES, Schedule
from minidist.parallel.pipeline.stages import Bounds
from minidist.parallel.pipeline.stopwatch import Price
from minidist.parallel.shared_parameters import separate


class Pipeline(Method):
    """Rank r is stage r. ``schedule`` is a name in ``SCHEDULES``, or a Schedule of your own.

    The model is cut into a part for each chunk of each stage, as even in FLOPs as can be, or by
    other ``costs`` of its blocks, or by hand: ``bounds=[(0, 3), (3, 8)]`` makes blocks 0 to 2 the
    first part and 3 to 7 the second. ``recompute`` keeps only a part's input of a microbatch, and
    goes forward again when it goes backward.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Module,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        schedule: str | Schedule = "gpipe",
        microbatches: int = 4,
        bounds: Bounds | None = None,
        costs: Sequence[float] | None = None,
        recompute: bool = False,
        replicas: int = 1,
        sync: Sync | None = None,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed)
        if isinstance(schedule, str):
            if schedule not in SCHEDULES:
                known = ", ".join(SCHEDULES)
                raise ValueError(f"unknown schedule {schedule!r}: choose one of {known}")
            schedule = SCHEDULES[schedule]
        if microbatches < 1:
            raise ValueError(f"a pipeline needs at least one microbatch, not {microbatches}")
        if replicas < 1 or comm.size % replicas:
            raise ValueError(f"{comm.size} ranks cannot be {replicas} equal pipelines")
        self.microbatches = microbatches
        self.clip = clip
        self.layout = make_layout(
            model,
            schedule,
            comm.size // replicas,
            replicas,
            microbatches,
            recompute,
            bounds,
            costs,
            clip is not None,
            program,
        )
        self.stage, self.replica = comm.rank % self.layout.stages, comm.rank // self.layout.stages
        self.pipe = comm.split(self.replica) if replicas > 1 else comm
        copies = comm.split(self.stage) if replicas > 1 else None
        self.sync = self._make_sync(sync, copies)
        self.model = self.layout.stage_models[self.stage]  # only this stage is given memory
        self.sync.bind(
            self.model,
            optimizer,
            copies or self.pipe,
            seed,
            sums_loss=False,
            clips=clip is not None,
            apart=self.layout.apart(self.stage),
        )
        self.separated = separate(self.model)
        holds_tied = self.stage in self.layout.tied_stages
        partners = self.pipe.split(int(holds_tied)) if self.layout.tied else None
        self.own = OwnStage(
            self.layout,
            self.stage,
            self.model,
            self.separated,
            loss,
            self.sync,
            self.pipe,
            copies,
            partners,
            clip,
            self.update,
        )
        self.stage_replicas = [
            replicas_of(self.layout, stage, self.itemsize, optimizer, clip is not None)
            for stage in range(self.layout.stages)
        ]
        self._prices: dict[Any, Price] = {}

    def _make_sync(self, sync: Sync | None, copies: Comm | None) -> GradientSync:
        """The part by which the copies' gradients come together; without copies, none is needed."""
        if copies is None:
            if sync is not None:
                raise ValueError("sync brings the gradients of replicas together: pass replicas=2")
            return GradientSync()
        made = AllReduce() if sync is None else make_sync(sync)
        name = type(made).__name__
        if made.hooks_forward:
            raise ValueError(
                f"{name} must see the forward of the whole model, and a pipeline's microbatches "
                "accumulate: take ReduceScatterUnits, which is ZeRO 2 for that"
            )
        if made.whole_array and self.layout.tied and copies.size > 2:
            raise ValueError(
                f"{name} adds up three and more replicas in an order that depends on where a "
                f"parameter lies, so the copies of {self.layout.tied[0]}, on stages "
                f"{list(self.layout.tied_stages)}, would differ: take ReduceScatterUnits"
            )
        return made

    # One step

    def step(self, batch: Batch) -> float:
        self.run = run = Executor(self.own, self.layout.microbatches_of(batch, self.replica))
        for _, later in self.separated:
            later.grad.fill(0)  # type: ignore[union-attr]
        self.sync.begin(batch.step)
        for instruction in self.layout.programs[self.stage]:
            run.do(instruction)
        run.finish()
        return float(run.loss[0])

    def update(self) -> None:
        """One step of the optimizer on this stage; the gradients are clipped already."""
        self.sync.update()

    def holds(self) -> dict[str, list[Array]]:
        arrays = self.sync.arrays()
        arrays["gradients"] += [later.grad for _, later in self.separated]
        return arrays

    def parameters(self) -> dict[str, np.ndarray]:
        """Every stage sends its own to all others."""
        found: dict[str, np.ndarray] = {}
        flat = self.model.flat.data
        for rank, stage in enumerate(self.layout.stage_models):
            data = (
                flat.copy()
                if rank == self.stage
                else arrays.module_of(flat).empty(parameter_count(stage), flat.dtype)
            )
            central.broadcast(self.pipe, data, root=rank)
            start = 0
            for name, parameter in stage.named_parameters().items():
                part = data[start : start + parameter.size]
                found[name] = arrays.to_host(part).reshape(parameter.declared)
                start += parameter.size
        return {name: found[name] for name in self.whole.named_parameters()}

    # What it costs

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Priced from the programs themselves; and what ``sync`` sends and keeps."""
        priced = self.price(batch, machine)
        return step_cost(self.layout, self.stage_replicas, self.sync, priced, machine)

    def price(self, batch: Batch, machine: Machine) -> Price:
        """What a step on ``batch`` should take, with every computation's start and end."""
        layout = self.layout
        parts = [layout.microbatches_of(batch, replica) for replica in range(layout.replicas)]
        key = tuple(len(part) for copy in parts for part in copy), repr(machine)
        if key not in self._prices:
            self._prices[key] = price_step(
                layout, self.stage_replicas, self.sync, self.loss, parts, machine
            )
        return self._prices[key]
