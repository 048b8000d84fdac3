"""Fair timing: paired, interleaved runs, and the median of their ratios.

Between two runs, the state of the machine may change: the clock speed, or the load of other
programs. So one run of each program is timed in turn, many times. The ratio is taken *within* each
round, where the machine was nearly the same, and the median leaves out disturbed rounds.

If other programs share the processor, the wall clock includes their time. ``CPU`` counts only the
time in which this process ran: for steps on one thread, the time that they would take alone.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from minidist.engine import array as arrays

Step = Callable[[], object]
Clock = Callable[[], float]
WALL: Clock = time.perf_counter
CPU: Clock = time.process_time


class Elsewhere(Protocol):
    """A step of another process, which measures it itself: the mean seconds of so many runs."""

    def seconds(self, runs: int) -> float: ...


def seconds_of(step: Step, runs: int, clock: Clock) -> float:
    """The mean seconds of so many runs."""
    start = clock()
    for _ in range(runs):
        step()
    return (clock() - start) / runs


def interleaved(
    steps: Mapping[str, Step | Elsewhere],
    seconds: float,
    rounds: int = 5,
    clock: Clock = WALL,
    in_a_row: int = 1,
) -> dict[str, list[float]]:
    """Seconds of a run of each step, in turn, for about ``seconds`` and at least ``rounds``.

    A turn is ``in_a_row`` runs, and their mean counts. This matters if the host is the limit, as in
    launching a GPU's kernels: directly after another program a run has cold caches.
    """

    def turn(step: Step | Elsewhere, runs: int) -> float:
        return seconds_of(step, runs, clock) if callable(step) else step.seconds(runs)

    for step in steps.values():  # warm up: caches, lazy imports, allocators
        turn(step, 2)
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < rounds:
        for name, step in steps.items():
            times[name].append(turn(step, in_a_row))
    return times


def ratio(times: dict[str, list[float]], ours: str, theirs: str) -> float | None:
    """The median over rounds of our time over theirs; None if they did not run."""
    if theirs not in times:
        return None
    return statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))


def median(times: list[float] | None) -> float | None:
    """The median; None if there are no values."""
    return statistics.median(times) if times else None


def peak_bytes(step: Step, device: str = "cpu") -> int:
    """The peak memory of one run of ``step``, without the memory allocated before.

    On a GPU: memory from CuPy's pool, in blocks of a multiple of 512 bytes.
    """
    cuda = getattr(arrays.module(device), "cuda", None)
    if hasattr(cuda, "MemoryHook"):
        return _peak_on_gpu(step, cuda)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _peak_on_gpu(step: Step, cuda: Any) -> int:
    class Peak(cuda.MemoryHook):
        name = "peak"
        held = most = 0

        def malloc_postprocess(self, **block: Any) -> None:
            self.held += block["mem_size"]
            self.most = max(self.most, self.held)

        def free_postprocess(self, **block: Any) -> None:
            self.held -= block["mem_size"]

    with Peak() as peak:
        step()
    return peak.most


def microseconds(
    step: Step | Elsewhere, calls: int = 500, repeats: int = 21, clock: Clock = WALL
) -> float:
    """Microseconds of a call: the median over repeats of the mean over many calls."""
    times = interleaved({"step": step}, 0, repeats, clock, calls)
    return statistics.median(times["step"]) * 1e6
