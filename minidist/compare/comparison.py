"""Compare: train one model by every method, on the same data, and compare the results.

Each method is called in the same way, with the same model, seed and global batches. These numbers
are measured, and shown next to what is predicted. Bytes, messages and memory are predicted by the
method's closed formulas, and equal if they are right. Idle time and seconds are predicted by
running the same steps without numbers (``parallel/simulation.py``) on a machine that is calibrated
before, or on that of the local world:

    loss and parameter gap   largest relative difference to serial, over all steps
    bytes, messages          sent by each rank in a training step
    peak bytes               parameters, gradients, optimizer state and saved activations of a
                             rank; the work arrays of collectives are not counted
    idle fraction            share of all ranks' time in which they do not compute
    step seconds             median of the slowest rank; virtual in the local world

All ranks begin a step together, after a barrier that is not counted. Set-up, the collection of
parameters and evaluation are not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from minidist import __version__
from minidist.collectives.calibrate import calibrate
from minidist.comm.comm import Comm
from minidist.comm.errors import NoSharedMemory
from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalComm, LocalWorld
from minidist.comm.machine import Machine
from minidist.comm.mpi.world import MpiWorld
from minidist.comm.trace import Event
from minidist.data import Batches, Dataset, fashion_mnist, shakespeare, waves
from minidist.engine.array import DType, defaults
from minidist.inspect.meter import measure_saved
from minidist.inspect.metrics import accuracy
from minidist.models import gpt, mlp
from minidist.nn import CrossEntropy, Loss, MeanSquaredError
from minidist.nn.layers import Sequential
from minidist.optim import SGD, Optimizer
from minidist.parallel import METHODS, MeshParallel, Method
from minidist.parallel.mesh.mesh import parse
from minidist.parallel.method import training_flops
from minidist.parallel.simulation import Simulated, simulate
from minidist.parallel.variants import SEQUENCE_METHODS
from minidist.privacy.variants import PRIVATE_METHODS

SIMULATED = 8  # steps: of more, the median hardly changes
ALL_METHODS = METHODS | PRIVATE_METHODS
KINDS = ("parameters", "gradients", "optimizer", "activations")
Progress = Callable[[str, int, int, float], None]  # method, steps done, steps in all, loss


@dataclass(frozen=True)
class Task:
    """A model, its data, its optimizer and its loss: the same for all methods."""

    name: str
    model: Callable[[], Sequential]
    data: Callable[[], tuple[Dataset, Dataset]]
    optimizer: Callable[[], Optimizer]
    loss: Callable[[], Loss] = CrossEntropy
    sequences: bool = False  # inputs are (batch, length): there are rows that cut the length too


def small_gpt() -> Sequential:
    return gpt(63, context=32, width=64, layers=4, heads=8, dropout=0.1)


TASKS = {
    "mlp": Task("mlp", mlp, fashion_mnist, lambda: SGD(0.05, momentum=0.9)),
    "regression": Task(
        "regression",
        lambda: mlp((8, 64, 64, 64, 2)),
        waves,
        lambda: SGD(0.05, momentum=0.9),
        MeanSquaredError,
    ),
    "gpt": Task(
        "gpt",
        small_gpt,
        partial(shakespeare, 32, held_out=0.01, stride=32),
        lambda: SGD(0.2, momentum=0.9),
        sequences=True,
    ),
}
Rows = dict[str, Callable[..., Method]]


def rows_of(model: str, mesh: str = "") -> Rows:
    """All rows that a model can have; ``mesh``, such as "dp=2,tp=2", adds one for that mesh."""
    task = TASKS[model]
    rows = ALL_METHODS | (SEQUENCE_METHODS if task.sequences else {})
    if mesh:
        lengths = parse(mesh)
        made = partial(MeshParallel, mesh=lengths, microbatches=4)
        rows[f"mesh/{mesh}"] = made
        if task.sequences and lengths.get("tp", 1) > 1:
            rows[f"mesh/{mesh},sequence"] = partial(made, sequence=True)
    return rows


@dataclass
class Record:
    """The measurements of one method on one rank."""

    exact: bool
    predicted_messages: list[int]  # in all steps, by rank
    predicted_nbytes: list[int]
    losses: list[float] = field(default_factory=list)
    messages: int = 0  # in all steps
    nbytes: int = 0
    peak_bytes: dict[str, int] = field(default_factory=dict)
    predicted_peak_bytes: dict[str, list[int]] = field(default_factory=dict)
    busy: list[float] = field(default_factory=list)  # by step
    seconds: list[float] = field(default_factory=list)
    machine: Machine = field(default_factory=Machine)  # on which to predict
    events: list[Event] = field(default_factory=list)  # of the last step
    parameter_gap: float = 0.0  # to serial; only rank 0 fills this and accuracy
    accuracy: float | None = None  # None if there are no classes to guess
    why_inexact: str = ""  # the model's reason, if it has one


@dataclass
class NotApplicable:
    """In place of a Record: these ranks cannot train so."""

    reason: str


def names(selection: str, model: str = "mlp", mesh: str = "") -> list[str]:
    """The methods in a selection such as ``"data_parallel,pipeline/gpipe"``.

    The name of a method selects all its variants, and ``"all"`` selects all methods. Serial is
    always included, as the first; and so is the row of ``mesh``.
    """
    rows = rows_of(model, mesh)
    chosen = {"serial"}
    for part in selection.split(","):
        found = [key for key in rows if part in ("all", key, key.split("/")[0])]
        if not found:
            raise ValueError(f"unknown method {part!r}: choose among {', '.join(rows)}")
        chosen.update(found)
    chosen.update(key for key in rows if mesh and key.startswith(f"mesh/{mesh}"))
    return [key for key in rows if key in chosen]


def compare(
    methods: Sequence[str] = tuple(ALL_METHODS),
    model: str = "mlp",
    ranks: int = 4,
    world: LocalWorld | MpiWorld | None = None,
    steps: int = 50,
    batch: int = 128,
    dtype: DType = "float32",
    seed: int = 0,
    progress: Progress | None = None,
    mesh: str = "",
) -> tuple[dict[str, Any], dict[str, list[list[Event]]]]:
    """Run the comparison; returns the report (the content of compare.json) and timelines by method.

    Under ``mpirun`` call it on every rank; ``ranks`` is used in the local world only.
    ``progress`` is called on rank 0 after every step. Raises ValueError for unknown names.
    """
    if model not in TASKS:
        raise ValueError(f"unknown model {model!r}: choose one of {', '.join(TASKS)}")
    if steps < 1:
        raise ValueError(f"compare needs at least one step, not {steps}")
    task = TASKS[model]
    rows = rows_of(model, mesh)
    keys = [key for key in rows if key in methods or key == "serial"]

    def run(comm: Comm) -> dict[str, Any]:
        with defaults(dtype=dtype):
            return _run_all(comm, keys, rows, task, steps, batch, seed, progress)

    world = world or LocalWorld()
    results = launch(run, ranks, world)
    report: dict[str, Any] = {
        "minidist": __version__,
        "world": world.name,
        "library": world.library,
        "model": task.name,
        "dataset": task.data()[0].name,
        "ranks": len(results),
        "steps": steps,
        "batch": batch,
        "dtype": str(np.dtype(dtype)),
        "seed": seed,
        "rows": [],
        "not_applicable": {},  # the reason, by method
    }
    timelines = {}
    batches = Batches(task.data()[0], batch, seed)
    for key in keys:
        records = [result[key] for result in results if key in result]
        if isinstance(records[0], NotApplicable):
            report["not_applicable"][key] = records[0].reason
            continue
        simulated = simulate(
            lambda comm, make=rows[key]: make(  # type: ignore[misc]
                task.model(), task.loss(), task.optimizer(), comm, seed
            ),
            batches,
            len(records),
            records[0].machine,
            steps=min(steps, SIMULATED),
            dtype=dtype,
        )
        report["rows"].append(_row(key, records, results[0]["serial"].losses, steps, simulated))
        timelines[key] = [record.events for record in records]
    return report, timelines


def _run_all(
    comm: Comm,
    keys: list[str],
    rows: Rows,
    task: Task,
    steps: int,
    batch: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """One rank's part: all methods one after another; serial on rank 0 only."""
    records: dict[str, Any] = {}
    oracle: list[dict[str, np.ndarray]] = []  # serial's parameters after every step, on rank 0
    alone = comm.split(comm.rank)
    machine = getattr(comm, "machine", Machine())
    for key in keys:
        comm.barrier()
        if key == "serial":
            if comm.rank == 0:
                records[key] = _run(
                    alone, key, rows[key], task, steps, batch, seed, machine, oracle, progress
                )
            comm.barrier()
            if not isinstance(comm, LocalComm):
                rate = _flop_rate(records.get(key), task, batch)
                machine = calibrate(comm, rate)
        else:
            make = rows[key]
            try:
                records[key] = _run(
                    comm, key, make, task, steps, batch, seed, machine, oracle, progress
                )
            except NoSharedMemory as error:  # raised by every rank
                records[key] = NotApplicable(str(error))
    return records


