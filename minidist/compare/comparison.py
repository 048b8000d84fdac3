"""Compare: train one model by every method, on the same data, and compare the results.

Each method is called in the same way, with the same model, seed and global batches. The numbers
below are measured, and shown with their predictions. Bytes, messages and memory are predicted by
the method's closed formulas, and must be equal. Idle time and seconds are predicted by simulating
the same steps (``parallel/simulation.py``) on the machine of the local world, or on a machine that
was calibrated from the MPI ranks:

    loss and parameter gap   largest relative difference to serial, over all steps
    bytes, messages          sent by each rank in a training step
    peak bytes               parameters, gradients, optimizer state and saved activations of a rank
    idle fraction            share of all ranks' time in which they do not compute
    step seconds             median of the slowest rank; virtual in the local world

``tasks.py`` has the models and data, ``rows.py`` the methods. ``trial.py`` finds the methods that
cannot be trained here, and ``measure.py`` trains the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, TypeVar

import numpy as np

from minidist import __version__
from minidist.collectives.calibrate import calibrate
from minidist.collectives.replay import check, replay
from minidist.comm.choices import recorded
from minidist.comm.comm import Comm
from minidist.comm.errors import NoSharedMemory
from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalComm, LocalWorld
from minidist.comm.machine import Machine
from minidist.comm.mpi.world import MpiWorld
from minidist.comm.trace import Event
from minidist.compare.measure import LeftOut, Progress, Record, Settings, relative_gap, train
from minidist.compare.rows import DOZEN, OWN, Make, Rows, Selection, names, select
from minidist.compare.surroundings import host, in_json, memory, versions
from minidist.compare.tasks import DEFAULT_TASK, TASKS, Task, task_of
from minidist.compare.trial import refused
from minidist.data import Batches
from minidist.engine.array import DType, defaults
from minidist.parallel.method import training_flops
from minidist.parallel.simulation import simulate

__all__ = [
    "DOZEN",
    "KINDS",
    "TASKS",
    "Progress",
    "Record",
    "Task",
    "compare",
    "names",
    "relative_gap",
]

T = TypeVar("T")
SIMULATED = 8  # steps; with more, the median hardly changes
KINDS = ("parameters", "gradients", "optimizer", "activations")


def compare(
    methods: Selection = "default",
    task: str | Task | Callable[[], Task] = DEFAULT_TASK,
    ranks: int = 4,
    world: LocalWorld | MpiWorld | None = None,
    steps: int = 50,
    batch: int = 128,
    dtype: DType = "float32",
    seed: int = 0,
    progress: Progress | None = None,
    mesh: str = "",
    algorithms: Sequence[dict[str, Any]] = (),
    *,
    model: str | None = None,
) -> tuple[dict[str, Any], dict[str, list[list[Event]]]]:
    """Run the comparison; returns the report (the content of compare.json) and timelines by method.

    ``methods``: see ``rows.select``; ``task``: see ``tasks.task_of`` (in version 0.1 it was called
    ``model``). Under ``mpirun`` call it on every rank; ``ranks`` is used only in the local world.
    ``progress`` is called on rank 0 after every step. ``algorithms``: those of another run's
    report, to sum in the same order: see ``collectives/replay.py``. Raises ValueError for unknown
    names. A row that cannot be trained is left out, and the report gives the reason.

    >>> report, _ = compare("zero", "mlp", ranks=2, steps=1, batch=8)
    >>> [row["variant"] for row in report["rows"]]
    [None, '1', '2', '3']
    """
    chosen = task_of(model or task)
    if steps < 1:
        raise ValueError(f"compare needs at least one step, not {steps}")
    check(list(algorithms))
    settings = Settings(chosen, steps, batch, seed, progress)
    rows = select(methods, chosen, mesh)
    world = world or LocalWorld()
    size = world.size if isinstance(world, MpiWorld) else ranks
    if isinstance(world, LocalWorld):
        _check_memory(chosen, size, dtype)
    reasons = _on_rank_0(
        world,
        lambda: refused(rows, settings, size, dtype, local=isinstance(world, LocalWorld)),
    )

    def run(comm: Comm) -> dict[str, Any]:
        with defaults(dtype=dtype):
            replay(comm, algorithms)
            return _run_all(comm, rows, reasons, settings)

    results = launch(run, ranks, world)
    machine = results[0]["machine"]
    training, _ = chosen.data()
    report: dict[str, Any] = {
        "minidist": __version__,
        "versions": versions(),
        "host": results[0]["host"],
        "world": world.name,
        "library": world.library,
        "machine": in_json(machine),
        "task": chosen.name,
        "model": chosen.name,  # the key's name in version 0.1
        "dataset": training.name,
        "ranks": len(results),
        "steps": steps,
        "batch": batch,
        "dtype": str(np.dtype(dtype)),
        "seed": seed,
        "rows": [],
        "not_applicable": {},  # the reason, by method
        "algorithms": recorded(result["chosen"] for result in results),  # that "auto" took
    }
    timelines = {}
    predicted = _on_rank_0(
        world,
        lambda: {
            key: _simulated(key, make, settings, 1 if key == "serial" else size, machine, dtype)
            for key, make in rows.items()
            if not isinstance(results[0]["records"][key], LeftOut)
        },
    )
    for key in rows:
        records = [result["records"][key] for result in results if key in result["records"]]
        if isinstance(records[0], LeftOut):
            report["not_applicable"][key] = records[0].reason
            continue
        serial = results[0]["records"]["serial"].losses
        report["rows"].append(_row(key, records, serial, steps, predicted[key]))
        timelines[key] = [record.events for record in records]
    return report, timelines


def _check_memory(task: Task, ranks: int, dtype: DType) -> None:
    """ValueError if this computer cannot hold every rank's parameters and gradients at once."""
    numbers = sum(parameter.size for parameter in task.model().parameters())
    needed, there = 2 * ranks * numbers * np.dtype(dtype).itemsize, memory()
    if needed > there:
        raise ValueError(
            f"{ranks} ranks in this process need {needed / 1e9:.1f} GB for parameters and "
            f"gradients of {task.name}, and this computer has {there / 1e9:.1f} GB: use fewer "
            "ranks, or a smaller model"
        )


