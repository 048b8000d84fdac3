"""The cost of a schedule without a model: time, idle share, memory, and a timeline.

``price`` runs the programs in the local world. Each rank sends and receives in the executor's
order, with messages of one byte; a computation only advances the virtual clock. So schedules can be
compared and drawn without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.comm.comm import Comm, Request
from minidist.comm.local.world import LocalWorld
from minidist.comm.machine import Machine
from minidist.engine.array import work
from minidist.parallel.pipeline.executor import tag
from minidist.parallel.pipeline.instructions import (
    COMPUTE,
    Backward,
    Compute,
    Forward,
    InputGradient,
    Instruction,
    Post,
    Recv,
    Send,
    WeightGradient,
)
from minidist.parallel.pipeline.programs import program
from minidist.parallel.pipeline.prover import validate
from minidist.parallel.pipeline.schedules import Schedule
from minidist.parallel.pipeline.tally import Memory, peak_saved


@dataclass(frozen=True)
class Span:
    """An instruction of a rank, and the time at which it started and ended."""

    instruction: Compute
    start: float
    end: float


@dataclass
class Price:
    """The cost of programs. Lists are by rank: messages, busy seconds, peak of saved memory."""

    messages: list[int]
    busy: list[float]
    peak_saved: list[int]
    spans: list[list[Span]]
    seconds: float

    @property
    def idle_fraction(self) -> float:
        """The fraction of the ranks' time in which they do not compute."""
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0


def price(
    programs: Sequence[Sequence[Instruction]],
    machine: Machine,
    seconds: Callable[[Compute], float],
    memory: Callable[[Compute], Memory],
) -> Price:
    """The cost of these programs, one for each rank; ``Reduce`` instructions cost nothing."""
    world = LocalWorld(machine)
    messages = (item for own in programs for item in own if isinstance(item, (Send, Post)))
    parts = 1 + max((item.part for item in messages), default=0)
    spans = world.run(lambda comm: _run(comm, programs[comm.rank], seconds, parts), len(programs))
    return Price(
        messages=[trace.sent.messages for trace in world.traces],
        busy=[sum(span.end - span.start for span in own) for own in spans],
        peak_saved=[peak_saved(one, memory) for one in programs],
        spans=spans,
        seconds=world.seconds,
    )


def _run(
    comm: Comm,
    instructions: Sequence[Instruction],
    seconds: Callable[[Compute], float],
    parts: int,
) -> list[Span]:
    """One rank: posts, sends and receives in the executor's order."""
    receives: dict[Any, Request] = {}
    sends: list[Request] = []
    spans = list[Span]()
    for item in instructions:
        match item:
            case Post(what, microbatch, peer, part):
                key = what, microbatch, part
                receives[key] = comm.irecv(np.empty(1, np.uint8), peer, tag(*key, parts))
            case Recv(what, microbatch, _, part):
                receives.pop((what, microbatch, part)).wait()
            case Send(what, microbatch, peer, part):
                sends.append(
                    comm.isend(np.empty(1, np.uint8), peer, tag(what, microbatch, part, parts))
                )
            case _ if isinstance(item, COMPUTE):
                start = comm.time()
                work.beyond += seconds(item)  # charged when the clock is read
                spans.append(Span(item, start, comm.time()))
    for request in sends:
        request.wait()
    return spans


def price_units(
    schedule: Schedule,
    stages: int,
    microbatches: int,
    forward: float = 1.0,
    input_gradient: float = 1.0,
    weight_gradient: float = 1.0,
    message: float = 0.0,
) -> Price:
    """The cost of a schedule with equal stages.

    ``forward``, ``input_gradient`` and ``weight_gradient``: seconds of a whole stage for a
    microbatch; ``message``: seconds of a message. Memory is in chunks of a microbatch, which are
    kept until its weight gradient. Raises ScheduleError if the schedule cannot run.
    """
    programs = [program(schedule, stage, stages, microbatches) for stage in range(stages)]
    validate(programs, schedule, microbatches)
    units = {
        Forward: forward,
        Backward: input_gradient + weight_gradient,
        InputGradient: input_gradient,
        WeightGradient: weight_gradient,
    }
    return price(
        programs,
        Machine("units", latency=message, bandwidth=float("inf")),
        seconds=lambda item: units[type(item)] / schedule.chunks,
        memory=lambda item: Memory(saved=1, backward=1, deferred=1),
    )