def _run(
    comm: Comm,
    key: str,
    make: Callable[..., Method],
    task: Task,
    steps: int,
    batch: int,
    seed: int,
    machine: Machine,
    oracle: list[dict[str, np.ndarray]],
    progress: Progress | None,
) -> Record:
    """Train by one method and measure; serial training fills ``oracle``."""
    training, test = task.data()
    method = make(task.model(), task.loss(), task.optimizer(), comm, seed)
    batches = Batches(training, batch, seed)
    trace = comm.trace
    method.guard(not_finite="go on")  # a row that diverges is a row, too
    record = Record(method.exact, [0] * comm.size, [0] * comm.size, machine=machine)
    record.why_inexact = method.why_inexact
    for step in range(steps):
        part = batches[step]
        cost = method.cost(part, machine)
        comm.barrier()
        trace.events.clear()
        trace.record = step == steps - 1
        before = trace.sent.messages, trace.sent.nbytes, trace.busy
        start = comm.time()
        if step == 0:
            record.losses.append(_measured_step(method, part, record))
        else:
            record.losses.append(method.step(part))
        end = comm.time()
        trace.computed(end)
        record.messages += trace.sent.messages - before[0]
        record.nbytes += trace.sent.nbytes - before[1]
        record.busy.append(trace.busy - before[2])
        record.seconds.append(end - start)
        if trace.record:
            record.events = [_shifted(event, start) for event in trace.events]
        trace.record = False

        for rank in range(comm.size):
            record.predicted_messages[rank] += cost.messages[rank]
            record.predicted_nbytes[rank] += cost.nbytes[rank]
        if step == 0:
            record.predicted_peak_bytes = cost.peak_bytes
        state = method.parameters()
        if comm.rank == 0:
            if key == "serial":
                oracle.append(state)
            record.parameter_gap = max(record.parameter_gap, relative_gap(state, oracle[step]))
            if progress is not None:
                progress(key, step + 1, steps, record.losses[-1])
    whole = state | method.buffers()
    if comm.rank == 0:
        model = task.model().init().load(whole).eval()
        right = accuracy(model, test, loss=task.loss())
        record.accuracy = None if math.isnan(right) else right
    return record


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


