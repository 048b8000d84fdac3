"""The machine on which requests are simulated: what it costs is found again, from other models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minidist import LocalWorld, Machine, launch
from minidist.bench import requests_machine
from minidist.bench.requests_machine import (
    FREE,
    LAYERS,
    fitted,
    gaps,
    machine_here,
    rates,
    simulated_gap,
)
from minidist.engine.array import defaults, work
from minidist.inference import Engine, Request
from minidist.models import gpt


def test_launch_and_sequence_are_found_again(monkeypatch):
    """From the times of a simulated machine."""
    tiny_ones = [(1, 1), (1, 3), (3, 1), (3, 2)]
    monkeypatch.setattr(requests_machine, "TINY", tiny_ones)
    monkeypatch.setattr(requests_machine, "NEW", 4)
    machine = Machine(flops=4e10, memory_bandwidth=7e9, launch=1.7e-5, sequence=4.3e-5)
    seconds = [simulated_gap(*tiny, machine) for tiny in tiny_ones]
    assert fitted(seconds, machine) == pytest.approx((1.7e-5, 4.3e-5), rel=1e-6)
    assert fitted([1e-9] * len(tiny_ones), machine)[0] == 0, "no time is negative"


def test_a_gap_is_a_whole_step_and_never_one_without_sequences(monkeypatch):
    monkeypatch.setattr(requests_machine, "NEW", 5)
    layers = 2
    with defaults(device="phantom"):
        engine = Engine(gpt(11, 32, 16, layers, 4).init(0))
        engine.submit(Request((1, 2, 3), 4))
        engine.step()
        before = work.counts()[1]
        engine.step()
        kernels = work.counts()[1] - before
    assert kernels > 20
    assert simulated_gap(layers, 1, replace(FREE, launch=1.0)) == pytest.approx(kernels)
    assert simulated_gap(layers, 3, replace(FREE, sequence=1.0)) == pytest.approx(3)
    assert len(launch(lambda comm: gaps(comm, 1, 2, comm.time), 1)[0]) == 5 - 1


def test_every_rank_gets_the_same_machine(monkeypatch):
    """Of ranks whose clocks differ."""
    monkeypatch.setattr(requests_machine, "TINY", [(1, 1), (1, 2)])
    monkeypatch.setattr(requests_machine, "fitted", lambda seconds, machine: (seconds[0], 0.5))

    def main(comm):
        tick = iter(range(1, 1_000_000))
        return machine_here(comm, 3, lambda: (1 + comm.rank) * next(tick))

    first, second = launch(main, 2, LocalWorld())
    assert vars(first) == vars(second)
    assert first.launch == 1.5, "the mean of one and two ticks a round"
    assert first.sequence == 0.5 and first.latency > 0


def test_flops_and_bytes_a_second_are_those_of_the_layers():
    """By a clock on which each call takes what a machine of these rates does, and 1 µs beside."""
    each = [16 * 2 * 256**2 * 2e-10, 0] * LAYERS + [4 * 256**2 * 1e-10, 0] * LAYERS
    each += [8 * 256**2 * 1e-10] * LAYERS + [0] * LAYERS
    now, calls = [0.0], iter(each)

    def clock():
        now.append(now[-1] + (1e-6 + next(calls) if len(now) % 2 == 0 else 0.0))
        return now[-1]

    flops, nbytes = launch(lambda comm: rates(comm, 1, clock), 1)[0]
    assert flops == pytest.approx(5e9) and nbytes == pytest.approx(1e10)
