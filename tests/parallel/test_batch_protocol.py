"""A method is given global batches; what belongs to the step does not come from them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.comm import Disagreement
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults
from minidist.nn import CrossEntropy, Dropout, Flatten, Linear, ReLU, Sequential
from minidist.optim import SGD
from minidist.parallel import (
    METHODS,
    Gossip,
    LocalSGD,
    Serial,
    StaleParameterServer,
    guards,
    method,
)
from tests.parallel.checks import images, is_exact

DATA = images(40)
ROWS = [key for key in METHODS if key != "serial"]
NO_DROPOUT = {"zero/2", "zero/3"}  # they raise on any dropout


def small(rate=0.0):
    return Sequential(
        Flatten(), Linear(12, 8), ReLU(), *([Dropout(rate)] if rate else []), Linear(8, 5),
        ReLU(), Linear(5, 5), input_shape=(3, 4),
    )  # fmt: skip


def made(key, comm, model=None, **options):
    factory = METHODS.get(key, key)
    return factory(model or small(), CrossEntropy(), SGD(0.1, momentum=0.9), comm, 3, **options)


@pytest.mark.parametrize("key", METHODS)
def test_a_part_of_a_batch_is_refused(key):
    def run(comm):
        method, batch = made(key, comm), Batches(DATA, 12)[0]
        for part in (batch.shard(comm.rank, comm.size), batch.microbatches(2)[1]):
            with pytest.raises(TypeError, match=r"part of a batch.*give the global batch.*its own"):
                method.step(part)
        with pytest.raises(TypeError, match=r"step takes a global batch.*not a tuple"):
            method.step((batch.inputs, batch.targets))
        assert method.steps == 0
        method.step(batch)
        assert method.steps == 1

    launch(run, 1 if key == "serial" else 4, LocalWorld())


def sharded_by_hand(comm):
    """Each rank has a dataset of its own, and the same indices of it."""
    own = Dataset("own", DATA.inputs[comm.rank :: comm.size], DATA.targets[comm.rank :: comm.size])
    return Batches(own, 6)[0]


WRONG = {
    "each rank shuffles by itself": lambda comm: Batches(DATA, 12, seed=comm.rank)[0],
    "one rank is a step ahead": lambda comm: Batches(DATA, 12)[int(comm.rank == 2)],
    "each rank has its own data": sharded_by_hand,
    "targets of one rank are shifted": lambda comm: Batches(
        (DATA.inputs, DATA.targets + (comm.rank == 3)), 12
    )[0],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_batches_that_depend_on_the_rank_are_refused(wrong):
    def run(comm):
        made("data_parallel/ring", comm).step(WRONG[wrong](comm))

    with pytest.raises(Disagreement, match=r"step 0 of DataParallel, seed 3, on .* samples"):
        launch(run, 4, LocalWorld())


@pytest.mark.parametrize("key", ROWS)
def test_every_method_compares_its_batch_and_its_seed_in_every_step(key):
    def run(comm, what):
        method = made(key, comm)
        method.step(Batches(DATA, 12)[0])
        if what == "seed":
            vars(method)["seed"] += comm.rank == 1  # assigned plainly, it would be refused
        method.step(Batches(DATA, 12)[1 + (what == "batch" and comm.rank == 1)])

    for what in ("batch", "seed"):
        with pytest.raises(Disagreement, match=r"rank.* step 1 of"):
            launch(partial(run, what=what), 4, LocalWorld())


def test_a_group_of_ranks_is_asked_by_itself():
    """Two groups train on different data: only ranks that step together must agree."""

    def run(comm):
        group = comm.split(comm.rank % 2)
        return made("data_parallel/ring", group).step(Batches(DATA, 12, seed=comm.rank % 2)[0])

    first, second, *again = launch(run, 4, LocalWorld())
    assert [first, second] == again and first != second


@pytest.mark.parametrize("key", METHODS)
def test_one_batch_can_be_stepped_on_again(key):
    """As in the check whether a model can learn one batch by heart: the loss falls."""

    def run(comm):
        method, batch = made(key, comm), Batches(DATA, 12)[0]
        return [method.step(batch) for _ in range(25)]

    for losses in launch(run, 1 if key == "serial" else 4, LocalWorld()):
        assert losses[-1] < losses[0] - 0.2, losses


def test_meetings_are_counted_by_the_method():
    """Whatever the batches are, local SGD averages every H steps, and gossip changes neighbours."""
    batch = DATA.batch(np.arange(12))

    def run(comm):
        average = made(LocalSGD, comm, every=3)
        alike = []
        for _ in range(6):
            average.step(batch)
            found = [np.empty_like(average.model.flat.data) for _ in range(comm.size)]
            for rank, into in enumerate(found):
                into[...] = average.model.flat.data
                from minidist.collectives import central

                central.broadcast(comm, into, root=rank)
            alike.append(all(np.array_equal(other, found[0]) for other in found))
        gossip, distances = made(Gossip, comm, graph="exponential"), []
        graph = gossip.graph
        vars(gossip)["graph"] = lambda step, size: distances.append(step) or graph(step, size)
        for _ in range(3):
            gossip.step(batch)
        return alike, distances

    for alike, distances in launch(run, 4, LocalWorld()):
        assert alike == [False, False, True] * 2
        assert distances == [0, 1, 2]


def with_dropout(key, comm, steps, batches, state=None):
    with defaults(dtype="float64"):
        method = made(key, comm, small(0.5))
        if state is not None:
            method.load(state)
        losses = [method.step(batches(step)) for step in range(steps)]
        return losses, method.state()


@pytest.mark.parametrize("key", [k for k in ROWS if is_exact(k) and k not in NO_DROPOUT])
def test_draws_are_keyed_by_the_methods_seed_and_step(key):
    """Serial's masks, whatever batch object it is; another mask in each step; also after a load."""

    def batches(step):
        return DATA.batch(np.arange(13))

    def run(comm):
        got = with_dropout(key, comm, 4, batches)
        expected = with_dropout("serial", comm.split(comm.rank), 4, batches)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-11, err_msg=key)
        half = with_dropout(key, comm, 2, batches)
        assert half[1]["method/steps"] == 2
        again = with_dropout(key, comm, 2, batches, half[1])
        np.testing.assert_allclose(half[0] + again[0], expected[0], rtol=1e-11, err_msg=key)

    launch(run, 3, LocalWorld())


