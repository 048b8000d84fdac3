"""Train by one method on this rank and measure it, for a row of the comparison.

All ranks begin a step together, after a barrier that is not counted. Set-up, gathering parameters
and evaluation are not measured. Peak bytes are those of parameters, gradients, optimizer state and
saved activations; buffers of collectives are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minidist.collectives.algorithm import UnknownCost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.comm.trace import Event
from minidist.compare.rows import Make
from minidist.compare.tasks import Task
from minidist.data import Batches
from minidist.inspect.meter import measure_saved
from minidist.inspect.metrics import accuracy
from minidist.parallel import Method
from minidist.parallel.step_cost import StepCost

Progress = Callable[[str, int, int, float], None]  # method, steps done, steps in all, loss


@dataclass(frozen=True)
class Settings:
    """The settings that are the same for all rows."""

    task: Task
    steps: int
    batch: int
    seed: int
    progress: Progress | None = None


@dataclass
class Record:
    """The measurements of one method on one rank."""

    exact: bool
    predicted_messages: list[int] | None  # in all steps, by rank; None: there is no formula
    predicted_nbytes: list[int] | None
    losses: list[float] = field(default_factory=list)
    messages: int = 0  # in all steps
    nbytes: int = 0
    uncounted: int = 0  # collectives of the MPI library, whose messages cannot be counted
    peak_bytes: dict[str, int] = field(default_factory=dict)
    predicted_peak_bytes: dict[str, list[int]] | None = None
    busy: list[float] = field(default_factory=list)  # by step
    seconds: list[float] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)  # of the last step
    parameter_gap: float = 0.0  # to serial; only rank 0 sets this and accuracy
    accuracy: float | None = None  # None if there are no classes to guess
    why_inexact: str = ""  # the model's reason, if it has one


@dataclass
class LeftOut:
    """In place of a Record, for a row that cannot be trained here."""

    reason: str


def train(
    comm: Comm,
    key: str,
    make: Make,
    settings: Settings,
    machine: Machine,
    oracle: list[dict[str, np.ndarray]],
) -> Record:
    """Train by one method and measure it.

    ``oracle``: on rank 0, serial's parameters after every step; the serial row appends to it.
    ``machine``: for the formulas.
    """
    task, steps = settings.task, settings.steps
    training, test = task.data()
    method = make(task.model(), task.loss(), task.optimizer(), comm, settings.seed)
    batches = Batches(training, settings.batch, settings.seed)
    trace = comm.trace
    method.guard(not_finite="go on")  # a method that diverges stays in the table
    record = Record(method.exact, [0] * comm.size, [0] * comm.size)
    record.why_inexact = method.why_inexact
    for step in range(steps):
        part = batches[step]
        # The cost is of all ranks, so rank 0 alone asks for it: else p ranks compute p costs each.
        cost = cost_of(method, part, machine) if comm.rank == 0 else None
        comm.barrier()
        trace.events.clear()
        trace.record = step == steps - 1
        before = trace.sent.messages, trace.sent.nbytes, trace.busy
        uncounted = trace.uncounted
        start = comm.time()
        if step == 0:
            record.losses.append(_measured_step(method, part, record))
        else:
            record.losses.append(method.step(part))
        end = comm.time()
        trace.computed(end)
        record.messages += trace.sent.messages - before[0]
        record.nbytes += trace.sent.nbytes - before[1]
        record.uncounted += trace.uncounted - uncounted
        record.busy.append(trace.busy - before[2])
        record.seconds.append(end - start)
        if trace.record:
            record.events = [_shifted(event, start) for event in trace.events]
        trace.record = False

        if step == 0 and cost is not None:
            record.predicted_peak_bytes = cost.peak_bytes
        if cost is None:
            record.predicted_messages = record.predicted_nbytes = None
        else:
            record.predicted_messages = _added(record.predicted_messages, cost.messages)
            record.predicted_nbytes = _added(record.predicted_nbytes, cost.nbytes)
        state = method.parameters()
        if comm.rank == 0:
            if key == "serial":
                oracle.append(state)
            record.parameter_gap = max(record.parameter_gap, relative_gap(state, oracle[step]))
            if settings.progress is not None:
                settings.progress(key, step + 1, steps, record.losses[-1])
    whole = state | method.buffers()
    if comm.rank == 0:
        model = task.model().init().load(whole).eval()
        right = accuracy(model, test, loss=task.loss())
        record.accuracy = None if math.isnan(right) else right
    return record


def cost_of(method: Method, part: Any, machine: Machine) -> StepCost | None:
    """The predicted cost of the next step; None if the method has no formula."""
    if type(method).cost is Method.cost:  # a user's own method that does not define it
        return None
    try:
        return method.cost(part, machine)
    except UnknownCost:
        return None


def _added(total: list[int] | None, of_step: list[int]) -> list[int] | None:
    return total and [a + b for a, b in zip(total, of_step, strict=True)]


def _measured_step(method: Method, batch: Any, record: Record) -> float:
    """The first step; it also measures the bytes that the tape saves."""
    kept = [array for arrays in method.arrays().values() for array in arrays]
    owners = [array if array.base is None else array.base for array in kept]
    with measure_saved(exclude=owners) as meter:
        loss = method.step(batch)
    record.peak_bytes = {
        kind: sum(array.nbytes for array in arrays) for kind, arrays in method.arrays().items()
    }
    record.peak_bytes["activations"] = meter.peak
    return loss


def _shifted(event: Event, start: float) -> Event:
    return replace(event, start=event.start - start, end=event.end - start)


def relative_gap(state: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """The largest difference of any parameter, relative to the largest value in its array."""
    gaps = [0.0]
    for name, values in reference.items():
        largest = np.abs(values).max(initial=0.0)
        gaps.append(float(np.abs(state[name] - values).max(initial=0.0) / (largest or 1.0)))
    return max(gaps)
