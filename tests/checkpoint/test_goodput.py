"""Goodput: the simulated run, the same by arithmetic, and the formulas of Young and Daly."""

from __future__ import annotations

import math
from bisect import bisect

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.checkpoint.goodput import (
    crash_times,
    daly_interval,
    expected_goodput,
    simulate,
    young_interval,
)
from minidist.collectives import all_reduce
from minidist.comm import RankLost
from minidist.comm.machine import Machine
from minidist.engine.array import work

STEP, DELTA, M, R = 20.0, 20.0, 1000.0, 30.0


def by_arithmetic(steps, every, ranks=2, seed=0) -> tuple[float, int]:
    """(seconds, crashes) of what ``simulate`` runs: a loop over intervals, without messages."""
    limit = 50 * steps * (STEP + DELTA)
    crashes = sorted(t for r in range(ranks) for t in crash_times(M * ranks, r, limit, seed))
    now, saved, count = 0.0, 0, 0
    while True:
        crash = crashes[bisect(crashes, now)]
        now += R if count else 0.0
        while now < crash and saved < steps:
            reached = min(saved + every, steps)
            now += (reached - saved) * STEP + (DELTA if reached - saved == every else 0.0)
            saved = reached if now <= crash else saved
        if now <= crash:
            return now, count
        now, count = crash, count + 1


@pytest.mark.parametrize("every, ranks, seed", [(3, 2, 0), (10, 3, 1), (40, 1, 2)])
def test_the_simulated_run_takes_the_time_that_arithmetic_gives(every, ranks, seed):
    got = simulate(200, every, STEP, DELTA, M, R, ranks, seed)
    seconds, crashes = by_arithmetic(200, every, ranks, seed)
    assert crashes >= 3
    assert (got.crashes, got.checkpoints >= 200 // every) == (crashes, True)
    assert got.seconds == pytest.approx(seconds, rel=1e-6)
    assert got.goodput == pytest.approx(200 * STEP / seconds, rel=1e-6)


def goodputs(intervals, steps=40_000):
    return {k: steps * STEP / by_arithmetic(steps, k, seed=5)[0] for k in intervals}


def test_measured_goodput_is_the_formula_and_best_near_youngs_interval():
    """Over 800,000 s of work, in which there are about 1,000 crashes."""
    measured = goodputs([2, 3, 5, 7, 10, 14, 20, 30, 50])
    for every, got in measured.items():
        assert got == pytest.approx(expected_goodput(every * STEP, DELTA, M, R), rel=0.06)
    best = max(measured, key=measured.get) * STEP
    young = young_interval(DELTA, M)
    assert young == 200.0
    assert young / 1.5 <= best <= young * 1.5, f"best at {best} s, Young says {young} s"
    assert measured[10] > 0.99 * max(measured.values())


def test_dalys_interval_is_where_his_formula_is_greatest():
    for delta, mean in ((1, 1e5), (20, 1e3), (300, 1e3)):
        grid = np.geomspace(0.05, 20, 4001) * young_interval(delta, mean)
        best = grid[np.argmax([expected_goodput(tau, delta, mean) for tau in grid])]
        assert daly_interval(delta, mean) == pytest.approx(best, rel=0.01)
    assert daly_interval(10.0, 4.0) == 4.0
    assert young_interval(8.0, 100.0) == 40.0
    # The first order of the formula is what Young makes least: δ/τ + τ/2M.
    delta, tau, mean = 1e-3, 1.0, 1e3
    lost = delta / tau + tau / (2 * mean)
    assert 1 - expected_goodput(tau, delta, mean) == pytest.approx(lost, rel=1e-2)


def test_what_never_gets_anywhere_is_said():
    with pytest.raises(RuntimeError, match="only 0 of 9 steps are kept"):
        simulate(9, 9, STEP, DELTA, M=10.0)


def test_a_rank_crashes_when_the_machine_says():
    """On its clock, while it computes or waits; the others hear of it when they wait for it."""
    machine = Machine(flops=1e9, crashes={1: 2.5})
    reached = []

    def body(comm):
        try:
            for _ in range(5):
                work.flops += 10**9  # a second
                all_reduce(comm, np.zeros(3), algorithm="ring")
                reached.append(comm.rank)
        except RankLost as lost:
            return lost.rank, comm.time()

    results = launch(body, 3, LocalWorld(machine))
    assert results[1] is None
    assert 1 in (results[0][0], results[2][0])
    assert min(results[0][1], results[2][1]) == pytest.approx(3.0, abs=0.01)
    assert sorted(reached) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="rank 0 cannot crash at -1"):
        Machine(crashes={0: -1})


def test_a_rank_that_waits_crashes_when_it_goes_on():
    """Its clock does not go back to the crash: what it has done until then stays done."""

    def body(comm):
        if comm.rank == 0:
            work.flops += 4 * 10**9
            comm.send(np.zeros(1), 1)
            with pytest.raises(RankLost):
                comm.send(np.zeros(1), 1)
            return comm.time()
        if comm.rank == 2:
            with pytest.raises(RankLost):
                comm.recv(np.zeros(1), 1)
            return comm.time()
        comm.recv(np.zeros(1), 0)
        return comm.recv(np.zeros(1), 0)

    world = LocalWorld(Machine(flops=1e9, crashes={1: 2.5}))
    four = pytest.approx(4, abs=0.01)
    assert launch(body, 3, world) == [four, None, four]


def test_crashes_come_at_their_rate():
    times = crash_times(10.0, 0, 50_000.0, seed=4)
    gaps = np.diff([0.0, *times])
    assert gaps.mean() == pytest.approx(10, rel=0.05)
    assert (gaps > 10).mean() == pytest.approx(math.exp(-1), rel=0.05)
    assert crash_times(10.0, 1, 100.0, 4) != crash_times(10.0, 0, 100.0, 4)