def test_another_step_and_another_seed_draw_other_masks():
    def run(comm):
        losses = []
        for seed, first in ((3, 0), (3, 1), (4, 0)):
            serial = Serial(small(0.5), CrossEntropy(), SGD(0.1), comm, seed=3)
            vars(serial)["seed"], serial.steps = seed, first
            losses.append(serial.step(DATA.batch(np.arange(13))))
        return losses

    (losses,) = launch(run, 1)
    assert len(set(losses)) == 3


def test_a_stale_server_counts_the_batches_of_a_run():
    def run(comm):
        server = made(StaleParameterServer, comm, small(0.5), staleness=1)
        batches = [DATA.batch(np.arange(12))] * 3
        server.train(batches)
        assert server.steps == server.clock == 3
        server.step(batches[0])
        assert server.steps == 4
        again = made(StaleParameterServer, comm, small(0.5), staleness=1)
        again.load(server.state())
        assert again.steps == again.clock == 4 and set(again.clocks.values()) == {4}
        again.train(batches)
        assert not again.updates or {update.clock for update in again.updates} == {4, 5, 6}

    launch(run, 4, LocalWorld())


def test_a_method_of_ones_own_that_overrides_step_is_told():
    class Old(Serial):
        def step(self, batch):
            return self.train_on(batch)

    def run(comm):
        with pytest.raises(RuntimeError, match=r"Old computes outside of a step.*train_on"):
            made(Old, comm).step(DATA.batch(np.arange(4)))

    launch(run, 1)


# Mutants


def keyed_by_the_batch(monkeypatch):
    def of_batch(self, part):
        return method.draws(part.seed, part.step, part.positions)

    monkeypatch.setattr(method.Method, "draws_of", of_batch)


def steps_never_counted(monkeypatch):
    monkeypatch.setattr(
        method.Method, "steps", property(lambda self: 0, lambda self, value: None), raising=False
    )


def positions_of_the_shard(monkeypatch):
    def of_part(self, part):
        return method.draws(self.seed, self.steps, np.arange(len(part)))

    monkeypatch.setattr(method.Method, "draws_of", of_part)


def steps_not_saved(monkeypatch):
    load = method.Method.load

    def forgets(self, state):
        load(self, state | {"method/steps": np.array(0)})

    monkeypatch.setattr(method.Method, "load", forgets)


def nobody_compares(monkeypatch):
    monkeypatch.setattr(guards, "check_same_batches", lambda method, batches: None)


def only_indices_are_compared(monkeypatch):
    from minidist.data import Batch

    monkeypatch.setattr(Batch, "digest", lambda self: hash(tuple(self.indices)))


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (keyed_by_the_batch, test_another_step_and_another_seed_draw_other_masks),
        (steps_never_counted, test_meetings_are_counted_by_the_method),
        (
            positions_of_the_shard,
            partial(test_draws_are_keyed_by_the_methods_seed_and_step, "data_parallel/ring"),
        ),
        (
            steps_not_saved,
            partial(test_draws_are_keyed_by_the_methods_seed_and_step, "data_parallel/ring"),
        ),
        (
            nobody_compares,
            partial(test_batches_that_depend_on_the_rank_are_refused, "each rank has its own data"),
        ),
        (
            only_indices_are_compared,
            partial(test_batches_that_depend_on_the_rank_are_refused, "each rank has its own data"),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_mutant_is_rejected(mutant, check, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()
