"""From what a stage computes to all that it does: a schedule becomes a program.

    order of a middle stage    F(0)  B(0)
    its program                Post, Recv activation, F(0), Send activation,
                               Post, Recv gradient, B(0), Send gradient, Step, the loss

Messages follow from the order: a part's forward needs what the part before it sent, and its
backward what the part after it sent; between two parts of one stage nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterator

from minidist.parallel.pipeline.instructions import (
    COMPUTE,
    Backward,
    Compute,
    Forward,
    InputGradient,
    Instruction,
    Post,
    Recv,
    Reduce,
    Send,
    Step,
    WeightGradient,
)
from minidist.parallel.pipeline.schedules import Schedule


def program(
    schedule: Schedule, stage: int, stages: int, microbatches: int, reduce: tuple[str, ...] = ()
) -> list[Instruction]:
    """A stage's whole list: its order, with messages, reductions, the step and the loss.

    A message's ``Post`` comes one computation before its ``Recv``: it can arrive meanwhile, and
    no more than one buffer waits. ``reduce`` names the reductions that the ranks need.
    """
    order = list(schedule.order(stage, stages, microbatches))
    found: list[Instruction] = []
    for index, instruction in enumerate(order):
        if isinstance(instruction, Step):
            found.append(instruction)
            continue
        found += _with_messages(schedule, instruction, stage, stages)
        if "replicas" in reduce and _completes(instruction, order[index + 1 :]):
            found.append(Reduce("replicas", instruction.chunk))
    if not any(isinstance(instruction, Step) for instruction in order):
        found.append(Step())
    last = max(place for place, item in enumerate(found) if isinstance(item, Step))
    found[last:last] = [Reduce(what) for what in ("tied", "norm") if what in reduce]
    return _posted_early([*found, *_pass_loss(schedule, stage, stages, reduce)])


def _with_messages(
    schedule: Schedule, instruction: Compute, stage: int, stages: int
) -> Iterator[Instruction]:
    """An instruction between the messages that it needs and makes; none within a stage."""
    microbatch = instruction.microbatch
    part = schedule.part(stage, instruction.chunk, stages)
    last = stages * schedule.chunks - 1
    before = schedule.stage(part - 1, stages) if part > 0 else stage
    after = schedule.stage(part + 1, stages) if part < last else stage
    match instruction:
        case Forward():
            if before != stage:
                yield Recv("activation", microbatch, before, part)
            yield instruction
            if after != stage:
                yield Send("activation", microbatch, after, part + 1)
        case Backward() | InputGradient():
            if after != stage:
                yield Recv("gradient", microbatch, after, part + 1)
            yield instruction
            if before != stage:
                yield Send("gradient", microbatch, before, part)
        case WeightGradient():
            yield instruction


def _completes(instruction: Compute | Step, rest: list[Compute | Step]) -> bool:
    """Whether this chunk's gradients are complete after this instruction.

    A later chunk may share a parameter with this one, so it has to be complete too.
    """
    return isinstance(instruction, (Backward, WeightGradient)) and not any(
        isinstance(later, (Backward, WeightGradient)) and later.chunk >= instruction.chunk
        for later in rest
    )


def _pass_loss(
    schedule: Schedule, stage: int, stages: int, reduce: tuple[str, ...]
) -> Iterator[Instruction]:
    """The loss, which one end of the pipeline knows, from stage to stage to the other end."""
    source = schedule.stage(stages * schedule.chunks - 1, stages)
    step = 1 if source == 0 else -1  # away from the source
    if stage != source:
        yield Recv("loss", -1, stage - step, -1)
    elif "loss" in reduce:
        yield Reduce("loss")
    if 0 <= stage + step < stages:
        yield Send("loss", -1, stage + step, -1)


def _posted_early(instructions: list[Instruction]) -> list[Instruction]:
    """Put a Post for every Recv before the computation that comes before it."""
    posted: list[Instruction] = []
    early = 0  # where the last computation stands
    for instruction in instructions:
        if isinstance(instruction, Recv):
            posted.insert(early, Post(**vars(instruction)))
            early += 1
        elif isinstance(instruction, COMPUTE):
            early = len(posted)
        posted.append(instruction)
    return posted
