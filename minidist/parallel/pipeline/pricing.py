"""Predict what a pipeline's programs cost, without running them.

``price`` makes every rank do exactly the calls that the executor makes, with a stopwatch instead
of a model (``stopwatch.py``): time, messages, and what is kept of activations at the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minidist.collectives.ring import chunks as ring_chunks
from minidist.comm.machine import Machine
from minidist.parallel.pipeline.programs import program
from minidist.parallel.pipeline.prover import validate
from minidist.parallel.pipeline.schedules import (
    Backward,
    Compute,
    Forward,
    InputGradient,
    Instruction,
    Post,
    Recv,
    Reduce,
    Schedule,
    Send,
    Step,
    WeightGradient,
)
from minidist.parallel.pipeline.stopwatch import Job, Price, Side, Stopwatch, Task


@dataclass(frozen=True)
class Memory:
    """Bytes that a microbatch keeps on a stage."""

    saved: int  # from its forward to its backward
    backward: int = 0  # at the highest, during its backward
    deferred: int = 0  # from its input's gradient to its weights'


@dataclass(frozen=True)
class Ring:
    """An all-reduce over ``group``, in the ring's order, of ``length`` elements."""

    group: list[int]
    length: int
    itemsize: int


def price(
    programs: Sequence[Sequence[Instruction]],
    machine: Machine,
    seconds: Callable[[int, Compute], float],
    nbytes: Callable[[int, Send], int],
    memory: Callable[[int, Compute], Memory],
    rings: Callable[[int, Reduce], Sequence[Ring]] | None = None,
    replicas: int = 1,
) -> Price:
    """Time, memory and messages of ``replicas`` copies of a pipeline with these programs.

    Rank r is stage r % p of copy r // p. For each rank: ``seconds`` of a computation, ``nbytes``
    of a message, ``memory`` of a microbatch, and the ``rings`` of a reduction.
    """
    watch = Stopwatch(machine, len(programs) * replicas)
    for rank in range(len(programs) * replicas):
        instructions = programs[rank % len(programs)]
        first = rank - rank % len(programs)  # the first stage of this rank's pipeline
        watch.start(
            rank, _run(watch, rank, first, instructions, seconds, nbytes, memory, rings), 0.0
        )
    return watch.run()


def _run(
    watch: Stopwatch,
    rank: int,
    first: int,
    instructions: Sequence[Instruction],
    seconds: Callable[[int, Compute], float],
    nbytes: Callable[[int, Send], int],
    memory: Callable[[int, Compute], Memory],
    rings: Callable[[int, Reduce], Sequence[Ring]] | None,
) -> Task:
    """One rank: exactly the calls that the executor makes."""
    found = watch.found
    receiving: dict[Any, Side] = {}
    sending: dict[Any, Side] = {}
    reducing: list[Job] = []
    kept = 0

    for instruction in instructions:
        match instruction:
            case Post(what, microbatch, peer, part):
                side = yield from watch.post(first + peer, rank, (what, microbatch, part), False)
                receiving[what, microbatch, part] = side
            case Recv(what, microbatch, _, part):
                yield from watch.wait(receiving.pop((what, microbatch, part)))
            case Send(what, microbatch, peer, part):
                length = nbytes(rank, instruction)
                side = yield from watch.post(
                    rank, first + peer, (what, microbatch, part), True, length
                )
                sending[what, microbatch, part] = side
            case Reduce("replicas", _):
                assert rings is not None
                reducing.append(
                    watch.spawn(rank, _rings(watch, rank, rings(rank, instruction), False))
                )
            case Reduce():
                assert rings is not None
                for job in reducing:
                    yield from watch.join(job)
                reducing.clear()
                yield from _rings(watch, rank, rings(rank, instruction), True)
            case Step():
                for job in reducing:
                    yield from watch.join(job)
                reducing.clear()
            case _:
                cost = memory(rank, instruction)
                match instruction:
                    case Forward():
                        kept += cost.saved
                        highest = kept
                    case Backward():
                        highest = kept - cost.saved + cost.backward
                        kept -= cost.saved
                    case InputGradient():
                        highest = kept - cost.saved + cost.backward
                        kept += cost.deferred - cost.saved
                    case WeightGradient():
                        highest = kept
                        kept -= cost.deferred
                found.peak_saved[rank] = max(found.peak_saved[rank], highest)
                watch.compute(rank, seconds(rank, instruction), instruction)
    for side in sending.values():
        yield from watch.wait(side)


def _rings(watch: Stopwatch, rank: int, rings: Sequence[Ring], counted: bool) -> Task:
    """All-reduces one after the other."""
    for ring in rings:
        yield from _ring(watch, rank, ring, counted)


def _ring(watch: Stopwatch, rank: int, ring: Ring, counted: bool) -> Task:
    """A ring all-reduce, message by message (see ``collectives/ring.py``)."""
    size, place = len(ring.group), ring.group.index(rank)
    left, right = ring.group[(place - 1) % size], ring.group[(place + 1) % size]
    lengths = [part.stop - part.start for part in ring_chunks(ring.length, size)]
    for half in range(2):
        for turn in range(size - 1):
            out = lengths[(place + half - turn) % size] * ring.itemsize
            into = lengths[(place + half - turn - 1) % size] * ring.itemsize
            key = ("ring", tuple(ring.group), counted)
            receiving = yield from watch.post(left, rank, key, False)
            sending = yield from watch.post(rank, right, key, True, out)
            yield from watch.wait(sending)
            yield from watch.wait(receiving)
            if half == 0:
                watch.reduce(rank, into, counted)


def price_units(
    schedule: Schedule,
    stages: int,
    microbatches: int,
    forward: float = 1.0,
    input_gradient: float = 1.0,
    weight_gradient: float = 1.0,
    message: float = 0.0,
) -> Price:
    """Price a schedule with stages of equal cost: ``forward`` and so on are for a whole stage.

    Memory is counted in chunks of a microbatch, kept until its weights' gradient. Raises
    ScheduleError if the schedule cannot run.
    """
    programs = [program(schedule, stage, stages, microbatches) for stage in range(stages)]
    validate(programs, schedule, microbatches)
    units = {
        Forward: forward,
        Backward: input_gradient + weight_gradient,
        InputGradient: input_gradient,
        WeightGradient: weight_gradient,
    }
    machine = Machine("units", latency=message, bandwidth=float("inf"))
    return price(
        programs,
        machine,
        seconds=lambda rank, item: units[type(item)] / schedule.chunks,
        nbytes=lambda rank, send: 1,
        memory=lambda rank, item: Memory(saved=1, backward=1, deferred=1),
    )
