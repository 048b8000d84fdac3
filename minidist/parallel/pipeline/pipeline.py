"""Pipeline parallelism: every rank holds one stage, some consecutive blocks of the model.

    microbatch → stage 0 → activations → stage 1 → activations → stage 2 → loss
                 rank 0  ←  gradients  ← rank 1  ←  gradients  ← rank 2

A stage receives its input, computes, and sends its output to the next stage. The backward does the
same in reverse, since the backward of a send is a receive. The batch is cut into microbatches, so
that all stages can work at the same time. A stage's schedule is the order in which it works on them
(``schedules.py``). ``programs.py`` makes a program for each stage, ``prover.py`` proves that the
programs can run, ``cost.py`` counts their cost, and ``executor.py`` runs them.

A rank sends, for each microbatch of b rows and h values at the boundary between stages, b·h
elements forward and b·h backward; the loss is one element. Memory: the stage's parameters,
gradients and optimizer state, and the activations that the schedule keeps. Time:
``parallel.simulate``; of a schedule without a model: ``price_units``.

If two stages share a parameter (GPT's embedding), both have a copy and step it with the sum of both
gradients, so the copies stay equal. With ``replicas`` = d there are d equal pipelines, each with
its shard of the batch: rank r is stage r % p of replica r // p. ``sync`` (``gradient_sync.py``)
sums a stage's gradients over the replicas; by default each chunk's when they are complete, while
other stages continue. For clipping, the stages all-reduce the squared norm: 8 bytes.

Huang et al., "GPipe", arXiv 1811.06965; Narayanan et al., arXiv 2104.04473, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.engine.array import Array
from minidist.nn.attention import CausalSelfAttention
from minidist.nn.layers import Sequential
from minidist.nn.loss import Loss
from minidist.nn.signature import signature
from minidist.optim.optimizer import Optimizer
from minidist.parallel.blocks import is_list_of_blocks
from minidist.parallel.data_parallel.all_reduce import AllReduce
from minidist.parallel.gradient_sync import GradientSync, Replicas, Sync, make_sync
from minidist.parallel.mesh.mesh import Mesh, check_batch_norm
from minidist.parallel.method import StepCost
from minidist.parallel.pipeline.cost import replicas_of, step_cost, tally_step
from minidist.parallel.pipeline.executor import Executor
from minidist.parallel.pipeline.layout import Layout, even_bounds, make_layout
from minidist.parallel.pipeline.mesh_cost import machine_of, mesh_cost
from minidist.parallel.pipeline.programs import program
from minidist.parallel.pipeline.schedules import SCHEDULES, Schedule
from minidist.parallel.pipeline.stage_sums import OwnStage
from minidist.parallel.pipeline.stages import Bounds
from minidist.parallel.pipeline.tally import Tally
from minidist.parallel.pipeline.whole_model import WholeModel
from minidist.parallel.shared_parameters import separate
from minidist.parallel.tensor.part import TensorCut, TensorPart, bind_norms


class Pipeline(WholeModel):
    """Rank r is stage r. ``schedule`` is a name in ``SCHEDULES``, or a ``Schedule``.

    The model is cut into one part for each chunk of each stage, with FLOPs as equal as possible.
    ``costs`` gives other costs of the blocks. ``bounds=[(0, 3), (3, 8)]`` sets the parts: blocks 0
    to 2, and 3 to 7. With ``recompute`` a microbatch keeps only the input of a part, and the
    backward computes the forward again; ``recompute="attention"`` does this for attention's weights
    only, which need much memory for long sequences and little time.

    Raises TypeError for a model that is not a list of blocks; ValueError for settings that do not
    fit each other or the ranks; ScheduleError for a schedule that cannot run.
    """

    stashes = False  # whether a microbatch's backward uses the weights of its forward

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        comm: Comm,
        seed: int = 0,
        schedule: str | Schedule = "gpipe",
        microbatches: int = 4,
        bounds: Bounds | None = None,
        costs: Sequence[float] | None = None,
        recompute: bool | str = False,
        replicas: int = 1,
        sync: Sync | None = None,
        clip: float | None = None,
        tensor: TensorCut | None = None,
    ) -> None:
        super().__init__(model, loss, optimizer, comm, seed, microbatches, clip)
        if not is_list_of_blocks(model):
            raise TypeError(
                f"{type(self).__name__} cuts a model between blocks that compute one after the "
                f"other, and a {type(model).__name__} has a forward of its own: write it as "
                "Sequential(block, block, ...), or use a method that does not cut the model, such "
                "as DataParallel or Zero3"
            )
        if isinstance(schedule, str):
            try:
                schedule = SCHEDULES[schedule]
            except KeyError:
                known = ", ".join(SCHEDULES)
                raise ValueError(f"unknown schedule {schedule!r}: choose one of {known}") from None
        if recompute not in (False, True, "attention"):
            raise ValueError(f'recompute is False, True or "attention", not {recompute!r}')
        if recompute == "attention":
            for module in model.named_modules().values():
                if isinstance(module, CausalSelfAttention):
                    module.recompute = True
        each = replicas * (1 if tensor is None else tensor.ranks)
        if each < 1 or comm.size % each:
            parts = "" if tensor is None else f" of stages on {tensor.ranks} ranks each"
            raise ValueError(f"{comm.size} ranks cannot be {replicas} equal pipelines{parts}")
        stages = comm.size // each
        self.mesh = Mesh(comm, dp=replicas, pp=stages, tp=each // replicas)
        check_batch_norm(type(self).__name__, model, self.mesh)
        self.stage, self.replica = self.mesh.place["pp"], self.mesh.place["dp"]
        self.pipe = self.mesh["pp"]
        copies = self.mesh["dp"] if replicas > 1 else None
        self.tensor = None if tensor is None else tensor.part(model, loss, self.mesh["tp"])
        if self.tensor is not None:  # bounds of the serial model, so that all ranks use the same
            bounds = bounds or even_bounds(model, schedule, stages, costs)
            model, self.loss = self.tensor.model, self.tensor.loss

        setting = schedule, stages, replicas, microbatches, recompute is True
        given = [None if one is None else signature(list(one)) for one in (bounds, costs)]
        clips, one_step = clip is not None, not self.stashes
        summed = frozenset() if self.tensor is None else self.tensor.summed

        def lay_out(model: Sequential) -> Layout:
            return comm.once(
                ("layout", signature(model), *setting, *given, clips, one_step, summed, program),
                lambda: make_layout(
                    model,
                    *setting,
                    bounds,
                    costs,
                    clips,
                    one_step=one_step,
                    summed=summed,
                    write=program,
                ),
            )

        self.lay_out = lay_out
        self.layout = lay_out(model).on(model, self.stage)
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
            late=self.layout.summed & self.model.named_parameters().keys(),
        )
        if self.tensor is not None:
            bind_norms(optimizer, self.tensor)
        self.separated = separate(self.model)
        holds_tied = self.stage in self.layout.tied_stages
        partners = self.pipe.group(self.layout.tied_stages) if holds_tied else None
        self.own = OwnStage(
            self.layout,
            self.stage,
            self.model,
            self.separated,
            self.loss,
            self.sync,
            self.pipe,
            copies,
            partners,
            clip,
            self.update,
            self.draws_of,
            self.tensor,
        )
        self._tallies: dict[Any, Tally] = {}
        self._layouts: list[Layout] = []  # of each rank of the tensor axis

    def check_setting(self, name: str, value: Any) -> None:
        super().check_setting(name, value)
        if name == "loss" and self.built and self.tensor is not None:
            raise AttributeError(
                f"{type(self).__name__}.loss was cut over the tensor axis when this was made: make "
                f"a new {type(self).__name__}, which can load() the state() of this one"
            )

    def changed(self, name: str) -> None:
        """Update the programs and their counts after a change of ``clip`` or ``loss``."""
        self.layout = self.layout.clipped(self.clip is not None)
        self.own = replace(self.own, layout=self.layout, loss=self.loss, clip=self.clip)
        self.sync.clips(self.clip is not None)
        self._layouts = []
        self._tallies.clear()

    def _make_sync(self, sync: Sync | None, copies: Comm | None) -> GradientSync:
        """The part that sums the replicas' gradients. Without replicas it does nothing."""
        if copies is None:
            if sync is not None:
                raise ValueError("sync sums gradients over replicas: pass replicas=2 or more")
            return GradientSync()
        made = AllReduce() if sync is None else make_sync(sync)
        name = type(made).__name__
        if made.hooks_forward:
            raise ValueError(
                f"{name} must see the forward of the whole model, and a pipeline's microbatches "
                "accumulate gradients: use ReduceScatterUnits, which is ZeRO 2 for this case"
            )
        if made.whole_array and self.layout.tied and copies.size > 2:
            raise ValueError(
                f"{name} sums three or more replicas in an order that depends on a parameter's "
                f"position, so the copies of {self.layout.tied[0]}, on stages "
                f"{list(self.layout.tied_stages)}, would differ: use ReduceScatterUnits"
            )
        if self.tensor is not None and copies.size > 2 and not self.tensor.even:
            raise ValueError(
                f"the tensor axis cuts unevenly ({self.tensor.uneven}), so a parameter that is not "
                "cut has another position on each of its ranks, and three or more replicas would "
                "be summed in another order: its copies would differ. Use lengths that divide, or "
                "two replicas"
            )
        return made

    # One step

    def check_targets(self, batch: Batch) -> None:
        if self.tensor is not None:
            self.tensor.check_targets(f"{type(self).__name__}.step", batch.dataset)

    def train_on(self, batch: Batch) -> float:
        self.run = run = Executor(self.own, self.layout.microbatches_of(batch, self.replica))
        for _, later in self.separated:
            later.grad.fill(0)
        self.sync.begin(self.steps)
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

    # The cost

    def cost(self, batch: Batch, machine: Machine) -> StepCost:
        """Counted from the programs; and the messages and memory of ``sync``."""
        if self.tensor is not None:
            return self._mesh_cost(self.tensor, batch, machine)
        counts = self._tally(self.layout, self.loss, batch, machine)
        return step_cost(self.layout, self.stage_replicas(self.layout), self.sync, counts, machine)

    def _mesh_cost(self, tensor: TensorPart, batch: Batch, machine: Machine) -> StepCost:
        """From one layout for each rank of the tensor axis: their layers have different sizes."""
        if not self._layouts:
            clips = self.clip is not None
            self._layouts = [self.lay_out(model).clipped(clips) for model in tensor.models]
        costs, replicas = [], [self.stage_replicas(layout) for layout in self._layouts]
        for place, (layout, loss) in enumerate(zip(self._layouts, tensor.losses, strict=True)):
            seen = machine_of(machine, place, tensor.comm.size)
            counts = self._tally(layout, loss, batch, seen)
            costs.append(step_cost(layout, replicas[place], self.sync, counts, seen))
        return mesh_cost(
            tensor,
            self._layouts,
            costs,
            replicas,
            self.sync,
            self.optimizer,
            batch,
            self.itemsize,
            machine,
        )

    def stage_replicas(self, layout: Layout) -> list[Replicas]:
        """The ranks that hold each stage, for the formulas of their ``GradientSync``."""
        clips = self.clip is not None
        return [
            replicas_of(layout, stage, self.itemsize, self.optimizer, clips)
            for stage in range(layout.stages)
        ]

    def _tally(self, layout: Layout, loss: Loss, batch: Batch, machine: Machine) -> Tally:
        """The counts of ``layout``: this rank's, or that of another rank of the tensor axis."""
        parts = [layout.microbatches_of(batch, replica) for replica in range(layout.replicas)]
        key = tuple(len(part) for copy in parts for part in copy), repr(machine), id(layout)
        if key not in self._tallies:
            self._tallies[key] = tally_step(
                layout, self.stage_replicas(layout), self.sync, loss, parts, machine
            )
        return self._tallies[key]
