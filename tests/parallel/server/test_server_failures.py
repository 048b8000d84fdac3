"""Workers that die, servers that die, and going on from a saved state: in the local world."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.comm import Crash
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam
from minidist.parallel import (
    ParameterServer,
    ServerLost,
    StaleParameterServer,
)
from minidist.parallel.gradient_compression.compressors import PowerSGD, TopK
from minidist.parallel.server import parameter_server
from tests.parallel.checks import Setting

KINDS = {
    "bsp": ParameterServer,
    "bsp, 2 servers": partial(ParameterServer, servers=2),
    "ssp": partial(StaleParameterServer, staleness=1),
    "ssp, 2 servers": partial(StaleParameterServer, staleness=1, servers=2),
    "async": StaleParameterServer,
    "async, 2 servers": partial(StaleParameterServer, servers=2),
}


def build(kind, comm, setting, victim=-1, dies_at=0):
    """A method on this rank; the victim dies when it comes to batch ``dies_at``."""
    method = KINDS.get(kind, kind)(
        mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm, setting.seed
    )
    compute, collect = method.forward_backward, comm.recv

    def deadly(batch):
        if batch.step == dies_at:
            raise Crash("power cut")
        return compute(batch)

    def deadly_recv(*args, received=[0], **options):  # noqa: B006 (it counts)
        received[0] += 1
        if received[0] > dies_at:
            raise Crash("power cut")
        return collect(*args, **options)

    if comm.rank == victim and method.works:
        method.forward_backward = deadly
    elif comm.rank == victim:
        comm.recv = deadly_recv
    return method


def train(method, setting, start=0, stop=None):
    batches = Batches(setting.dataset, setting.batch, setting.seed)
    parts = [batches[step] for step in range(start, stop or setting.steps)]
    if hasattr(method, "train"):
        return method.train(parts)
    return [method.step(part) for part in parts]


@pytest.mark.parametrize("victim", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_dies_is_left_out_and_training_goes_on(kind, victim):
    setting = Setting(steps=60, optimizer=lambda: SGD(0.1))

    def run(comm):
        method = build(kind, comm, setting, victim, dies_at=20)
        losses = train(method, setting)
        return losses, method.parameters(), getattr(method, "updates", [])

    results = launch(run, 5, LocalWorld())
    assert results[victim] is None
    living = [result for result in results if result is not None]
    assert len(living) == 4
    losses, parameters, _ = living[0]
    assert all(np.isfinite(losses)) and np.mean(losses[-5:]) < 0.95 * losses[0], losses
    for other_losses, other, updates in living:
        assert other_losses == losses
        assert all(np.array_equal(other[name], parameters[name]) for name in parameters)
        clocks = [update.clock for update in updates if update.worker == victim]
        assert clocks in ([], list(range(20)))


def oracle(setting, dies_at, victim_shard, workers):
    """Serial training, on the living workers' shards alone once one has died."""
    model, optimizer, loss = mlp(setting.widths).init(setting.seed), setting.optimizer(), None
    batches, losses = Batches(setting.dataset, setting.batch, setting.seed), []
    for step in range(setting.steps):
        model.zero_grad()
        total = 0.0
        living = [w for w in range(workers) if step < dies_at or w != victim_shard]
        for worker in living:
            shard = batches[step].shard(worker, workers)
            loss = CrossEntropy()(model(shard.inputs), shard.targets, shard.count(CrossEntropy()))
            loss.backward()
            total += loss.item()
        scale = workers / len(living)
        optimizer.step(model.flat.data, model.flat.grad * scale)
        losses.append(total * scale)
    return losses, model.state()


def check_living(servers=1):
    setting = Setting()

    def run(comm):
        with defaults(dtype="float64"):
            kind = partial(ParameterServer, servers=servers)
            method = build(kind, comm, setting, victim=servers + 1, dies_at=3)
            return train(method, setting), method.parameters()

    with defaults(dtype="float64"):
        expected_losses, expected = oracle(setting, 3, 1, 3)
    for result in launch(run, servers + 3, LocalWorld()):
        if result is not None:
            losses, parameters = result
            np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)
            for name in expected:
                np.testing.assert_allclose(parameters[name], expected[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_the_gradient_of_the_living_stands_for_the_whole_batch(servers):
    check_living(servers)


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_worker_there_is_nobody_left_to_train(kind):
    def run(comm):
        victim = comm.rank if comm.rank >= (2 if "2 servers" in kind else 1) else -1
        train(build(kind, comm, Setting(), victim, dies_at=2), Setting())

    with pytest.raises(RuntimeError, match="all workers have died"):
        launch(run, 4, LocalWorld())


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_dies_is_an_error_that_names_its_keys(kind):
    def run(comm):
        setting = Setting()
        servers = 2 if "2 servers" in kind else 1
        train(build(kind, comm, setting, victim=servers - 1, dies_at=7), setting)

    text = (
        r"server 1 \(rank 1\) has died, and with it keys 13[56] to 269 of 270: "
        r"2\.weight|3\.weight"
        if "2 servers" in kind
        else r"server 0 \(rank 0\) has died, and with it keys 0 to 269 of 270: 1\.weight\[0:108\]"
    )
    with pytest.raises(ServerLost, match=text):
        launch(run, 4, LocalWorld())


@pytest.mark.parametrize("kind", [ParameterServer, StaleParameterServer])
def test_a_rank_that_dies_with_its_colocated_server_takes_its_keys_along(kind):
    def run(comm):
        setting = Setting(steps=20)
        colocated = partial(kind, colocated=True)
        train(build(colocated, comm, setting, victim=2, dies_at=7), setting)

    with pytest.raises(
        ServerLost, match=r"server 2 \(rank 2\) has died.*keys 13[56] to 20\d of 270"
    ):
        launch(run, 4, LocalWorld())


def test_a_server_that_dies_while_others_agree_with_it_on_a_norm():
    def run(comm):
        method = build(partial(ParameterServer, servers=3, clip=1.0), comm, Setting())
        if comm.rank == 1:
            raise Crash("power cut")
        if comm.rank == 2:  # its left neighbour in the ring has died
            method.sum_over_servers(np.ones(1))

    with pytest.raises(ServerLost, match=r"server 1 \(rank 1\) has died"):
        launch(run, 6, LocalWorld())


@pytest.mark.parametrize("optimizer", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(1e-2)])
@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        *(({}, ranks) for ranks in (1, 2, 5)),
        *(({"servers": 2}, ranks) for ranks in (3, 4, 5)),
        *(({"colocated": True}, ranks) for ranks in (1, 2, 5)),
        ({"servers": 2, "compressor": partial(TopK, 0.1)}, 5),
        ({"colocated": True, "compressor": PowerSGD}, 4),
    ],
)
def test_training_resumes_from_its_state_bit_by_bit(options, ranks, optimizer):
    setting, kind = Setting(optimizer=optimizer), partial(ParameterServer, **options)

    def straight(comm):
        method = build(kind, comm, setting)
        return train(method, setting), method.parameters()

    def first(comm):
        method = build(kind, comm, setting)
        return train(method, setting, 0, 3), method.state()

    saved = launch(first, ranks, LocalWorld())

    def second(comm):
        method = build(kind, comm, setting)
        method.load(saved[comm.rank][1])
        return saved[0][0] + train(method, setting, 3), method.parameters()

    for (losses, got), (expected_losses, expected) in zip(
        launch(second, ranks, LocalWorld()), launch(straight, ranks, LocalWorld()), strict=True
    ):
        assert losses == expected_losses
        for name in expected:
            assert np.array_equal(got[name], expected[name]), name


