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

from minidist.collectives import all_reduce, central
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch, Dataset
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.layers import Sequential
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer
from minidist.parallel.blocks import is_list_of_blocks
from minidist.parallel.data_parallel.all_reduce import AllReduce
from minidist.parallel.evaluation import as_in_evaluation, counts, mean_over_ranks
from minidist.parallel.gradient_sync import GradientSync, Sync, make_sync
from minidist.parallel.method import Method, StepCost
from minidist.parallel.model_costs import parameter_count, parameter_slices
from minidist.parallel.pipeline.cost import price_step, replicas_of, step_cost
from minidist.parallel.pipeline.executor import Executor, OwnStage
from minidist.parallel.pipeline.layout import make_layout
from minidist.parallel.pipeline.programs import program
from minidist.parallel.pipeline.schedules import SCHEDULES, Schedule
from minidist.parallel.pipeline.stages import Bounds
from minidist.parallel.pipeline.stopwatch import Price
from minidist.parallel.shared_parameters import separate
from minidist.parallel.state import State, by_parameter, load_optimizer, save_optimizer


class Pipeline(Method):
    """Rank r is stage r. ``schedule`` is a name in ``SCHEDULES``, or a Schedule of your own.

    The model is cut into a part for each chunk of each stage, as even in FLOPs as can be, or by
    other ``costs`` of its blocks, or by hand: ``bounds=[(0, 3), (3, 8)]`` makes blocks 0 to 2 the
    first part and 3 to 7 the second. ``recompute`` keeps only a part's input of a microbatch, and
    goes forward again when it goes backward.
    """

    stashes = False  # whether microbatches keep the weights that they went forward through

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
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        if not is_list_of_blocks(model):
            raise TypeError(
                f"{type(self).__name__} cuts a model between blocks that compute one after the "
                f"other, and only its forward knows what a {type(model).__name__} does: write it "
                "as Sequential(block, block, ...), or take a method that does not cut it, such as "
                "DataParallel or Zero3"
            )
        if isinstance(schedule, str):
            if schedule not in SCHEDULES:
                known = ", ".join(SCHEDULES)
                raise ValueError(f"unknown schedule {schedule!r}: choose one of {known}")
            schedule = SCHEDULES[schedule]
        if replicas < 1 or comm.size % replicas:
            raise ValueError(f"{comm.size} ranks cannot be {replicas} equal pipelines")
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
            one_step=not self.stashes,
            write=program,
        )
        self.stage, self.replica = comm.rank % self.layout.stages, comm.rank // self.layout.stages
        self.pipe = comm.split(self.replica) if replicas > 1 else comm
        copies = comm.split(self.stage) if replicas > 1 else None
        self.sync = self._make_sync(sync, copies)
        self.model = self.layout.stage_models[self.stage]  # only this stage is allocated
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

    def arrays(self) -> dict[str, list[Array]]:
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

    def buffers(self) -> dict[str, np.ndarray]:
        """Every stage's buffers, of the first copy of the pipeline."""
        found: dict[str, np.ndarray] = {}
        for stage, model in enumerate(self.layout.stage_models):
            for name, buffer in model.named_buffers().items():
                mine = stage == self.comm.rank  # the ranks of the first copy come first
                values = (
                    arrays.to_host(buffer.data).copy()
                    if mine
                    else np.empty(buffer.declared, self.model.flat.data.dtype)
                )
                central.broadcast(self.comm, values, root=stage)
                found[name] = values
        return {name: found[name] for name in self.whole.named_buffers()}

    def evaluate(self, dataset: Dataset, chunk: int = 1000) -> tuple[float, float]:
        """(mean loss, accuracy): each copy's shard of each chunk passes through its stages."""
        sums = np.zeros(3)
        with as_in_evaluation(self.model):
            for whole in dataset.chunks(chunk):
                shard = whole.shard(self.replica, self.layout.replicas)
                output = self._pass_through(shard)
                if output is not None:
                    sums += counts(output, self.loss, shard)
        return mean_over_ranks(self.comm, sums)

    def _pass_through(self, batch: Batch) -> Tensor | None:
        """The model's output, on the rank that holds the last part."""
        layout, x = self.layout, None
        flat, shapes = self.model.flat.data, layout.shapes_of(batch)
        for part, model in enumerate(layout.parts):
            if layout.stage_of(part) != self.stage:
                continue
            if part == 0:
                x = as_tensor(batch.inputs)
            elif layout.stage_of(part - 1) != self.stage:
                x = Tensor(arrays.module_of(flat).empty(shapes[part], flat.dtype))
                self.pipe.recv(x.data, layout.stage_of(part - 1))
            x = model(x)
            if part + 1 == len(layout.parts):
                return x
            if layout.stage_of(part + 1) != self.stage:
                following = layout.stage_of(part + 1)
                self.pipe.send(arrays.module_of(flat).ascontiguousarray(x.data), following)
        return None

    # Saving and loading

    def optimizer_state(self, kept: State) -> State:
        """Every stage tells all others its own."""
        assert self.sync.comm is not None
        mine = save_optimizer(self.sync.comm, self.sync.optimizer_shards())
        steps = np.array([mine.get("steps", 0)], np.int64)  # a stage may have no parameters
        all_reduce(self.pipe, steps, "max")
        found: State = {"steps": np.array(int(steps[0]))}
        for slot in self.optimizer.slots if steps[0] else ():
            for stage, model in enumerate(self.layout.stage_models):
                slices, dtype = parameter_slices(model), self.model.flat.data.dtype
                flat = np.empty(parameter_count(model), dtype)
                if stage == self.stage:
                    for name, part in slices.items():
                        flat[part] = mine[f"optimizer/{slot}/{name}"].reshape(-1)
                central.broadcast(self.pipe, flat, root=stage)
                cut = by_parameter(flat, slices, model)
                found |= {f"optimizer/{slot}/{name}": value for name, value in cut.items()}
        return found

    def load_optimizer(self, state: State) -> None:
        assert self.sync.comm is not None
        load_optimizer(self.sync.comm, self.sync.optimizer_shards(), state)

    def own_arrays(self) -> dict[str, Array]:
        return self.sync.own_arrays()

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
