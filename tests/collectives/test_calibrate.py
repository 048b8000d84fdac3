"""What ``calibrate`` says of a machine is what the machine was told to be."""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace

import pytest
from greenlet import getcurrent

from minidist import LocalWorld, Machine, launch
from minidist.collectives import calibrate as module
from minidist.collectives.calibrate import LARGE, calibrate

TICK = 1e-5  # seconds by which reading the clock below moves it on


def measured(monkeypatch, machine, ranks):
    """``calibrate`` on a simulated machine, whose ranks read a clock of their own.

    Adding arrays takes the simulator no time: the tick stands for it.
    """
    comms, readings = {}, dict.fromkeys(range(ranks), 0)

    def perf_counter():
        comm = comms[getcurrent()]
        readings[comm.rank] += 1
        return comm.time() + TICK * readings[comm.rank]

    def main(comm):
        comms[getcurrent()] = comm
        return calibrate(comm, flops=100.0 + comm.rank, repeats=3)

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=perf_counter))
    return launch(main, ranks, LocalWorld(machine))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_simulated_machine_is_found_again(monkeypatch, ranks):
    machine = Machine("m", latency=3e-3, bandwidth=2e8)
    found = measured(monkeypatch, machine, ranks)
    assert found == found[:1] * ranks, "every rank gets the same"
    got = found[0]
    exchange = machine.message(1) + TICK  # both ways at once, and the clock's tick
    assert got.latency == pytest.approx(exchange, rel=1e-9)
    assert got.bandwidth == pytest.approx(machine.bandwidth * LARGE / (LARGE - 1), rel=1e-9)
    assert got.reduce_bandwidth == pytest.approx(LARGE / TICK, rel=1e-6)
    assert got.flops == 100.0, "rank 0's"


def test_one_rank_alone_keeps_the_defaults_for_links():
    got, default = launch(lambda comm: calibrate(comm, flops=7.0), 1)[0], Machine()
    assert (got.latency, got.bandwidth) == (default.latency, default.bandwidth)
    assert (got.reduce_bandwidth, got.flops) == (default.reduce_bandwidth, 7.0)


def test_the_median_counts_and_the_first_call_does_not(monkeypatch):
    takes = [50.0, 1.0, 9.0, 2.0]  # seconds; the first is the warm-up
    readings = iter(accumulate(second for take in takes for second in (0.0, take)))
    clock = SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr(module, "time", clock)
    assert module._median_seconds(lambda: None, 3) == 2.0
