"""Simulated time of a training step: the method's own code, run on arrays that have only shapes.

    make = lambda comm: Zero3(gpt(...), CrossEntropy(), Adam(), comm)
    found = simulate(make, Batches(dataset, 512), ranks=64, machine=profile("h100"))
    found.seconds          of each step, of the slowest rank
    found.idle_fraction    of the last step
    found.nbytes           sent by each rank in the last step

No numbers are computed, stored or read (``engine/phantom``). The local world's clock charges
kernels, messages and reductions by the machine's rules. This works for every method, with two
levels of links, with stragglers, and where the time depends on the order in which messages arrive
(SSP, async, backup workers). ``fold`` simulates identical ranks as one: see
``comm/local/folded.py``.

Where a paper has a closed formula for the time, tests check that the simulation equals it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from minidist.comm.comm import Comm
from minidist.comm.local.world import LocalWorld
from minidist.comm.machine import Machine
from minidist.comm.trace import Trace
from minidist.engine.array import DType, defaults

if TYPE_CHECKING:
    from minidist.comm.local.folded import Axis
    from minidist.parallel.method import Method


@dataclass
class Simulated:
    """Steps of a simulated run. ``messages`` and ``nbytes``: sent by each rank in the last step;
    ``traces``: one for each rank, of all steps."""

    seconds: list[float]  # by step, of the slowest rank
    busy: list[list[float]]  # by step and rank: seconds computing
    messages: list[int]
    nbytes: list[int]
    traces: list[Trace] = field(repr=False)

    @property
    def idle(self) -> list[float]:
        """By step: the fraction of the ranks' time in which they do not compute."""
        return [
            max(0.0, 1 - sum(busy) / (len(busy) * seconds)) if seconds else 0.0
            for busy, seconds in zip(self.busy, self.seconds, strict=True)
        ]

    @property
    def idle_fraction(self) -> float:
        """The median of ``idle``."""
        return median(self.idle)

    @property
    def step_seconds(self) -> float:
        """The median of ``seconds``."""
        return median(self.seconds)


def simulate(
    make: Callable[[Comm], Method],
    batches: Any,
    ranks: int = 4,
    machine: Machine | None = None,
    steps: int = 1,
    dtype: DType | None = None,
    fold: Mapping[str, Axis] | None = None,
    record: bool = False,
) -> Simulated:
    """Simulate ``steps`` training steps of ``make(comm)``, on the global ``batches[step]``.

    All ranks begin a step together (a barrier). ``dtype``: of parameters and activations; None: the
    default one. ``machine``: a ``Machine``, such as one of ``PROFILES``. ``record`` keeps every
    event, for ``Timeline(found.traces)``.
    """

    def run(comm: Comm) -> list[tuple[float, float, int, int]]:
        with defaults(dtype=dtype, device="phantom"):
            method = make(comm)
            return [_step(comm, method, batches[number]) for number in range(steps)]

    world = LocalWorld(machine, record, fold)
    by_rank = world.run(run, ranks)
    by_step = list(zip(*by_rank, strict=True))
    last = by_step[-1]
    return Simulated(
        seconds=[max(one[0] for one in step) for step in by_step],
        busy=[[one[1] for one in step] for step in by_step],
        messages=[one[2] for one in last],
        nbytes=[one[3] for one in last],
        traces=world.traces,
    )


def _step(comm: Comm, method: Method, batch: Any) -> tuple[float, float, int, int]:
    """Seconds, busy seconds, messages and bytes of a step on this rank."""
    comm.barrier()
    trace = comm.trace
    start, busy = comm.time(), trace.busy
    messages, nbytes = trace.sent.messages, trace.sent.nbytes
    method.step(batch)
    end = comm.time()
    trace.computed(end)
    sent = trace.sent.messages - messages, trace.sent.nbytes - nbytes
    return end - start, trace.busy - busy, *sent
