"""Prove that a pipeline's programs can run, before they run.

``validate`` executes all stages' programs without times: a send completes at once, a receive waits
for its send. If every stage reaches its end, no timing can cause a deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minidist.comm.checks import LARGEST_TAG
from minidist.parallel.pipeline.instructions import (
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


class ScheduleError(ValueError):
    """A schedule cannot run; the message names the stage and the instruction."""


def most_microbatches(parts: int) -> int:
    """How many microbatches have a tag for each message: an activation and a gradient a part."""
    return (LARGEST_TAG - 1) // (2 * parts)


def validate(
    programs: Sequence[Sequence[Instruction]],
    schedule: Schedule,
    microbatches: int,
    one_step: bool = False,
) -> None:
    """Prove that the stages' programs train each microbatch once, without deadlock.

    Raises ScheduleError for a computation that is missing, repeated, or before what it needs; for a
    message that is never sent or received, or sent before it is computed; and for a deadlock. With
    ``one_step`` also unless the optimizer steps once, after all gradients, as in serial training.
    Also for more microbatches than there are tags to tell their messages apart.
    """
    stages = len(programs)
    last = stages * schedule.chunks - 1
    if microbatches > (most := most_microbatches(last + 1)):
        raise ScheduleError(
            f"{microbatches} microbatches of {last + 1} parts are more messages than MPI has tags "
            f"for: take at most {most}"
        )
    # Messages and results that exist, each as (what, microbatch, part): sent, and by stage.
    sent: set[tuple[Any, ...]] = set()
    has: list[set[tuple[Any, ...]]] = [set() for _ in programs]
    done: list[set[Instruction]] = [set() for _ in programs]
    position = [0] * stages

    def fail(stage: int, instruction: Instruction, why: str) -> None:
        place = position[stage]
        raise ScheduleError(f"stage {stage}: {instruction}, its instruction {place}, {why}")

    def need(stage: int, instruction: Instruction, what: tuple[Any, ...], why: str) -> None:
        if what not in has[stage]:
            fail(stage, instruction, why)

    def compute(stage: int, instruction: Compute) -> None:
        microbatch, chunk = instruction.microbatch, instruction.chunk
        if not (0 <= microbatch < microbatches and 0 <= chunk < schedule.chunks):
            limits = f"{microbatches} microbatches and {schedule.chunks} chunks"
            fail(stage, instruction, f"is not within {limits}")
        part = schedule.part(stage, chunk, stages)
        match instruction:
            case Forward():
                if part > 0:
                    need(stage, instruction, ("activation", microbatch, part), "has no input yet")
                has[stage].add(("forward", microbatch, part))
                has[stage].add(("activation", microbatch, part + 1))
            case Backward() | InputGradient():
                forward = ("forward", microbatch, part)
                need(stage, instruction, forward, "has no Forward before it, or is a second one")
                if part < last:
                    why = "has no gradient of its output yet"
                    need(stage, instruction, ("gradient", microbatch, part + 1), why)
                has[stage].discard(forward)
                has[stage].add(("gradient", microbatch, part))
                kind = "weights" if isinstance(instruction, Backward) else "input"
                has[stage].add((kind, microbatch, part))
            case WeightGradient():
                before = ("input", microbatch, part)
                need(stage, instruction, before, "has no InputGradient before it")
                has[stage].discard(before)
                has[stage].add(("weights", microbatch, part))

    def run(stage: int, instruction: Instruction) -> bool:
        """Run the instruction; False if it must wait for a message."""
        match instruction:
            case Post() | Reduce() | Step():
                pass
            case Send(what, microbatch, peer, part):
                key = (what, microbatch, part)
                if what != "loss":
                    need(stage, instruction, key, "sends what is not computed yet")
                sent.add((stage, peer, *key))
            case Recv(what, microbatch, peer, part):
                if Post(what, microbatch, peer, part) not in done[stage]:
                    fail(stage, instruction, "has no Post before it")
                if (peer, stage, what, microbatch, part) not in sent:
                    return False
                sent.discard((peer, stage, what, microbatch, part))
                has[stage].add((what, microbatch, part))
            case _:
                compute(stage, instruction)
        if isinstance(instruction, Step):
            return True
        if instruction in done[stage]:
            fail(stage, instruction, "comes a second time")
        done[stage].add(instruction)
        return True

    moved = True
    while moved:
        moved = False
        for stage, instructions in enumerate(programs):
            while position[stage] < len(instructions) and run(stage, instructions[position[stage]]):
                position[stage] += 1
                moved = True
    _check_stuck(programs, position)
    for sender, peer, what, microbatch, part in sorted(sent):
        lost = Send(what, microbatch, peer, part)
        raise ScheduleError(f"stage {sender}: {lost} is never received by stage {peer}")
    for stage, instructions in enumerate(programs):
        _check_complete(stage, instructions, schedule, microbatches)
    _check_steps(programs, one_step)


def _check_stuck(programs: Sequence[Sequence[Instruction]], position: list[int]) -> None:
    """Raise ScheduleError if a stage is stuck; first for one whose message is never sent."""
    stuck = []
    for stage, instructions in enumerate(programs):
        if position[stage] < len(instructions):
            waiting = instructions[position[stage]]
            assert isinstance(waiting, Recv)  # nothing else waits
            send = Send(waiting.what, waiting.microbatch, stage, waiting.part)
            comes = send in programs[waiting.peer][position[waiting.peer] :]
            stuck.append((comes, stage, waiting))
    for comes, stage, waiting in sorted(stuck, key=lambda one: one[:2]):
        why = "waits itself before it sends that" if comes else "never sends that"
        raise ScheduleError(
            f"stage {stage} can never run {waiting}, its instruction {position[stage]}: "
            f"stage {waiting.peer} {why}"
        )


def _check_complete(
    stage: int, instructions: Sequence[Instruction], schedule: Schedule, microbatches: int
) -> None:
    """Raise ScheduleError unless all gradients are complete before the last Step."""
    steps = [place for place, item in enumerate(instructions) if isinstance(item, Step)]
    before = instructions[: steps[-1]] if steps else []
    done = {
        (item.microbatch, item.chunk)
        for item in before
        if isinstance(item, (Backward, WeightGradient))
    }
    for chunk in range(schedule.chunks):
        missing = [micro for micro in range(microbatches) if (micro, chunk) not in done]
        if missing:
            raise ScheduleError(
                f"stage {stage}: Step() before the gradients of microbatches {missing}"
                + (f" of chunk {chunk}" if schedule.chunks > 1 else "")
            )
    for item in instructions[len(before) :]:
        if isinstance(item, Reduce) and item.what != "loss":
            raise ScheduleError(f"stage {stage}: {item} comes after the last Step()")


def _check_steps(programs: Sequence[Sequence[Instruction]], one_step: bool) -> None:
    """Raise ScheduleError unless all stages step equally often; once, with ``one_step``."""
    counts = [sum(isinstance(item, Step) for item in program) for program in programs]
    for stage, count in enumerate(counts):
        if count != counts[0]:
            raise ScheduleError(
                f"stage {stage} has {count} Step() and stage 0 has {counts[0]}: their learning "
                "rate schedules would be at different steps"
            )
        if one_step and count > 1:
            raise ScheduleError(
                f"stage {stage} has {count} Step() a batch: after the first, microbatches go "
                "backward with other weights than forward. Pipeline equals serial training, with "
                "one Step() after all gradients; PipeDream keeps the old weights"
            )
