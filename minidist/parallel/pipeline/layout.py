"""The layout of a pipeline: which rank holds which part of the model, and runs which program.

    model      block 0 | block 1 | block 2 | block 3       bounds cut it into parts
    stage 0    part 0                                       a stage holds a part for each chunk
    stage 1              part 1 ...
    rank r     stage r % p of replica r // p                with ``replicas`` pipelines of p stages

A layout is made once for a world, from a declared model, and never changes. ``on`` gives each rank
a version with the blocks that this rank trains. The prover, the executor and the cost read only the
layout, not the method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from minidist.data.batches import Batch
from minidist.nn.layers import Sequential
from minidist.nn.module import Shape
from minidist.parallel.model_costs import parameter_count, shape_of
from minidist.parallel.pipeline.instructions import COMPUTE, Instruction, Reduce
from minidist.parallel.pipeline.programs import program
from minidist.parallel.pipeline.prover import validate
from minidist.parallel.pipeline.schedules import Schedule
from minidist.parallel.pipeline.stages import Bounds, block_flops, cut, join
from minidist.parallel.shared_parameters import shared_by_blocks, tied

Programs = tuple[tuple[Instruction, ...], ...]


@dataclass(frozen=True)
class Layout:
    """Bounds, parts, programs, tied parameters and groups of a pipeline."""

    model: Sequential  # the whole model; only the parts of this rank are initialised
    schedule: Schedule
    stages: int
    replicas: int
    microbatches: int
    recompute: bool
    bounds: tuple[tuple[int, int], ...]  # (first, last + 1) block of each part
    parts: tuple[Sequential, ...]
    stage_models: tuple[Sequential, ...]  # the parts of each stage, as one model
    tied: tuple[str, ...]  # names of parameters that several stages hold
    tied_stages: tuple[int, ...]  # these stages
    programs: Programs  # by stage
    summed: frozenset[str] = frozenset()  # names of gradients summed over tp: see TensorPart
    known_shapes: dict[Shape, list[Shape]] = field(default_factory=dict, compare=False)

    def on(self, model: Sequential, stage: int) -> Layout:
        """The same layout with the parts of ``model``, an equal model, for this stage."""
        parts, models = list(self.parts), list(self.stage_models)
        own = [self.part(stage, chunk) for chunk in range(self.schedule.chunks)]
        for part in own:
            start, stop = self.bounds[part]
            parts[part] = model[start:stop]
        models[stage] = join([parts[part] for part in own])
        return replace(self, model=model, parts=tuple(parts), stage_models=tuple(models))

    def part(self, stage: int, chunk: int) -> int:
        """The number of the model's part that is this chunk of this stage."""
        return self.schedule.part(stage, chunk, self.stages)

    def stage_of(self, part: int) -> int:
        """The stage that holds a part."""
        return self.schedule.stage(part, self.stages)

    def chunk_range(self, stage: int, chunk: int) -> slice:
        """The slice of a chunk's parameters in its stage's flat array.

        A parameter that two chunks of a stage share is in the slice of the first. This chunk's
        gradients are complete last.
        """
        parts = [self.parts[self.part(stage, c)] for c in range(self.schedule.chunks)]
        ends = [0, *(parameter_count(join(parts[: c + 1])) for c in range(len(parts)))]
        return slice(ends[chunk], ends[chunk + 1])

    def chunks_of(self, stage: int) -> tuple[slice, ...]:
        """The chunks of a stage, in the order in which their gradients are complete."""
        return tuple(
            self.chunk_range(stage, item.chunk)
            for item in self.programs[stage]
            if isinstance(item, Reduce) and item.what == "replicas"
        )

    def completing(self, stage: int) -> dict[Instruction, int]:
        """From the computation that completes a chunk's gradients to the number of this chunk."""
        found: dict[Instruction, int] = {}
        last: Instruction | None = None
        for item in self.programs[stage]:
            if isinstance(item, COMPUTE):
                last = item
            elif isinstance(item, Reduce) and item.what == "replicas":
                assert last is not None
                found[last] = item.chunk
        return found

    def apart(self, stage: int) -> frozenset[str]:
        """Names of parameters with several uses, whose gradients are added after the backward."""
        model = self.stage_models[stage]
        tied_here = self.tied if stage in self.tied_stages else ()
        return frozenset([*shared_by_blocks(model), *tied_here])

    def counted_elsewhere(self, stage: int) -> tuple[str, ...]:
        """Names of tied parameters that an earlier stage counts in the gradient's norm."""
        return self.tied if stage in self.tied_stages[1:] else ()

    def clipped(self, clips: bool) -> Layout:
        """The same layout with programs that do or do not (``clips``) sum the stages' norms."""
        written = write_programs(
            self.schedule, self.stages, self.microbatches, self.replicas, self.tied_stages, clips
        )
        validate(written, self.schedule, self.microbatches)
        return replace(self, programs=written)

    # Groups of ranks

    def pipe(self, rank: int) -> list[int]:
        """The ranks of this rank's pipeline, by stage."""
        first = rank - rank % self.stages
        return list(range(first, first + self.stages))

    def replicas_of(self, rank: int) -> list[int]:
        """The ranks that hold this rank's stage, by replica."""
        return list(range(rank % self.stages, self.stages * self.replicas, self.stages))

    def partners(self, rank: int) -> list[int]:
        """The ranks of this rank's pipeline that hold the tied parameters."""
        return [self.pipe(rank)[stage] for stage in self.tied_stages]

    # Batches

    def microbatches_of(self, batch: Batch, replica: int) -> list[Batch]:
        """The microbatches of one replica of the pipeline."""
        return batch.shard(replica, self.replicas).microbatches(self.microbatches)

    def shapes_of(self, batch: Batch) -> list[Shape]:
        """The shape of every part's input for a microbatch ``batch``."""
        shape = shape_of(batch)
        if shape not in self.known_shapes:
            costs = self.model.costs(shape)
            self.known_shapes[shape] = [
                costs[start - 1].shape if start else shape for start, _ in self.bounds
            ]
        return self.known_shapes[shape]


