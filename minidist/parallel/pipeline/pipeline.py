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
the batch: rank r is stage r % p of copy r // p, and a stage's gradients are summed over the copies
as soon as they are complete, while other stages still go backward.

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
from minidist.nn.module import Module, Shape
from minidist.optim.optimizer import Optimizer
from minidist.parallel.method import Method, StepCost, parameter_count
from minidist.parallel.pipeline.cost import price_step
from minidist.parallel.pipeline.executor import Run
from minidist.parallel.pipeline.programs import program
from minidist.parallel.pipeline.prover import validate
from minidist.parallel.pipeline.schedules import (
    SCHEDULES,
    Schedule,
)
from minidist.parallel.pipeline.stages import (
    Bounds,
    block_flops,
    cut,
    join,
    separate,
    tied,
)
from minidist.parallel.pipeline.stopwatch import Price


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
        self.schedule = schedule
        self.microbatches = microbatches
        self.recompute = recompute
        self.replicas = replicas
        self.size = comm.size // replicas  # stages
        self.stage = comm.rank % self.size
        self.replica = comm.rank // self.size
        self.pipe = comm.split(self.replica) if replicas > 1 else comm
        self.copies = comm.split(self.stage) if replicas > 1 else None

        self.bounds = bounds or self._cut(costs)
        self._check_bounds()
        self.parts = [model[start:stop] for start, stop in self.bounds]
        self.stages = [
            join([self.parts[schedule.part(stage, c, self.size)] for c in range(schedule.chunks)])
            for stage in range(self.size)
        ]
        self.model = self.stages[self.stage].init(seed)  # only this stage is given memory
        self.twins = separate(self.model)
        self.shared = tied(self.stages)
        self._check_shared()
        holders = sorted({stage for where in self.shared.values() for stage in where})
        self.tied_stages = holders
        self.partners = self.pipe.split(int(self.stage in holders)) if holders else None

        reduce = [("replicas", replicas > 1), ("loss", replicas > 1)]
        programs = []
        for stage in range(self.size):
            needs = [*reduce, ("tied", stage in holders)]
            names = tuple(name for name, needed in needs if needed)
            programs.append(program(schedule, stage, self.size, microbatches, names))
        validate(programs, schedule, microbatches)
        self.programs = programs
        self._prices: dict[Any, Price] = {}
        self._free: dict[Shape, list[Array]] = {}  # buffers to receive into

    # Cutting

    def _cut(self, costs: Sequence[float] | None) -> Bounds:
        """As even as can be.

        Of more chunks than blocks that compute anything, the last stay empty: they pass on.
        """
        costs = block_flops(self.whole) if costs is None else costs
        parts = self.size * self.schedule.chunks
        full = parts
        if self.schedule.chunks > 1:
            full = min(parts, max(self.size, sum(cost > 0 for cost in costs)))
        return [*cut(costs, full), *[(len(costs), len(costs))] * (parts - full)]

    def _check_bounds(self) -> None:
        parts = self.size * self.schedule.chunks
        ends = [0, *(stop for _, stop in self.bounds)]
        starts = [*(start for start, _ in self.bounds), len(self.whole)]
        if ends != starts or len(self.bounds) != parts:
            raise ValueError(
                f"bounds {self.bounds} must cut {len(self.whole)} blocks into consecutive "
                f"(start, stop) parts, {self.schedule.chunks} for each of {self.size} stages"
            )

    def _check_shared(self) -> None:
        if len({tuple(where) for where in self.shared.values()}) > 1:
            raise ValueError(
                f"stages share parameters in several ways, {self.shared}: cut by hand, so that "
                "the same stages share all of them"
            )

    # One step

    def step(self, batch: Batch) -> float:
        self.run = run = Run(self, batch)
        for _, twin in self.twins:
            twin.grad.fill(0)  # type: ignore[union-attr]
        self.model.zero_grad()
        for instruction in self.programs[self.stage]:
            run.do(instruction)
        run.finish()
        return float(run.loss[0])

    def microbatches_of(self, batch: Batch, replica: int) -> list[Batch]:
        """The microbatches of one copy of the pipeline."""
        return batch.shard(replica, self.replicas).microbatches(self.microbatches)

    def shapes_of(self, part: Batch) -> list[Shape]:
        """The shape of every part's input for a microbatch: no message needs to tell."""
        first: Shape = (len(part), *part.dataset.input_shape)
        blocks = self.whole.costs(first)
        return [first if start == 0 else blocks[start - 1].shape for start, _ in self.bounds]

    def flat_tied(self) -> list[slice]:
        """Where this stage's shared parameters lie."""
        return [self.model.flat.slices[name] for name in self.shared]

    def chunk_range(self, stage: int, chunk: int) -> tuple[int, int]:
        """Where a chunk's parameters lie in its stage's flat array.

        A parameter that two chunks of a stage share belongs to the chunk that is finished last.
        """
        schedule = self.schedule
        parts = [self.parts[schedule.part(stage, c, self.size)] for c in range(schedule.chunks)]
        ends = [parameter_count(join(parts[: c + 1])) for c in range(schedule.chunks)]
        return ([0, *ends])[chunk], ends[chunk]

    def holds(self) -> dict[str, list[Array]]:
        held = super().holds()
        held["gradients"] += [twin.grad for _, twin in self.twins]
        return held

    def parameters(self) -> dict[str, np.ndarray]:
        """Every stage sends its own to all others."""
        found: dict[str, np.ndarray] = {}
        flat = self.model.flat.data
        for rank, stage in enumerate(self.stages):
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
        """Priced from the programs themselves."""
        priced = self.price(batch, machine)
        ranks = range(self.comm.size)
        own = [parameter_count(stage) * self.itemsize for stage in self.stages]
        twins = [_twin_count(stage) * self.itemsize for stage in self.stages]
        own_by_rank = [own[rank % self.size] for rank in ranks]
        return StepCost(
            messages=priced.messages,
            nbytes=priced.nbytes,
            peak_bytes={
                "parameters": own_by_rank,
                "gradients": [own[rank % self.size] + twins[rank % self.size] for rank in ranks],
                "optimizer": [len(self.optimizer.slots) * n for n in own_by_rank],
                "activations": priced.peak_saved,
            },
            busy=priced.busy,
            seconds=priced.seconds,
        )

    def price(self, batch: Batch, machine: Machine) -> Price:
        """What a step on ``batch`` should take, with every computation's start and end."""
        parts = [self.microbatches_of(batch, replica) for replica in range(self.replicas)]
        key = tuple(len(part) for copy in parts for part in copy), repr(machine)
        if key not in self._prices:
            self._prices[key] = price_step(self, parts, machine)
        return self._prices[key]


def _twin_count(stage: Sequential) -> int:
    """Elements of the extra gradients that ``separate`` makes."""
    apart = sum(parameter_count(block) for block in stage.blocks.values())
    return apart - parameter_count(stage)