def _on_rank_0(world: LocalWorld | MpiWorld, find: Callable[[], dict[str, T]]) -> dict[str, T]:
    """The result of ``find()`` on every rank; under MPI only rank 0 calls it."""
    if not isinstance(world, MpiWorld):
        return find()
    text = json.dumps(find() if world.rank == 0 else None)
    found: dict[str, T] = json.loads(world.from_rank_0(text))
    return found


def _run_all(comm: Comm, rows: Rows, reasons: dict[str, str], settings: Settings) -> dict[str, Any]:
    """One rank's part: all methods one after another; serial on rank 0 only."""
    records: dict[str, Record | LeftOut] = {}
    oracle: list[dict[str, np.ndarray]] = []  # serial's parameters after every step, on rank 0
    alone = comm.split(comm.rank)
    machine = getattr(comm, "machine", Machine())
    for key, make in rows.items():
        comm.barrier()
        if key in reasons:
            records[key] = LeftOut(reasons[key])
        elif key == "serial":
            if comm.rank == 0:
                records[key] = train(alone, key, make, settings, machine, oracle)
            comm.barrier()
            if not isinstance(comm, LocalComm):
                machine = calibrate(comm, _flop_rate(records.get(key), settings))
        else:
            try:
                records[key] = train(comm, key, make, settings, machine, oracle)
            except NoSharedMemory as error:  # raised by every rank
                records[key] = LeftOut(str(error))
    return {
        "records": records,
        "machine": machine,
        "host": host(),
        "chosen": comm.trace.choices,
    }


def _flop_rate(serial: Record | LeftOut | None, settings: Settings) -> float:
    """FLOPs per second of this model's training step, measured by serial training."""
    if not isinstance(serial, Record):
        return Machine().flops
    training, _ = settings.task.data()
    shape = (settings.batch, *training.input_shape)
    return sum(training_flops(settings.task.model(), shape)) / median(serial.seconds)


def _simulated(
    key: str,
    make: Make,
    settings: Settings,
    ranks: int,
    machine: Machine,
    dtype: DType,
) -> list[float] | None:
    """[idle fraction, seconds] of the simulated steps; None if a user's own method or task fails
    on arrays without numbers."""
    task = settings.task
    training, _ = task.data()
    batches = Batches(training, settings.batch, settings.seed)
    try:
        found = simulate(
            lambda comm: make(task.model(), task.loss(), task.optimizer(), comm, settings.seed),
            batches,
            ranks,
            machine,
            steps=min(settings.steps, SIMULATED),
            dtype=dtype,
        )
    except Exception:
        if key.startswith(f"{OWN}/") or TASKS.get(task.name) is not task:
            return None
        raise
    return [found.idle_fraction, found.step_seconds]


def _row(
    key: str,
    records: list[Record],
    serial_losses: list[float],
    steps: int,
    simulated: list[float] | None,
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
        "uncounted": max(record.uncounted for record in records),  # the MPI library's collectives
        "bytes_sent": [_per_step(record.nbytes, steps) for record in records],
        "predicted_bytes_sent": _each_per_step(first.predicted_nbytes, steps),
        "messages_sent": [_per_step(record.messages, steps) for record in records],
        "predicted_messages_sent": _each_per_step(first.predicted_messages, steps),
        "peak_bytes": {kind: [record.peak_bytes[kind] for record in records] for kind in KINDS},
        "predicted_peak_bytes": first.predicted_peak_bytes,
        "idle_fraction": max(0.0, float(np.median(1 - busy / slowest))),
        "predicted_idle_fraction": simulated and simulated[0],
        "step_seconds": float(np.median(slowest)),
        "predicted_step_seconds": simulated and simulated[1],
    }


def _each_per_step(totals: list[int] | None, steps: int) -> list[int | float] | None:
    return None if totals is None else [_per_step(total, steps) for total in totals]


def _per_step(total: int, steps: int) -> int | float:
    """The mean per step; an integer if it is a whole number."""
    return total // steps if total % steps == 0 else total / steps
