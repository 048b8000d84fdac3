"""Try each row before the comparison: can it be trained on this number of ranks?

Some methods cannot train some models: PipeDream cannot train a GPT whose embedding is in two
stages, and a pipeline of eight stages needs eight blocks. A method then raises an exception; but if
only some ranks raised it, the others would wait. So each row is first tried for a step in the local
world, where a deadlock is an error and no MPI message is sent. minidist's own rows run on arrays
that have only shapes, a user's method or task on real arrays. If a row raises an exception, it is
left out, with the exception as the reason, and the other rows are trained.
"""

from __future__ import annotations

from typing import Any

from minidist.comm.errors import CommError
from minidist.comm.local.world import LocalWorld
from minidist.compare.measure import Settings
from minidist.compare.rows import OWN, Make, Rows
from minidist.compare.tasks import TASKS
from minidist.data import Batches
from minidist.engine.array import DType, defaults
from minidist.parallel import Serial
from minidist.parallel.method import Unsupported
from minidist.parallel.simulation import simulate


def refused(
    rows: Rows, settings: Settings, ranks: int, dtype: DType, local: bool
) -> dict[str, str]:
    """For each row that cannot be trained here, the reason. ``local``: in the local world."""
    training, _ = settings.task.data()
    batches = Batches(training, settings.batch, settings.seed)
    found = {}
    for key, make in rows.items():
        if make is Serial:
            continue
        numbers = key.startswith(f"{OWN}/") or TASKS.get(settings.task.name) is not settings.task
        try:
            _step(make, settings, batches, ranks, dtype, numbers)
        except Exception as error:
            if type(error) is CommError and not local:
                continue  # it may work there: the local world, for example, has no MPI library
            found[key] = reason(error)
    return found


def _step(
    make: Make, settings: Settings, batches: Batches, ranks: int, dtype: DType, numbers: bool
) -> None:
    task = settings.task

    def made(comm: Any) -> Any:
        return make(task.model(), task.loss(), task.optimizer(), comm, settings.seed)

    if not numbers:
        simulate(made, batches, ranks, dtype=dtype)
        return

    def step(comm: Any) -> None:
        with defaults(dtype=dtype):
            method = made(comm)
            method.guard(not_finite="go on")
            method.step(batches[0])
            method.parameters()

    LocalWorld().run(step, ranks)


def reason(error: Exception) -> str:
    """An exception's message; with its class, if it is not a refusal."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, Unsupported)):
        return text
    return f"{type(error).__name__}: {text}"
