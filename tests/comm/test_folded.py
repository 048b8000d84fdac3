"""Folded ranks: one rank that stands for many sends, waits and computes as each of the many."""

from dataclasses import replace

import numpy as np
import pytest
from pairs import pairs

from minidist import LocalWorld, launch
from minidist.collectives import all_gather, all_reduce, broadcast, reduce_scatter
from minidist.comm.comm import CommError, Crash
from minidist.comm.machine import Link, Machine, Pauses, profile
from minidist.data import Batches, Dataset
from minidist.engine import phantom
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import METHODS, Pipeline

FLAT = replace(profile("h100"), node=None, network=None)
MACHINES = {"flat": FLAT, "two levels": profile("h100")}
# The lengths of what is reduced divide by 64: all ranks then end a collective at the same time.
WHOLE, UNITS = (64, 63, 64), (64, 64, 64)  # Ψ + 1, and each block's parameters


def step(make, widths, per_rank=2):
    """A rank's second step: seconds, busy seconds, messages and bytes."""

    def run(comm):
        count = per_rank * comm.size
        inputs = phantom.empty((count, widths[0]), "float32")
        dataset = Dataset("shapes", inputs, phantom.empty(count, "int64"), widths[-1])
        with defaults(device="phantom"):
            method = make(mlp(widths), CrossEntropy(), Adam(), comm)
            for number in range(2):
                comm.barrier()
                sent, trace, start = comm.trace.sent, comm.trace, comm.time()
                before = sent.messages, sent.nbytes, trace.busy
                method.step(Batches(dataset, count)[number])
                end = comm.time()
                trace.computed(end)
        counted = sent.messages - before[0], sent.nbytes - before[1]
        return end - start, trace.busy - before[2], counted

    return run


def check(run, ranks, machine, fold):
    """The folded run's rank 0, and its time, are those of the run in full."""
    world = LocalWorld(machine, fold=fold)
    folded = launch(run, ranks, world)
    assert not world.unfolded
    full = launch(run, ranks, LocalWorld(machine))
    assert folded[0][2] == full[0][2]
    assert folded[0][1] == pytest.approx(full[0][1], rel=1e-12)
    assert max(one[0] for one in folded) == pytest.approx(max(one[0] for one in full), rel=1e-12)


ROWS = {
    "data_parallel/ring": WHOLE,
    "data_parallel/overlapped": UNITS,
    "zero/1": UNITS,
    "zero/3": UNITS,
    "compression/sign": UNITS,
    "gossip/exponential": UNITS,
    "local_sgd/average": UNITS,
}


@pytest.mark.parametrize(("level", "key"), pairs(MACHINES, ROWS))
@pytest.mark.parametrize("ranks", [8, pytest.param(64, marks=pytest.mark.long)])
def test_a_step_of_folded_ranks_is_that_of_all(key, ranks, level):
    check(step(METHODS[key], ROWS[key]), ranks, MACHINES[level], {"dp": ranks})


@pytest.mark.slow
@pytest.mark.parametrize("level", ["two levels", pytest.param("flat", marks=pytest.mark.long)])
def test_64_ranks_of_data_parallel(level):
    check(step(METHODS["data_parallel/ring"], WHOLE), 64, MACHINES[level], {"dp": 64})


@pytest.mark.parametrize("level", MACHINES)
def test_copies_of_a_pipeline_fold(level):
    """Stages are different, and all alive; of each stage's 8 copies one is."""

    def make(*arguments):
        return Pipeline(*arguments, schedule="1f1b", microbatches=2, replicas=8)

    check(step(make, (64, 64, 64, 64, 64)), 16, MACHINES[level], {"dp": (8, 2)})


ALGORITHMS = (
    "ring",
    "recursive_doubling",
    "halving_doubling",
    "hierarchical",
    "central",
    "cross_memory",
)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_takes_the_time_of_its_formula(name):
    machine = replace(MACHINES["two levels"], node=4) if name == "hierarchical" else FLAT

    def run(comm):
        all_reduce(comm, phantom.empty(960, "float32"), algorithm=name)
        comm.barrier()
        return comm.time(), 0.0, (comm.trace.sent.messages, comm.trace.sent.nbytes)

    check(run, 8, machine, {"dp": 8})