def make_layout(
    model: Sequential,
    schedule: Schedule,
    stages: int,
    replicas: int,
    microbatches: int,
    recompute: bool,
    bounds: Bounds | None,
    costs: Sequence[float] | None,
    clips: bool,
    one_step: bool = True,
    summed: frozenset[str] = frozenset(),
    write: Callable[..., list[Instruction]] = program,
) -> Layout:
    """Cut ``model``, write each stage's program, and prove that the programs can run.

    Raises ValueError for bounds that do not cover the whole model and for parameters that cannot be
    shared; ScheduleError for programs that cannot run.
    """
    bounds = bounds or even_bounds(model, schedule, stages, costs)
    _check_bounds(bounds, model, schedule, stages)
    parts = tuple(model[start:stop] for start, stop in bounds)
    stage_models = tuple(
        join([parts[schedule.part(stage, chunk, stages)] for chunk in range(schedule.chunks)])
        for stage in range(stages)
    )
    shared = tied(stage_models)
    _check_shared(shared)
    tied_stages = sorted({stage for where in shared.values() for stage in where})
    programs = write_programs(schedule, stages, microbatches, replicas, tied_stages, clips, write)
    validate(programs, schedule, microbatches, one_step)
    return Layout(
        model,
        schedule,
        stages,
        replicas,
        microbatches,
        recompute,
        tuple(bounds),
        parts,
        stage_models,
        tuple(shared),
        tuple(tied_stages),
        programs,
        summed,
    )


def write_programs(
    schedule: Schedule,
    stages: int,
    microbatches: int,
    replicas: int,
    tied_stages: Sequence[int],
    clips: bool,
    write: Callable[..., list[Instruction]] = program,
) -> Programs:
    """Each stage's program, with its reductions."""
    found = []
    for stage in range(stages):
        needs = {
            "replicas": replicas > 1,
            "loss": replicas > 1,
            "tied": stage in tied_stages,
            "norm": clips,
        }
        reduce = tuple(name for name, needed in needs.items() if needed)
        found.append(tuple(write(schedule, stage, stages, microbatches, reduce)))
    return tuple(found)


def even_bounds(
    model: Sequential, schedule: Schedule, stages: int, costs: Sequence[float] | None
) -> Bounds:
    """Bounds whose parts have costs as equal as possible.

    If there are more parts than blocks that compute anything, the last parts are empty: they pass
    their input on.
    """
    costs = block_flops(model) if costs is None else costs
    parts = stages * schedule.chunks
    full = parts
    if schedule.chunks > 1:
        full = min(parts, max(stages, sum(cost > 0 for cost in costs)))
    return [*cut(costs, full), *[(len(costs), len(costs))] * (parts - full)]


def _check_bounds(bounds: Bounds, model: Sequential, schedule: Schedule, stages: int) -> None:
    ends = [0, *(stop for _, stop in bounds)]
    starts = [*(start for start, _ in bounds), len(model)]
    if ends != starts or len(bounds) != stages * schedule.chunks:
        raise ValueError(
            f"bounds {bounds} must cut {len(model)} blocks into consecutive "
            f"(start, stop) parts, {schedule.chunks} for each of {stages} stages"
        )


def _check_shared(shared: dict[str, list[int]]) -> None:
    if len({tuple(where) for where in shared.values()}) > 1:
        raise ValueError(
            f"stages share parameters in several ways, {shared}: pass bounds=[(start, stop), ...] "
            "with which the same stages share all of them"
        )
