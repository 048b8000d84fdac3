"""How long a call takes on all ranks: in many short turns, with the others, on data just written.

turns       whatever disturbs the machine can only add: so the least of them counts. A turn is
            as long as its slowest rank, and goes through all calls, so that all see the same
            weather; each in another order, so that nobody always follows the same one.
fresh data  before every call each rank writes its arrays anew, outside the time, as a backward
            pass writes gradients. Without that a call depends on who was there before it: an
            array that the other core has just read is slower to write, and one that nobody
            writes is soon read from the reader's own cache. The same ring, on the same arrays,
            can be 2.5 times slower for it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minidist.collectives import all_reduce
from minidist.comm.comm import Comm

SLICE = 0.0005  # seconds that a turn should last, at least: short ones slip between disturbances
LIMIT = 8.0  # seconds for all turns, after the fifth


class Call(NamedTuple):
    """A function without arguments, and the arrays to write anew before it is called."""

    function: Callable[[], object]
    arrays: tuple[np.ndarray, ...] = ()

    def seconds(self, repeats: int) -> float:
        """Of one call, on this rank."""
        elapsed = 0.0
        for _ in range(repeats):
            for array in self.arrays:
                array.fill(0)  # sums of nothing stay finite, however often
            start = time.perf_counter()
            self.function()
            elapsed += time.perf_counter() - start
        return elapsed / repeats


def least_seconds(comm: Comm, calls: dict[str, Call], turns: int) -> dict[str, float]:
    """Least seconds of each call, over all turns; all ranks agree on the numbers."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    slowest, elapsed = np.zeros(1), np.zeros(1)
    begin = time.perf_counter()
    for turn in range(-2, turns):  # the first two warm up, and find how often to call
        elapsed[0] = time.perf_counter() - begin
        all_reduce(comm, elapsed, "max", algorithm="recursive_doubling")
        if turn >= 5 and elapsed[0] > LIMIT:
            break
        for name in random.Random(turn).sample(list(calls), len(calls)):  # the same on all ranks
            call = calls[name]
            call.seconds(1)  # finds the cache as a loop of calls would: others were here meanwhile
            comm.barrier()
            slowest[0] = call.seconds(repeats[name])
            all_reduce(comm, slowest, "max", algorithm="recursive_doubling")
            if turn < 0:
                repeats[name] = max(1, min(2000, int(SLICE / slowest[0])))
            else:
                found[name].append(float(slowest[0]))
    return {name: min(values) for name, values in found.items()}
