"""Programs: a schedule's computations, with the messages, reductions and steps that they need.

    order of a middle stage    F(0)  B(0)
    its program                Post, Recv activation, F(0), Send activation,
                               Post, Recv gradient, B(0), Send gradient, Step, the loss

A part's forward needs the activation that the part before it sends; its backward needs the gradient
that the part after it sends. Between two parts of one stage nothing is sent.
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
    """A stage's program: its order, with messages, reductions, the step and the loss.

    A message's ``Post`` comes one computation before its ``Recv``, so that it can arrive during
    this computation, and only one buffer waits. ``reduce``: the kinds of ``Reduce`` that are
    needed.
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
    """An instruction, after the message that it needs and before the one that it sends."""
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

    A later chunk may share a parameter with this one, so it must be complete too.
    """
    return isinstance(instruction, (Backward, WeightGradient)) and not any(
        isinstance(later, (Backward, WeightGradient)) and later.chunk >= instruction.chunk
        for later in rest
    )


def _pass_loss(
    schedule: Schedule, stage: int, stages: int, reduce: tuple[str, ...]
) -> Iterator[Instruction]:
    """Pass the loss from the stage that computes it from stage to stage to the other end."""
    source = schedule.stage(stages * schedule.chunks - 1, stages)
    step = 1 if source == 0 else -1  # away from the source
    if stage != source:
        yield Recv("loss", -1, stage - step, -1)
    elif "loss" in reduce:
        yield Reduce("loss")
    if 0 <= stage + step < stages:
        yield Send("loss", -1, stage + step, -1)


def _posted_early(instructions: list[Instruction]) -> list[Instruction]:
    """Insert a Post for every Recv, before the computation that precedes the Recv."""
    posted: list[Instruction] = []
    early = 0  # index of the last computation
    for instruction in instructions:
        if isinstance(instruction, Recv):
            posted.insert(early, Post(**vars(instruction)))
            early += 1
        elif isinstance(instruction, COMPUTE):
            early = len(posted)
        posted.append(instruction)
    return posted
