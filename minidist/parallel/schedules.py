"""Pipeline schedules as data: what each stage does, in order, as a list of instructions.

A schedule is a function (stage, stages, microbatches) → instructions. It computes nothing: the
executor in ``pipeline.py`` runs the list, ``price`` predicts from it how long the step takes and
how much memory it holds, and a plotter can draw it. All three read the same list, so what is
drawn is what runs.

    naive, one microbatch           gpipe, four microbatches
    stage 0  F . . . . B            stage 0  F0 F1 F2 F3  .  .  .  . B0 B1 B2 B3
    stage 1  . F . . B .            stage 1   . F0 F1 F2 F3  .  . B0 B1 B2 B3  .
    stage 2  . . F B . .            stage 2   .  . F0 F1 F2 F3 B0 B1 B2 B3  .  .

With p stages and m microbatches of equal cost and free messages the idle share is

    naive  (p - 1)/p                gpipe  (p - 1)/(m + p - 1)

GPipe keeps the activations of all m microbatches. Huang et al., arXiv 1811.06965, section 2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Forward:
    """Run the stage's layers on a microbatch (and the loss, on the last stage)."""

    microbatch: int


@dataclass(frozen=True)
class Backward:
    """Backward through the stage for a microbatch."""

    microbatch: int


@dataclass(frozen=True)
class Send:
    """Send ``what`` ("activation", "gradient" or "loss") of a microbatch to stage ``peer``."""

    what: str
    microbatch: int
    peer: int


@dataclass(frozen=True)
class Recv:
    """Receive ``what`` of a microbatch from stage ``peer``."""

    what: str
    microbatch: int
    peer: int


@dataclass(frozen=True)
class Step:
    """The optimizer's step."""


Instruction = Forward | Backward | Send | Recv | Step
Schedule = Callable[[int, int, int], Iterator[Instruction]]


def naive(stage: int, stages: int, microbatches: int) -> Iterator[Instruction]:
    """One microbatch at a time, forward and back through all stages: one stage works at a time."""
    for microbatch in range(microbatches):
        yield from _forward(stage, stages, microbatch)
        yield from _backward(stage, stages, microbatch)
    yield from _finish(stage, stages)


def gpipe(stage: int, stages: int, microbatches: int) -> Iterator[Instruction]:
    """All microbatches forward, one behind the other; then all backward, in the same order."""
    for microbatch in range(microbatches):
        yield from _forward(stage, stages, microbatch)
    for microbatch in range(microbatches):
        yield from _backward(stage, stages, microbatch)
    yield from _finish(stage, stages)


SCHEDULES: dict[str, Schedule] = {"naive": naive, "gpipe": gpipe}


def _forward(stage: int, stages: int, microbatch: int) -> Iterator[Instruction]:
    if stage > 0:
        yield Recv("activation", microbatch, stage - 1)
    yield Forward(microbatch)
    if stage < stages - 1:
        yield Send("activation", microbatch, stage + 1)


def _backward(stage: int, stages: int, microbatch: int) -> Iterator[Instruction]:
    if stage < stages - 1:
        yield Recv("gradient", microbatch, stage + 1)
    yield Backward(microbatch)
    if stage > 0:
        yield Send("gradient", microbatch, stage - 1)


def _finish(stage: int, stages: int) -> Iterator[Instruction]:
    """Step, and pass the loss, which only the last stage knows, down to the first."""
    yield Step()
    if stage < stages - 1:
        yield Recv("loss", -1, stage + 1)
    if stage > 0:
        yield Send("loss", -1, stage - 1)


class ScheduleError(ValueError):
    """A schedule that cannot run: the message names the stage and the instruction."""


@dataclass(frozen=True)
class Price:
    """What a schedule should cost, by stage: messages, bytes, seconds busy, peak bytes saved."""

    messages: list[int]
    nbytes: list[int]
    busy: list[float]
    peak_saved: list[int]
    seconds: float


def price(
    schedule: Schedule,
    stages: int,
    microbatches: int,
    compute: Callable[[int, Instruction], float],
    nbytes: Callable[[int, Send], int],
    message: Callable[[int], float],
    saved: Callable[[int, int], int],
) -> Price:
    """Walk through all stages' instructions with a stopwatch, and prove that they can be walked.

    ``compute(stage, instruction)``: seconds of a Forward or Backward. ``nbytes(stage, send)``:
    length of a message; ``message(nbytes)``: its seconds, α + nβ, from when both sides are there.
    ``saved(stage, microbatch)``: bytes kept from Forward to Backward. Raises ScheduleError if the
    schedule deadlocks, sends what is not received, goes backward before forward, or leaves a
    microbatch out.
    """
    lists = [list(schedule(stage, stages, microbatches)) for stage in range(stages)]
    position, clock, busy = [0] * stages, [0.0] * stages, [0.0] * stages
    sent, sent_bytes = [0] * stages, [0] * stages
    held: list[dict[int, int]] = [{} for _ in range(stages)]
    peak = [0] * stages
    done: list[set[int]] = [set() for _ in range(stages)]

    def step(stage: int) -> bool:
        """Run the next instruction of ``stage``, if it can run now."""
        instruction = lists[stage][position[stage]]
        match instruction:
            case Send(what, microbatch, peer):
                other = lists[peer][position[peer]] if position[peer] < len(lists[peer]) else None
                if other != Recv(what, microbatch, stage):
                    return False
                length = nbytes(stage, instruction)
                clock[stage] = clock[peer] = max(clock[stage], clock[peer]) + message(length)
                position[peer] += 1
                sent[stage] += 1
                sent_bytes[stage] += length
            case Recv():
                return False  # moves when its Send does
            case Forward(microbatch):
                held[stage][microbatch] = saved(stage, microbatch)
                peak[stage] = max(peak[stage], sum(held[stage].values()))
            case Backward(microbatch):
                if microbatch not in held[stage]:
                    raise ScheduleError(f"stage {stage}: {instruction} has no Forward before it")
                del held[stage][microbatch]
                done[stage].add(microbatch)
            case Step():
                missing = set(range(microbatches)) - done[stage]
                if missing:
                    raise ScheduleError(
                        f"stage {stage}: Step() before Backward of microbatches {sorted(missing)}"
                    )
        if isinstance(instruction, (Forward, Backward)):
            seconds = compute(stage, instruction)
            clock[stage] += seconds
            busy[stage] += seconds
        position[stage] += 1
        return True

    moved = True
    while moved:
        moved = False
        for stage in range(stages):
            while position[stage] < len(lists[stage]) and step(stage):
                moved = True
    for stage in range(stages):
        if position[stage] < len(lists[stage]):
            raise ScheduleError(
                f"stage {stage} can never run {lists[stage][position[stage]]}, its instruction "
                f"{position[stage]}: no other stage comes to the other side of it"
            )
    return Price(sent, sent_bytes, busy, peak, max(clock))
