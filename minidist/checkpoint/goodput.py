"""Goodput, by formula and by simulation: how often to save a checkpoint.

Saving often costs time. Saving rarely costs more at a crash, because all work since the last
checkpoint is computed again:

    |  τ of work  |δ|  τ of work  |δ|  τ of w ✗   R   |  τ of work  |δ| ...
                                     └ lost ┘

    τ   the interval: seconds of work from one checkpoint to the next
    δ   seconds of a checkpoint (with overlapped saving: the seconds that training waits)
    R   seconds to restart
    M   mean seconds between crashes of the job: that of one rank, divided by the number of ranks

*Goodput* is the share of all time that is spent on work which is not lost. If crashes are a Poisson
process, the mean time of one interval is M·e^(R/M)·(e^((τ+δ)/M) - 1), and so

    goodput(τ) = τ / (M · e^(R/M) · (e^((τ+δ)/M) - 1))

(Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22(3),
2006, equation 13.) Its maximum is near

    Young    τ = √(2δM)       for δ ≪ M: it minimises δ/τ (lost by saving) + τ/2M (lost by crashes)
    Daly     τ = √(2δM)·(1 + ⅓·√(δ/2M) + ⅑·δ/2M) - δ     for δ < 2M, else M

(Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974; Daly,
equation 37.) R changes the goodput, but not the best τ.
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
    """Daly's higher-order estimate, in seconds; see above."""
    if delta >= 2 * M:
        return M
    x = delta / (2 * M)
    return math.sqrt(2 * delta * M) * (1 + math.sqrt(x) / 3 + x / 9) - delta


def expected_goodput(tau: float, delta: float, M: float, R: float = 0.0) -> float:
    """The formula above: the share of time spent on work that is not lost."""
    return tau / (M * math.exp(R / M) * math.expm1((tau + delta) / M))


@dataclass(frozen=True)
class Goodput:
    """The result of a simulated run. ``seconds``: its whole virtual time."""

    goodput: float
    seconds: float
    crashes: int
    checkpoints: int


def crash_times(mean: float, rank: int, until: float, seed: int = 0) -> list[float]:
    """The times of a rank's crashes: a Poisson process with ``mean`` seconds between crashes."""
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
    """Simulate ``steps`` steps in the local world, with crashes and a checkpoint every ``every``
    steps.

    Ranks crash independently, so that the job crashes every ``M`` seconds on average. A step takes
    ``step_seconds`` and ends with an all-reduce, in which the other ranks notice a crash. Then all
    restart, which takes ``R`` seconds, from the last checkpoint. The times of crashes do not depend
    on ``every``. Raises RuntimeError if the run is not complete after 50 times its seconds of work.
    """
    machine = machine or Machine(latency=1e-6, bandwidth=1e12, reduce_bandwidth=1e12, flops=1e9)
    limit = 50 * steps * (step_seconds + delta)
    crashes = [crash_times(M * ranks, rank, limit, seed) for rank in range(ranks)]
    now, saved, attempts, checkpoints = 0.0, 0, 0, 0

    def compute(comm: Comm, seconds: float) -> None:
        work.flops += round(seconds * machine.flops)
        comm.time()  # charges it to the clock, also on a rank that sends no messages

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
                ring.all_reduce(comm, gradient)  # all have written: the checkpoint is complete
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
