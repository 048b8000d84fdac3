"""How often to save: goodput, by formula and simulated.

Saving often costs time; saving rarely costs more when something crashes, for all since the last
checkpoint is computed again:

    |  τ of work  |δ|  τ of work  |δ|  τ of w ✗   R   |  τ of work  |δ| ...
                                     └ lost ┘

    τ   the interval: seconds of work from one checkpoint to the next
    δ   seconds that a checkpoint takes (with overlapped saving: what is left of them)
    R   seconds to start again
    M   mean seconds from one crash of the job to the next: a rank's, over the number of ranks

*Goodput* is the share of all time that is work which is kept. If crashes come at random, all at one
rate (a Poisson process), the time for one interval has the mean M·e^(R/M)·(e^((τ+δ)/M) - 1), and so

    goodput(τ) = τ / (M · e^(R/M) · (e^((τ+δ)/M) - 1))

(Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22(3),
2006, equation 13.) It is greatest near

    Young    τ = √(2δM)       for δ ≪ M: δ/τ is lost by saving, τ/2M by crashes; their sum is least
    Daly     τ = √(2δM)·(1 + ⅓·√(δ/2M) + ⅑·δ/2M) - δ     for δ < 2M, else M

(Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974; Daly,
equation 37.) R changes the goodput, but not where it is greatest.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from minidist.collectives import ring
from minidist.comm.comm import Comm, RankLost
from minidist.comm.local.world import LocalWorld
from minidist.comm.machine import Machine
from minidist.engine.array import work


def young_interval(delta: float, M: float) -> float:
    """√(2δM): seconds of work between checkpoints that take ``delta`` seconds.

    >>> young_interval(60, 24 * 3600) / 60  # a crash a day: about every 54 minutes
    53.665631459994955
    """
    return math.sqrt(2 * delta * M)


def daly_interval(delta: float, M: float) -> float:
    """Daly's better estimate, which subtracts the checkpoint's own time."""
    if delta >= 2 * M:
        return M
    x = delta / (2 * M)
    return math.sqrt(2 * delta * M) * (1 + math.sqrt(x) / 3 + x / 9) - delta


def expected_goodput(tau: float, delta: float, M: float, R: float = 0.0) -> float:
    """The share of time that is work which is kept, for crashes at random."""
    return tau / (M * math.exp(R / M) * math.expm1((tau + delta) / M))


@dataclass(frozen=True)
class Goodput:
    """What a simulated run came to. ``seconds`` is its whole virtual time."""

    goodput: float
    seconds: float
    crashes: int
    checkpoints: int


def crash_times(mean: float, rank: int, until: float, seed: int = 0) -> list[float]:
    """When a rank crashes: a Poisson process with ``mean`` seconds between crashes."""
    draw, now, times = random.Random(f"crashes {seed} {rank}"), 0.0, list[float]()
    while now < until:
        now += draw.expovariate(1 / mean)
        times.append(now)
    return times


def simulate(
    steps: int,
    every: int,
    step_seconds: float,
    delta: float,
    M: float,
    R: float = 0.0,
    ranks: int = 2,
    seed: int = 0,
    machine: Machine | None = None,
) -> Goodput:
    """Train ``steps`` steps in the local world, with a checkpoint ``every`` so many, and crashes.

    Every rank crashes on its own, so that the job does every ``M`` seconds on average. A step
    takes ``step_seconds`` and ends in an all-reduce; by that the others notice, and all start
    again: ``R`` seconds, and then from the last checkpoint. Crashes lie at the same times, whatever
    ``every`` is.
    Raises RuntimeError if hardly anything is ever kept, in 50 times the seconds of work.
    """
    machine = machine or Machine(latency=1e-6, bandwidth=1e12, reduce_bandwidth=1e12, flops=1e9)
    limit = 50 * steps * (step_seconds + delta)
    crashes = [crash_times(M * ranks, rank, limit, seed) for rank in range(ranks)]
    now, saved, attempts, checkpoints = 0.0, 0, 0, 0

    def compute(comm: Comm, seconds: float) -> None:
        work.flops += round(seconds * machine.flops)
        comm.time()  # charges it: a rank alone sends no message in which that happens

    def train(comm: Comm) -> None:
        nonlocal saved, checkpoints
        compute(comm, R if attempts else 0.0)
        gradient = np.zeros(1)
        begin = saved
        for step in range(begin, steps):
            compute(comm, step_seconds)
            ring.all_reduce(comm, gradient)
            if (step + 1) % every == 0:
                compute(comm, delta)
                ring.all_reduce(comm, gradient)  # all have written: now it counts
                if comm.rank == 0:
                    saved, checkpoints = step + 1, checkpoints + 1
        if comm.rank == 0:
            saved = steps

    while True:
        upcoming = [times[bisect(times, now)] - now for times in crashes]
        world = LocalWorld(replace(machine, crashes=dict(enumerate(upcoming))))
        with suppress(RankLost):
            world.run(train, ranks)
        if saved == steps and world.seconds:
            break
        now += min(upcoming)
        attempts += 1
        if now > limit:
            raise RuntimeError(f"after {now:.0f} s only {saved} of {steps} steps are kept")
    now += world.seconds
    return Goodput(steps * step_seconds / now, now, attempts, checkpoints)
