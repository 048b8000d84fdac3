"""Time several calls on all ranks: in many short turns, on data just written.

turns       Disturbances only add time, so the smallest time counts. A turn lasts as long as its
            slowest rank. It runs all calls, so that all run under the same load; the order
            changes from turn to turn, so that no call always follows the same one.
fresh data  Before every call each rank writes its arrays again, outside the measured time, as a
            backward writes gradients. Otherwise a call depends on the call before it: an array
            that the other core has just read is slower to write, and an array that no rank
            writes is soon read from the reader's own cache. This can make the same ring, on the
            same arrays, 2.5 times slower.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minidist.collectives import all_reduce
from minidist.comm.comm import Comm

SLICE = 0.0005  # least seconds of a turn: short turns are often undisturbed
LIMIT = 8.0  # seconds for all turns, after the fifth


class Call(NamedTuple):
    """A function without arguments, and the arrays to write before each call."""

    function: Callable[[], object]
    arrays: tuple[np.ndarray, ...] = ()

    def seconds(self, repeats: int) -> float:
        """Seconds of one call, on this rank."""
        elapsed = 0.0
        for _ in range(repeats):
            for array in self.arrays:
                array.fill(0)  # sums of zeros stay finite after many calls
            start = time.perf_counter()
            self.function()
            elapsed += time.perf_counter() - start
        return elapsed / repeats


def least_seconds(comm: Comm, calls: dict[str, Call], turns: int) -> dict[str, float]:
    """The smallest seconds of each call over all turns, the same numbers on all ranks."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    slowest, elapsed = np.zeros(1), np.zeros(1)
    begin = time.perf_counter()
    for turn in range(-2, turns):  # the first two turns warm up, and decide how often to call
        elapsed[0] = time.perf_counter() - begin
        all_reduce(comm, elapsed, "max", algorithm="recursive_doubling")
        if turn >= 5 and elapsed[0] > LIMIT:
            break
        for name in random.Random(turn).sample(list(calls), len(calls)):  # the same on all ranks
            call = calls[name]
            call.seconds(1)  # fills the cache, as in a loop of this call
            comm.barrier()
            slowest[0] = call.seconds(repeats[name])
            all_reduce(comm, slowest, "max", algorithm="recursive_doubling")
            if turn < 0:
                repeats[name] = max(1, min(2000, int(SLICE / slowest[0])))
            else:
                found[name].append(float(slowest[0]))
    return {name: min(values) for name, values in found.items()}
