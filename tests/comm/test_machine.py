"""The machine model: α + nβ, nγ, and errors for machines that cannot be."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

import minidist
from minidist.collectives import all_reduce
from minidist.comm import LocalWorld, Machine, launch
from minidist.comm.local.scheduler import Interrupted
from minidist.comm.machine import PROFILES, Link, Links, Pauses, Ports, profile


def test_message_reduce_compute():
    machine = Machine("test", 2.0, 10.0, 4.0, 5.0, slowdown={1: 2.0})
    assert machine.message(0) == 2.0
    assert machine.message(30) == 5.0
    assert machine.reduce(8) == 2.0
    assert machine.compute(10) == 2.0
    assert machine.compute(10, rank=1) == 4.0


def test_a_message_of_each_rank_costs_what_it_costs_alone():
    machine = Machine(latency=3e-6, bandwidth=7e8, reduce_bandwidth=3e8)
    nbytes = np.array([0, 1, 97, 10**6])
    assert machine.message(nbytes).tolist() == [machine.message(int(n)) for n in nbytes]
    assert machine.reduce(nbytes).tolist() == [machine.reduce(int(n)) for n in nbytes]
    assert Link(3e-6, 7e8).message(97) == machine.message(97)


def test_a_port_sends_one_message_and_receives_one_at_a_time():
    ports = Ports(3)
    assert ports.carry(0, 1, ready=1.0, seconds=2.0) == 3.0
    assert ports.carry(0, 2, ready=2.0, seconds=2.0) == 5.0, "0 still sends"
    assert ports.carry(1, 0, ready=1.5, seconds=1.0) == 2.5, "both directions at the same time"
    assert ports.carry(2, 1, ready=2.0, seconds=1.0) == 4.0, "1 still receives"
    assert ports.carry(1, 2, ready=9.0, seconds=1.0) == 10.0, "nobody waits without need"


@pytest.mark.parametrize("name", ("bandwidth", "reduce_bandwidth", "flops"))
@pytest.mark.parametrize("value", (0, math.nan))
def test_speeds_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, not {value}"):
        Machine(**{name: value})


@pytest.mark.parametrize("name", ("latency", "jitter"))
@pytest.mark.parametrize("value", (-1, math.nan))
def test_latency_and_jitter_must_not_be_negative(name, value):
    with pytest.raises(ValueError, match=f"{name} must not be negative: {value}"):
        Machine(**{name: value})


@pytest.mark.parametrize(("latency", "bandwidth"), [(-1, 1), (math.nan, 1), (1, 0), (1, math.nan)])
def test_links_that_cannot_be(latency, bandwidth):
    with pytest.raises(ValueError, match=r"must be positive, not|must not be negative"):
        Link(latency, bandwidth)


@pytest.mark.parametrize("times", (0, -2.0, math.nan))
def test_a_straggler_takes_some_time(times):
    with pytest.raises(ValueError, match=f"slowdown of rank 3 is {times}, not in"):
        Machine(slowdown={1: 2.0, 3: times})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slowdown": {0: math.inf}}, "slowdown of rank 0 is inf, not in"),
        ({"slowdown": {-1: 2.0}}, "there is no rank -1"),
        ({"crashes": {-2: 0.5}}, "there is no rank -2"),
    ],
)
def test_ranks_count_from_0_and_end_their_work(settings, message):
    with pytest.raises(ValueError, match=message):
        Machine(**settings)


def exchange_times(machine, ranks=4):
    """When each rank has sent 8 bytes to the right and received as many from the left."""

    def main(comm):
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        comm.sendrecv(np.zeros(1), right, np.zeros(1), left)
        return comm.time()

    return launch(main, ranks=ranks, world=LocalWorld(machine))


def test_messages_between_nodes_take_the_network():
    machine = Machine(latency=1.0, bandwidth=8.0, node=2, network=Link(10.0, 1.0))
    assert machine.link(0, 1) == Link(1.0, 8.0)
    assert machine.link(1, 2) == machine.link(3, 0) == Link(10.0, 1.0)
    assert exchange_times(machine) == [18.0] * 4  # each rank has one slow link, in or out


def test_a_single_link_can_differ_in_one_direction():
    machine = Machine(latency=1.0, bandwidth=8.0, links={(0, 1): Link(5.0, 8.0)})
    assert exchange_times(machine) == [6.0, 6.0, 2.0, 2.0]


def test_a_link_is_of_ranks_of_the_world_in_a_group_too():
    machine = Machine(latency=1.0, bandwidth=8.0, links={(3, 1): Link(5.0, 8.0)})

    def main(comm):
        part = comm.split(0, key=-comm.rank)  # 3, 2, 1, 0
        if part.rank == 0:
            part.send(np.zeros(1), 2)
        if part.rank == 2:
            part.recv(np.zeros(1), 0)
        return comm.time()

    assert launch(main, ranks=4, world=LocalWorld(machine)) == [0.0, 6.0, 0.0, 6.0]


def test_jitter_is_on_average_as_asked_and_each_link_draws_its_own():
    machine = Machine(latency=1.0, bandwidth=1e30, jitter=0.5, seed=3)
    links, beside = Links(machine), Links(machine)
    shares = [links.message(0, 1, 0) - 1 for _ in range(4000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
    for share in shares[:10]:
        assert beside.message(1, 0, 0) - 1 != share
        assert beside.message(0, 1, 0) - 1 == share, "whatever another link does"


def test_jitter_only_delays_and_is_the_same_for_a_seed():
    steady = exchange_times(Machine())
    first, again = exchange_times(Machine(jitter=0.5)), exchange_times(Machine(jitter=0.5))
    other = exchange_times(Machine(jitter=0.5, seed=1))
    assert first == again
    assert first != other
    assert all(a > b for a, b in zip(first, steady, strict=True))


def test_pauses_are_drawn_by_seed_and_rank_and_as_often_and_long_as_asked():
    pauses = Pauses(every=2.0, length=0.5)
    whole = Interrupted(pauses, 0, 1).compute(1000.0)
    pieces = Interrupted(pauses, 0, 1)
    assert sum(pieces.compute(0.25) for _ in range(4000)) == pytest.approx(whole)
    for seed, rank in ((0, 0), (1, 1)):
        assert Interrupted(pauses, seed, rank).compute(1000.0) != whole
    # 500 pauses of half a second, each with a deviation of as much, and of √500 in their number
    assert whole == pytest.approx(1250.0, abs=4 * 0.5 * (2 * 500) ** 0.5)


def test_a_rank_that_pauses_is_late_and_in_every_run_the_same():
    def main(comm):
        from minidist.engine.array import work

        for _ in range(20):
            work.flops += 10
            comm.barrier()
        return comm.time()

    def seconds(**options):
        return launch(main, 4, LocalWorld(Machine(flops=10.0, **options)))[0]

    pauses = Pauses(every=5.0, length=3.0)
    assert seconds() == 20.0
    assert seconds(pauses=pauses) == seconds(pauses=pauses) > 25.0
    assert seconds(pauses=pauses) != seconds(pauses=pauses, seed=1) > 25.0
    assert seconds(pauses=Pauses(every=1e9, length=1.0)) == 20.0


@pytest.mark.parametrize(("every", "length"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -0.1)])
def test_pauses_that_cannot_be(every, length):
    with pytest.raises(ValueError, match="every must be positive and length not negative"):
        Pauses(every, length)


def test_profiles_have_names_and_sources():
    for name, machine in PROFILES.items():
        assert machine.name == name
        assert machine.source
        assert profile(name) is machine
    with pytest.raises(ValueError, match="unknown machine 'cray': choose one of laptop"):
        profile("cray")


def test_the_profile_of_gpu_nodes_has_two_levels_that_hierarchical_all_reduce_uses():
    machine = profile("hgx")
    assert machine.link(0, 7).bandwidth == 9 * machine.link(7, 8).bandwidth  # NVLink, InfiniBand

    def seconds(name):
        world = LocalWorld(machine)
        launch(lambda comm: all_reduce(comm, np.ones(1 << 18), algorithm=name), 16, world)
        return world.seconds

    assert seconds("hierarchical") < seconds("ring") / 2


def test_two_levels_need_both_numbers():
    with pytest.raises(ValueError, match="node=4, network=None"):
        Machine(node=4)
    with pytest.raises(ValueError, match="node=0"):
        Machine(node=0, network=Link(1.0, 1.0))


def test_the_rule_of_messages_is_written_once():
    """α, β and γ are read by comm/machine.py, and elsewhere only where they are reported."""
    package = Path(minidist.__file__).parent
    speeds = re.compile(r"\.(latency|bandwidth|reduce_bandwidth|memory_bandwidth)\b")
    readers = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if speeds.search(file.read_text())
    }
    measured = {"collectives/calibrate.py", "bench/collectives_measured.py"}
    assert readers - measured == {"comm/machine.py"}