def test_after_a_server_died_training_goes_on_from_the_last_state():
    setting, kind, saved = Setting(steps=12), "async, 2 servers", {}

    def first(comm):
        method = build(kind, comm, setting, victim=1, dies_at=25)
        for start in range(0, setting.steps, 2):
            train(method, setting, start, start + 2)
            saved[comm.rank] = start + 2, method.state()

    with pytest.raises(ServerLost):
        launch(first, 5, LocalWorld())
    done, state = min(saved.values(), key=lambda one: one[0])
    assert done >= 2

    def second(comm):
        method = build(kind, comm, setting)
        method.load(state)
        pulled = method.model.flat.data.copy() if method.works else method.data
        return train(method, setting, done), pulled, method.parameters()

    results = launch(second, 6, LocalWorld())  # one worker more than before
    assert all(len(losses) == setting.steps - done for losses, *_ in results)
    named = mlp(setting.widths).named_parameters()
    whole = np.concatenate([state[f"parameters/{name}"].ravel() for name in named])
    for _, pulled, _ in results[2:]:
        assert np.array_equal(pulled, whole), "workers begin where it was saved"


def test_a_state_of_two_servers_goes_on_with_one():
    setting = Setting(optimizer=lambda: Adam(1e-2))

    def first(comm):
        with defaults(dtype="float64"):
            method = build("bsp, 2 servers", comm, setting)
            return train(method, setting, 0, 3), method.state()

    def second(comm, state):
        with defaults(dtype="float64"):
            method = build("bsp", comm, setting)
            method.load(state)
            return train(method, setting, 3)

    begun, state = launch(first, 4, LocalWorld())[0]
    whole = launch(lambda comm: train(build("bsp", comm, setting), setting), 4, LocalWorld())[0]
    for losses in launch(partial(second, state=state), 4, LocalWorld()):
        np.testing.assert_allclose(begun + losses, whole, rtol=1e-5)


def test_a_state_is_saved_by_the_living():
    """A worker has died: the others save, its own errors are lost, and all can go on."""
    setting = Setting()
    kind = partial(ParameterServer, compressor=partial(TopK, 0.5))

    def first(comm):
        method = build(kind, comm, setting, victim=2, dies_at=2)
        return train(method, setting, 0, 4), method.state()

    living = [result for result in launch(first, 4, LocalWorld()) if result is not None]
    assert len(living) == 3
    state = living[0][1]
    assert [name for name in state if name.startswith("rank ")] == [
        "rank 1 of 4/push to 0, 0",
        "rank 3 of 4/push to 0, 0",
    ]
    for _, other in living:
        assert all(np.array_equal(other[name], state[name]) for name in state)

    def second(comm):
        method = build(kind, comm, setting)
        method.load(state)
        return train(method, setting, 4)

    assert all(np.isfinite(launch(second, 4, LocalWorld())[0]))


# Mutants


def missing_shard_not_made_up_for(monkeypatch):
    monkeypatch.setattr(
        parameter_server.ParameterServer, "scale_for_lost", lambda self, arrived: None
    )


def the_dead_workers_last_gradient_stays(monkeypatch):
    """It is not known to be dead, so what lies in the buffer is added once more."""
    monkeypatch.setattr(
        parameter_server.ParameterServer,
        "scale_for_lost",
        lambda self, arrived: (
            self.comm.combine("sum", self.total, self.incoming) if arrived < 3 else None
        ),
    )


@pytest.mark.parametrize(
    "mutant",
    [missing_shard_not_made_up_for, the_dead_workers_last_gradient_stays],
    ids=lambda mutant: mutant.__name__,
)
def test_mutant_is_rejected(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_living()
