"""What all ranks must have alike is compared, and who differs is named."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.comm import Crash, Disagreement
from minidist.comm.agreement import compare
from minidist.engine import digest
from tests.mpi.run import mpiexec, needs_mpi


def test_a_digest_knows_values_dtypes_shapes_and_where_one_ends():
    x = np.arange(6)
    found = [
        digest(x),
        digest(x.reshape(2, 3)),
        digest(x.astype(np.int32)),
        digest(x + 1),
        digest(x, 0),
        digest(str(x)),
        digest("ab", "c"),
        digest("a", "bc"),
        digest(1),
        digest("1"),
        digest(),
    ]
    assert len(set(found)) == len(found)
    assert all(0 <= value < 1 << 64 for value in found)
    assert digest(x[::2]) == digest(x[::2].copy())
    assert digest("seed", 0) == 14610583754435845176, "the same in every process"


def test_the_error_names_the_ranks_of_each_value():
    compare({0: (7, "a"), 1: (7, "another text, and the same value")}, 2)
    claims = {0: (7, "seed 0"), 2: (7, "seed 0"), 3: (8, "seed 1")}
    with pytest.raises(Disagreement) as error:
        compare(claims, 5)
    assert str(error.value) == (
        "ranks do not agree: ranks 0, 2 have seed 0; rank 3 has seed 1; ranks 1, 4 did not call yet"
    )
    with pytest.raises(Disagreement, match=r"rank 0 has x \(digest 0+1\); rank 1 has x \(digest"):
        compare({0: (1, "x"), 1: (2, "x")}, 2)


@pytest.mark.parametrize("odd", [0, 1, 3])
def test_whoever_differs_ends_the_run(odd):
    def run(comm):
        for number in range(3):
            value = 5 if comm.rank == odd and number == 2 else 4
            comm.agree("the number", value, f"number {value} at {number}")

    with pytest.raises(Disagreement, match=r"the number: number [45] at 2; ranks? .* number"):
        launch(run, 4, LocalWorld())


def test_ranks_that_check_different_things_do_not_agree():
    def run(comm):
        comm.agree("step()" if comm.rank else "load()", 1)

    with pytest.raises(Disagreement, match=r"rank 0 has load\(\); rank 1 has step\(\)"):
        launch(run, 2, LocalWorld())


def test_a_rank_that_went_on_hears_of_it():
    def run(comm):
        caught = 0
        for value in (comm.rank, 0):
            try:
                comm.agree("the number", value)
            except Disagreement:
                caught += 1
            if comm.rank == 0:  # not by a barrier: that compares calls itself
                for peer in (1, 2):
                    comm.recv(np.zeros(1), peer)
            else:
                comm.send(np.zeros(1), 0)
        return caught

    assert launch(run, 3, LocalWorld()) == [1, 2, 2]


def test_agreeing_waits_for_nobody_and_takes_no_virtual_time():
    def run(comm):
        np.ones((200, 200)) @ np.ones((200, 200))
        before = comm.time()
        if comm.rank:
            comm.recv(np.zeros(1), 0)
        comm.agree("anything", 3)  # rank 0 comes first, and sends only then
        if comm.rank == 0:
            for peer in range(1, comm.size):
                comm.send(np.zeros(1), peer)
            assert comm.time() > before
        part = comm.split(comm.rank % 2)
        part.agree("of half of the ranks", comm.rank % 2)  # another group, another value
        return comm.trace.sent.messages

    assert launch(run, 4, LocalWorld(Machine())) == [3, 0, 0, 0]

    def alone(comm):
        comm.agree("anything", 1)
        return comm.time()

    assert launch(alone, 3, LocalWorld()) == [0.0] * 3


def test_the_dead_need_not_agree():
    def run(comm):
        for number in range(3):
            if comm.rank == 1 and number == 1:
                raise Crash("power cut")
            comm.agree("the number", number)
        return len(comm._group.claims)

    assert launch(run, 3, LocalWorld())[2] <= 1, "what nobody waits for is forgotten"


@needs_mpi
def test_on_real_ranks_every_rank_raises():
    done = mpiexec(3, "-m", "tests.mpi.agreement_program", python=("-m", "mpi4py"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["passed"]
