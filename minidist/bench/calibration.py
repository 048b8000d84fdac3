"""Find a machine's launch, bytes and FLOPs a second from the times of parts of a step.

What a core reaches depends on what it computes: a GELU does more for each byte than an addition,
a product of 32 rows reaches half of the FLOPs a second of one of 512. So a machine is found for
one model: from its blocks, its loss and its optimizer, each alone, at the sizes that occur. All
ranks compute at the same time, since cores share the memory's bandwidth, and the parts take turns,
so that caches hold no more of a part than in a step. Whole steps are not looked at.

    seconds of a part = Σ over its kernels  launch + max(FLOPs / F, bytes / B)

with the kernels that the part has on arrays without numbers. ``fitted`` finds launch, F and B.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from minidist.bench.parts import Job, Part, parts
from minidist.collectives import all_reduce, central
from minidist.collectives.calibrate import calibrate
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine
from minidist.engine.arithmetic import work
from minidist.parallel.model_costs import parameter_count

Prices = tuple[float, float, float]  # seconds a launch, a byte, a FLOP
Clock = Callable[[], float]


def calibrated(comm: Comm, job: Job, rows: Sequence[int], turns: int, clock: Clock) -> Machine:
    """The machine on which all ranks compute parts of steps on so many ``rows``.

    Every rank must call it; every rank gets the same machine.
    """
    count = parameter_count(job.model())
    found = [part for length in rows for part in parts(job, length, count)]
    seconds = np.array(timed(comm, found, turns, clock))
    all_reduce(comm, seconds)
    kernels = [kernels_of(part) for part in found]
    prices = np.array(fitted(kernels, seconds / comm.size, [part.times for part in found]))
    central.broadcast(comm, prices)
    launch, per_byte, per_flop = (float(price) for price in prices)
    links = calibrate(comm, 1 / per_flop)
    return replace(links, name="calibrated", launch=launch, memory_bandwidth=1 / per_byte)


def timed(comm: Comm, found: Sequence[Part], turns: int, clock: Clock) -> list[float]:
    """The median seconds of each part on this rank; all parts take turns."""
    runs = [part.make("cpu") for part in found]
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(turns + 1):
        comm.barrier()
        for run, own in zip(runs, times, strict=True):
            start = clock()
            run()
            if turn:  # the first warms up
                own.append(clock() - start)
    return [median(own) for own in times]


def middle(run: Callable[[], object], seconds: float) -> float:
    """The median processor time of a call, among those that fit into ``seconds``."""
    times, end = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return median(times)


def kernels_of(part: Part) -> np.ndarray:
    """Bytes and FLOPs of each kernel of a part: an array (kernels, 2)."""
    run = part.make("phantom")
    run()
    with work.listing() as kernels:
        run()
    return np.array(kernels, float).reshape(-1, 2)


def fitted(
    kernels: Sequence[np.ndarray], seconds: np.ndarray, times: Sequence[int], rounds: int = 100
) -> Prices:
    """The prices that explain the parts' ``seconds`` best; a step has each part so many ``times``.

    Least squares of the relative errors, each weighted by the part's share of the step. At the end
    all prices are scaled, so that the sum over the parts is as measured.
    """
    weights = np.asarray(times) * seconds
    root, prices = np.sqrt(weights / weights.sum()), np.array([3e-6, 1e-10, 1e-11])
    best = prices, np.inf
    for _ in range(rounds):  # Gauss-Newton on the logarithms of the prices: they stay positive
        table = np.array([_by_price(one, prices) for one in kernels])
        error = root * (table.sum(axis=1) / seconds - 1)
        if error @ error < best[1]:
            best = prices, float(error @ error)
        slope = root[:, None] * table / seconds[:, None]
        step = np.linalg.lstsq(slope, -error, rcond=1e-6)[0]
        prices = prices * np.exp(np.clip(step, -0.3, 0.3))
    prices = best[0]
    total = sum(n * _by_price(one, prices).sum() for n, one in zip(times, kernels, strict=True))
    launch, per_byte, per_flop = prices * (weights.sum() / total)
    return float(launch), float(per_byte), float(per_flop)


def _by_price(kernels: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Seconds of a part by what takes them: launches, bytes, FLOPs."""
    launch, per_byte, per_flop = prices
    moving, computing = kernels[:, 0] * per_byte, kernels[:, 1] * per_flop
    by_bytes = moving > computing
    return np.array([launch * len(kernels), moving[by_bytes].sum(), computing[~by_bytes].sum()])


def wall_or_processor(comm: Comm) -> Clock:
    """The clock for both: one rank never waits, so its processor time says the same, undisturbed.

    Ranks that wait for each other need the time on the wall.
    """
    return time.perf_counter if comm.size > 1 else time.thread_time
