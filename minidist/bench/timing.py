"""Fair timing: paired, interleaved runs in one process, and the median of their ratios.

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
from collections.abc import Callable
from typing import Any

from minidist.engine import array as arrays

Step = Callable[[], object]
Clock = Callable[[], float]
WALL: Clock = time.perf_counter
CPU: Clock = time.process_time


def interleaved(
    steps: dict[str, Step],
    seconds: float,
    rounds: int = 5,
    clock: Clock = WALL,
    in_a_row: int = 1,
) -> dict[str, list[float]]:
    """Seconds of a run of each step, in turn, for about ``seconds`` and at least ``rounds``.

    A turn is ``in_a_row`` runs, and their mean counts. This matters if the host is the limit, as in
    launching a GPU's kernels: directly after another program a run has cold caches.
    """
    for step in steps.values():  # warm up: caches, lazy imports, allocators
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < rounds:
        for name, step in steps.items():
            start = clock()
            for _ in range(in_a_row):
                step()
            times[name].append((clock() - start) / in_a_row)
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


def microseconds(function: Step, calls: int = 500, repeats: int = 21, clock: Clock = WALL) -> float:
    """Microseconds per call: the median over repeats of the mean over many calls."""
    function()
    means = []
    for _ in range(repeats):
        start = clock()
        for _ in range(calls):
            function()
        means.append((clock() - start) / calls)
    return statistics.median(means) * 1e6
