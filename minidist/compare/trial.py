"""Whether a row can be trained at all on so many ranks, before any rank sends a message.

Some methods do not suit some models: PipeDream cannot train a GPT whose table of words is in two
stages, and a pipeline of eight stages wants eight blocks. A method refuses with an exception; but
one that only some ranks meet would leave the others waiting. So each row is tried before, in the
local world, where nobody waits for ever and nothing is sent: ours for a step on arrays without
numbers, a method or task of the user's own for a step on real ones. What is raised is the reason
why the row is left out, and the others go on.
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
    """The reason, by row, of those that cannot be trained here. ``local``: in the local world."""
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
                continue  # such as: the local world has no MPI library
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
    """What an exception says; a refusal in words as it is, another kind with its name."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, Unsupported)):
        return text
    return f"{type(error).__name__}: {text}"
