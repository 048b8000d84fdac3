"""A rank of the local world can die alone, and whoever waits for it is told."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.comm import Crash, Deadlock, RankLost
from minidist.comm.mpi.watchdog import timeout_from_environment


def run(function, ranks=3):
    return launch(function, ranks, LocalWorld())


def crashes(comm, at=0.0):
    raise Crash(f"rank {comm.rank}")


@pytest.mark.parametrize("call", ["send", "recv", "sendrecv", "irecv", "isend"])
@pytest.mark.parametrize("early", [True, False])
def test_whoever_waits_for_it_is_told(call, early):
    """Whether it waits already (early) or comes when the other is dead."""

    def function(comm):
        array, ready = np.zeros(2), np.zeros(1)
        if comm.rank == 1:
            if early:  # rank 0 is let go before rank 1 dies, and waits for it then
                comm.send(ready, 0, tag=1)
                comm.recv(ready, 2, tag=1)
            crashes(comm)
        if comm.rank == 2:
            if early:
                comm.recv(ready, 0, tag=2)
                comm.send(ready, 1, tag=1)
            return None
        if early:
            comm.recv(ready, 1, tag=1)
            comm.isend(ready, 2, tag=2)
        with pytest.raises(RankLost, match="rank 1 has crashed") as lost:
            if call == "sendrecv":
                comm.sendrecv(array, 1, array.copy(), 1)
            elif call.startswith("i"):
                getattr(comm, call)(array, 1).wait()
            else:
                getattr(comm, call)(array, 1)
        assert lost.value.rank == 1
        return "told"

    assert run(function) == ["told", None, None]


def test_a_receive_from_anyone_tells_of_each_death_once():
    def function(comm):
        array = np.zeros(1)
        if comm.rank in (1, 3):
            crashes(comm)
        if comm.rank == 2:
            for value in (5.0, 6.0):
                comm.send(array + value, 0)
            return None
        seen = []
        for _ in range(4):
            try:
                seen.append((comm.recv(array), float(array[0])))
            except RankLost as lost:
                seen.append(("lost", lost.rank))
        return seen

    seen = run(function, 4)[0]
    assert sorted(map(str, seen)) == sorted(
        map(str, [("lost", 1), ("lost", 3), (2, 5.0), (2, 6.0)])
    )
    assert seen.index((2, 5.0)) < seen.index((2, 6.0))


def test_what_was_sent_before_arrives_and_what_had_not_begun_does_not():
    def function(comm):
        array = np.zeros(1)
        if comm.rank == 1:
            comm.send(array + 7, 0)
            comm.isend(array + 8, 0)
            crashes(comm)
        if comm.rank == 0:
            comm.recv(array, 1)
            assert array[0] == 7
            comm.recv(np.zeros(1), 2)  # rank 1 dies meanwhile
            with pytest.raises(RankLost):
                comm.recv(array, 1)
            assert array[0] == 7
        if comm.rank == 2:
            from minidist.engine.array import work

            work.flops += 10**9
            comm.send(array, 0)
        return

    run(function)


def test_numbers_are_those_of_the_communicator():
    def function(comm):
        part = comm.split(int(comm.rank >= 2), key=-comm.rank)
        if comm.rank == 2:
            crashes(comm)
        if comm.rank == 3:
            with pytest.raises(RankLost, match="rank 1 has crashed") as lost:
                part.recv(np.zeros(1))
            assert lost.value.rank == 1
        return comm.rank

    assert run(function, 4) == [0, 1, None, 3]


def test_a_barrier_that_waits_for_the_dead_is_a_deadlock():
    def function(comm):
        if comm.rank == 1:
            crashes(comm)
        comm.barrier()

    with pytest.raises(Deadlock, match=r"barrier\(\), where only ranks \[0, 2\] have come"):
        run(function)


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_timeout_that_is_no_time_is_an_error(monkeypatch, text):
    monkeypatch.setenv("MINIDIST_TIMEOUT", text)
    with pytest.raises(ValueError, match=f"MINIDIST_TIMEOUT={text}: give seconds, such as 60"):
        timeout_from_environment()