def _flop_rate(serial: Record | None, task: Task, batch: int) -> float:
    """FLOPs per second of this model's training step, measured by serial training."""
    if serial is None:
        return Machine().flops
    training, _ = task.data()
    flops = sum(training_flops(task.model(), (batch, *training.input_shape)))
    return flops / median(serial.seconds)


def _row(
    key: str,
    records: list[Record],
    serial_losses: list[float],
    steps: int,
    simulated: Simulated,
) -> dict[str, Any]:
    """One method's row of compare.json, from the records of all its ranks."""
    method, _, variant = key.partition("/")
    first = records[0]
    slowest = np.max([record.seconds for record in records], axis=0)  # by step
    busy = np.mean([record.busy for record in records], axis=0)
    return {
        "method": method,
        "variant": variant or None,
        "exact": first.exact,
        "why_inexact": first.why_inexact,
        "loss": first.losses,
        "loss_gap": max(
            abs(loss - reference) / abs(reference)
            for record in records
            for loss, reference in zip(record.losses, serial_losses, strict=True)
        ),
        "parameter_gap": first.parameter_gap,
        "accuracy": first.accuracy,
        "bytes_sent": [_per_step(record.nbytes, steps) for record in records],
        "predicted_bytes_sent": [_per_step(total, steps) for total in first.predicted_nbytes],
        "messages_sent": [_per_step(record.messages, steps) for record in records],
        "predicted_messages_sent": [_per_step(total, steps) for total in first.predicted_messages],
        "peak_bytes": {kind: [record.peak_bytes[kind] for record in records] for kind in KINDS},
        "predicted_peak_bytes": first.predicted_peak_bytes,
        "idle_fraction": max(0.0, float(np.median(1 - busy / slowest))),
        "predicted_idle_fraction": simulated.idle_fraction,
        "step_seconds": float(np.median(slowest)),
        "predicted_step_seconds": simulated.step_seconds,
    }


def _per_step(total: int, steps: int) -> int | float:
    """The mean per step; an integer if it is a whole number."""
    return total // steps if total % steps == 0 else total / steps


def relative_gap(state: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """The largest difference of any parameter, relative to the largest value in its array."""
    gaps = [0.0]
    for name, values in reference.items():
        largest = np.abs(values).max(initial=0.0)
        gaps.append(float(np.abs(state[name] - values).max(initial=0.0) / (largest or 1.0)))
    return max(gaps)
