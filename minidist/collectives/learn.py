"""Which all-reduce is the fastest here: measured at the first call, in a few milliseconds.

Which algorithm wins depends on the machine, and even on which of its cores the ranks run: for 64
MB, shared memory was faster than halving and doubling on two cores that share a cache, and slower
on two that do not. And a system may forbid cross memory. No table made elsewhere knows that. So
``algorithm="auto"`` measures before its first call for arrays of about a size, on other arrays of
that size:

    sizes            from a quarter of the array's to its own
    each turn        every candidate, in another order each time, on data just written; short arrays
                     several times in a row, since ranks do not begin at quite the same moment
    a call's time    that of its slowest rank; of all calls, the shortest
    after 2 turns    only candidates within 2 times the fastest stay, after 4 within 1.5, after 8
                     within 1.15: most of the time is for those that are hard to tell apart

A disturbance only makes a call longer, so one undisturbed call of each candidate is enough, however
busy the machine is: each call is timed, and short arrays, whose turns cost little, get five turns
at least. A size takes longer than ``LIMIT`` only by these turns, or by two if it is long. Every
rank sees the same times, so all choose alike. Messages of these measurements are not counted and
not in the trace.

The order in which numbers are added depends on the algorithm. A run that must give the same bits
again takes the algorithms of the run before (``replay.py``; checkpoints do), names its algorithm,
or reads a table: ``minidist bench collectives --tune``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from minidist.collectives import (
    double_tree,
    halving_doubling,
    library,
    recursive_doubling,
    ring,
    segmented_ring,
)
from minidist.collectives.algorithm import Algorithm
from minidist.collectives.shared import cross_memory, shared_memory
from minidist.comm.comm import Comm
from minidist.comm.errors import CommError
from minidist.engine.array import Array, module_of

LIBRARY = Algorithm("library", library.all_reduce)
CANDIDATES = {
    one.name: one
    for one in (
        recursive_doubling.all_reduce,
        ring.all_reduce,
        segmented_ring.all_reduce,
        halving_doubling.all_reduce,
        double_tree.all_reduce,
        shared_memory.all_reduce,
        cross_memory.all_reduce,
        LIBRARY,
    )
}
LIMIT = 0.004  # seconds of turns for one size, if two turns do not take longer
LARGEST = 1 << 22  # bytes that are measured: longer arrays take what is best for this many
TURNS = 40
WITHIN = {1: 2.0, 3: 1.5, 7: 1.15}  # after this turn, how near to the fastest a candidate must be
IN_A_ROW = 1 << 17  # bytes that a candidate adds in a turn, in up to 8 calls


def size_class(nbytes: int) -> int:
    """Arrays of one class take the same algorithm: (4ᵏ⁻¹, 4ᵏ] bytes, up to ``LARGEST``.

    >>> size_class(1000), size_class(1024), size_class(1025)
    (5, 5, 6)
    """
    return (min(max(nbytes, 1), LARGEST) - 1).bit_length() + 1 >> 1


def learn(comm: Comm, array: Array) -> str | None:
    """The name of the fastest all-reduce for arrays such as ``array``; the same on every rank.

    None where nothing can be measured: see ``Comm.unrecorded``. Every rank must call it.
    """
    probe = comm.unrecorded()
    if probe is None:
        return None
    start = comm._enter("all_reduce, measured before its first call")  # for the watchdog
    seconds = measure(probe, array)
    comm._left("barrier", start)
    return min(seconds, key=seconds.__getitem__)


def measure(comm: Comm, array: Array) -> dict[str, float]:
    """Seconds of each candidate that can add such arrays, the same on every rank."""
    length = min(array.size, LARGEST // array.itemsize)
    work = module_of(array).zeros(length, array.dtype)  # what lies in memory may overflow
    able = np.array([works(partial(one.run, comm, work[:1])) for one in CANDIDATES.values()], float)
    recursive_doubling.all_reduce.run(comm, able, "min")  # on every rank, or nowhere
    calls = {
        name: partial(one.run, comm, work)
        for (name, one), taken in zip(CANDIDATES.items(), able, strict=True)
        if taken
    }
    least = dict.fromkeys(calls, float("inf"))
    in_a_row = max(1, min(8, IN_A_ROW // max(1, work.nbytes)))
    enough = 1 if in_a_row == 1 else 4  # the turn from which on the limit counts
    start = time.perf_counter()
    for turn in range(TURNS):
        names = list(calls)
        repeats = min(2, in_a_row) if turn < 2 else in_a_row  # the slowest are soon known
        found = np.zeros(len(names) * repeats + 1)
        each = found[:-1].reshape(len(names), repeats)  # the seconds of each call
        for place in range(len(names)):
            index = (place + turn) % len(names)
            work.fill(0)  # sums of zeros stay finite; and a gradient, too, has just been written
            each[index] = seconds_of(comm, calls[names[index]], repeats)
        found[-1] = time.perf_counter() - start
        recursive_doubling.all_reduce.run(comm, found, "max")
        for name, shortest in zip(names, each.min(axis=1).tolist(), strict=True):
            least[name] = min(least[name], shortest)
        if turn in WITHIN:
            best = min(least[name] for name in calls) * WITHIN[turn]
            calls = {name: call for name, call in calls.items() if least[name] <= best}
        if len(calls) == 1 or (turn >= enough and found[-1] > LIMIT):
            break
    return {name: least[name] for name in calls}


def seconds_of(comm: Comm, call: Callable[[], object], repeats: int) -> np.ndarray:
    """Seconds of each of several calls in a row, on this rank; all ranks begin together."""
    recursive_doubling.all_reduce.run(comm, np.zeros(1), "max")
    ends = [time.perf_counter()]
    for _ in range(repeats):
        call()
        ends.append(time.perf_counter())
    return np.diff(ends)


def works(call: Callable[[], object]) -> bool:
    """Whether an algorithm takes such arrays, on such ranks, as this rank sees it."""
    try:
        call()
    except (CommError, KeyError, TypeError, ValueError, NotImplementedError):
        return False
    return True