def test_numbers_are_those_of_ranks_that_all_had_the_same():
    def run(comm):
        total, largest, parts = np.array([3]), np.array([3.0]), np.arange(8.0)
        all_reduce(comm, total, algorithm="ring")
        all_reduce(comm, largest, "max", algorithm="ring")
        all_gather(comm, parts)
        own = reduce_scatter(comm, np.arange(8.0))
        return total[0], largest[0], parts.tolist(), own.tolist()

    result = launch(run, 4, LocalWorld(fold={"dp": 4}))[3]
    assert result == (12, 3.0, [0.0, 1.0] * 4, [0.0, 4.0])


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (Machine(jitter=0.1), "jitter"),
        (Machine(pauses=Pauses(1.0, 1.0)), "pauses"),
        (Machine(links={(0, 1): Link(1.0, 1.0)}), "links"),
        (Machine(slowdown={3: 2.0}), "rank 3 computes 2.0 times as long"),
    ],
)
def test_where_ranks_differ_their_axis_is_not_folded(machine, why):
    world = LocalWorld(machine, fold={"dp": 4})
    ran = []
    launch(lambda comm: ran.append(comm.rank), 4, world)
    assert sorted(ran) == [0, 1, 2, 3]
    assert why in world.unfolded["dp"]


def test_a_straggling_stage_unfolds_nothing_if_all_its_copies_straggle():
    slow = Machine(slowdown={1: 2.0, 3: 2.0})
    world = LocalWorld(slow, fold={"dp": (2, 2)})
    ran = []
    launch(lambda comm: ran.append(comm.rank), 4, world)
    assert sorted(ran) == [0, 1]
    assert not world.unfolded


def crash(comm):
    raise Crash


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (lambda comm: comm.send(np.zeros(1), 1), "a message to one rank alone"),
        (lambda comm: comm.split(0), r"split\(\) asks every rank"),
        (lambda comm: broadcast(comm, np.zeros(1), root=0), "has a root"),
        (lambda comm: comm.sendrecv(np.zeros(1), 1, np.zeros(1), 1), "no ring"),
        (lambda comm: comm.cross_memory(), "the memory of other ranks"),
        (crash, "rank 0 crashed, and it stands for ranks"),
    ],
)
def test_what_tells_ranks_apart_is_refused(program, why):
    with pytest.raises(CommError, match=why):
        launch(program, 4, LocalWorld(fold={"dp": 4}))


def test_a_message_to_a_folded_rank_of_a_partly_folded_world_is_refused():
    with pytest.raises(CommError, match="rank 3 of 4"):
        launch(lambda comm: comm.send(np.zeros(1), 3), 4, LocalWorld(fold={"dp": (2, 2)}))
    with pytest.raises(CommError, match=r"split\(\)"):
        launch(lambda comm: comm.split(0), 4, LocalWorld(fold={"dp": (2, 2)}))
    with pytest.raises(CommError, match="two levels"):
        machine = Machine(node=2, network=Link(1.0, 1.0))
        run = lambda comm: all_reduce(comm, np.zeros(8), algorithm="central")
        launch(run, 4, LocalWorld(machine, fold={"dp": 4}))


@pytest.mark.parametrize("fold", [{"dp": 3}, {"dp": (2, 4)}, {"dp": 0}])
def test_axes_that_do_not_divide_the_ranks(fold):
    with pytest.raises(ValueError, match="4 ranks are no lines"):
        launch(lambda comm: None, 4, LocalWorld(fold=fold))


def test_groups_list_their_members():
    def run(comm):
        pair = [[0, 2], [3, 1], [0, 2], [3, 1]][comm.rank]
        group, again = comm.group(pair), comm.group(pair)
        found = np.array([comm.rank])
        all_reduce(group, found, "max")
        assert group is not again
        return group.rank, group.size, list(group.world), int(found[0])

    assert launch(run, 4, LocalWorld()) == [
        (0, 2, [0, 2], 2),
        (1, 2, [3, 1], 3),
        (1, 2, [0, 2], 2),
        (0, 2, [3, 1], 3),
    ]
    for wrong in ([1, 2], [0, 0], [0, 4]):
        with pytest.raises(CommError, match=r"group\(\[.*needs different ranks of 0 to 3"):
            launch(lambda comm, wrong=wrong: comm.rank or comm.group(wrong), 4, LocalWorld())


def test_16384_ranks_cost_no_more_than_one():
    """Nobody is alive but rank 0: no messages are simulated, whatever the rank count."""
    run = step(METHODS["data_parallel/ring"], WHOLE)
    world = LocalWorld(profile("h100"), fold={"dp": 16384})
    results = launch(run, 16384, world)
    assert len({id(trace) for trace in world.traces}) == 1
    seconds, _, (messages, nbytes) = results[16383]
    assert messages == 2 * 16383
    assert nbytes == 4 * 2 * (8192 - 1)  # all but the chunk that it owns, twice
    assert seconds > messages * 37e-6
