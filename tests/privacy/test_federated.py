"""Federated averaging, FedProx and client-level privacy: against plain loops and formulas."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import strict

from minidist import LocalWorld, Machine, launch
from minidist.comm.errors import Disagreement
from minidist.data import Batch
from minidist.data.clients import Clients, by_dirichlet
from minidist.engine import array as arrays
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import BatchNorm, CrossEntropy, Dropout, Flatten, Linear, ReLU, Sequential
from minidist.optim import SGD, Adam
from minidist.parallel import METHODS, Serial
from minidist.parallel.method import Unsupported
from minidist.privacy import (
    PRIVATE_METHODS,
    FederatedAveraging,
    FedProx,
    NoClients,
    PrivateFederatedAveraging,
    client_privacy,
    rounds,
)
from tests.parallel.checks import Setting, check_device, check_predictions, images

DATA = images(60)
SKEWED = by_dirichlet(DATA, 6, 0.5, seed=0)
WIDTHS = (12, 9, 7, 5)
ROUNDS = 3
SOME = {"clients": SKEWED, "fraction": 0.6, "epochs": 2, "local_batch": 4}
PRIVATE = {"client_clip": 0.05, "noise": 0.3}
KINDS = {
    "average": partial(FederatedAveraging, **SOME),
    "prox": partial(FedProx, **SOME, mu=0.7),
    "private": partial(PrivateFederatedAveraging, **SOME, **PRIVATE),
}


def whole():
    """All data: the batch of a round."""
    return DATA.batch(np.arange(len(DATA)))


def with_dropout():
    return Sequential(
        Flatten(), Linear(12, 9), ReLU(), Dropout(0.4), Linear(9, 5), input_shape=(3, 4)
    )


def trained(kind, comm, optimizer=SGD, model=lambda: mlp(WIDTHS), batch=None, rounds=ROUNDS):
    """Losses, and the parameters after each round."""
    with defaults(dtype="float64"):
        method = kind(model(), CrossEntropy(), optimizer(0.1), comm, 3)
        losses, found = [], []
        for _ in range(rounds):
            losses.append(method.step(batch or whole()))
            found.append(method.parameters())
        return losses, found


def gap(got, expected):
    """The largest difference after any round."""
    assert len(got) == len(expected)
    return max(np.abs(g[n] - e[n]).max() for g, e in zip(got, expected, strict=True) for n in e)


def on(ranks, kind, **options):
    return launch(lambda comm: trained(kind, comm, **options), ranks, LocalWorld())


# The exact limit: one step of all clients on all their data is synchronous training


def check_one_step(kind, ranks, optimizer, model=lambda: mlp(WIDTHS)):
    losses, expected = on(1, Serial, optimizer=optimizer, model=model)[0]
    for got in on(ranks, kind, optimizer=optimizer, model=model):
        assert got[0] == pytest.approx(losses, rel=1e-12)
        assert gap(got[1], expected) < 1e-12


@pytest.mark.parametrize(
    ("kind", "ranks", "optimizer"),
    [
        (FederatedAveraging, 1, SGD),
        (FederatedAveraging, 2, partial(SGD, momentum=0.9)),
        (FederatedAveraging, 4, Adam),
        (FedProx, 3, SGD),
    ],
)
def test_one_local_step_of_all_clients_is_synchronous_training(kind, ranks, optimizer):
    check_one_step(partial(kind, clients=SKEWED), ranks, optimizer)


def test_dropout_draws_what_serial_training_draws():
    check_one_step(partial(FederatedAveraging, clients=7), 3, SGD, with_dropout)


# Several local steps: the algorithm, written out


def by_hand(mu=0.0):
    """Algorithm 1 of McMahan et al.: models are averaged, weighted by samples."""
    with defaults(dtype="float64"):
        model, loss = mlp(WIDTHS).init(3), CrossEntropy()
        w, found = model.flat.data.copy(), []
        for round in range(ROUNDS):
            picked = drawn_by_hand(round)
            average, n = np.zeros_like(w), sum(len(SKEWED.samples(k)) for k in picked)
            for k in picked:
                own = SKEWED.samples(k)
                model.flat.data = w
                for epoch in range(2):
                    order = own
                    if len(own) > 4:
                        random = rounds.generator(3, "client", k, round, epoch)
                        order = random.permutation(own)
                    for start in range(0, len(own), 4):
                        local = DATA.batch(order[start : start + 4])
                        model.zero_grad()
                        loss(model(local.inputs), local.targets).backward()
                        step = model.flat.grad + mu * (model.flat.data - w)
                        model.flat.data = model.flat.data - 0.1 * step
                average += len(own) / n * model.flat.data
            w = average
            model.flat.data = w
            found.append({name: p.data.copy() for name, p in model.named_parameters().items()})
        return found


def drawn_by_hand(round):
    order = rounds.generator(3, "clients", round).permutation(6)
    return sorted(order[: round_half_up(0.6 * 6)])


def round_half_up(x):
    return int(x + 0.5)


@pytest.mark.parametrize(
    ("key", "mu", "tried"), [("average", 0.0, (1, 2, 3, 4)), ("prox", 0.7, (1, 3))]
)
def test_equals_the_algorithm_written_out_on_any_number_of_ranks(key, mu, tried):
    expected = by_hand(mu)
    for ranks in tried:
        results = on(ranks, KINDS[key])
        for losses, got in results:
            assert losses == results[0][0]
            assert gap(got, expected) < 1e-12, f"{ranks} ranks"


def test_fedprox_without_a_spring_is_federated_averaging():
    first, second = on(2, KINDS["average"])[0], on(2, partial(FedProx, **SOME, mu=0.0))[0]
    assert first[0] == second[0] and gap(first[1], second[1]) == 0


def test_the_spring_keeps_clients_near():
    def moved(mu):
        _, got = on(1, partial(FedProx, **SOME, mu=mu), rounds=1)[0]
        with defaults(dtype="float64"):
            start = {n: p.data for n, p in mlp(WIDTHS).init(3).named_parameters().items()}
        return sum(np.square(got[0][n] - start[n]).sum() for n in start)

    assert moved(5.0) < 0.8 * moved(0.5) < 0.8 * moved(0.0)


# Privacy of clients


def private(comm, **options):
    """The change of one round: -Δ, since the server's rate is the clients'."""
    with defaults(dtype="float64"):
        options = {"clients": SKEWED, "local_batch": 4, **options}
        method = PrivateFederatedAveraging(
            mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, 3, **options
        )
        before = method.model.flat.data.copy()
        method.step(whole())
        return method.model.flat.data - before


def test_one_client_changes_the_model_by_at_most_s_over_qk():
    """Gone or not, everything else alike: that is what the noise has to hide."""
    for clip in (0.01, 0.1):
        options = {"client_clip": clip, "noise": 1e-9}
        everybody = launch(partial(private, **options), 2, LocalWorld())[0]
        for client in range(6):
            without = launch(partial(private, **options, gone={client}), 2, LocalWorld())[0]
            moved = np.linalg.norm(everybody - without)
            assert moved <= clip / 6 * (1 + 1e-4)
            if clip < 0.1:  # so small that everybody's change is limited to it
                assert moved == pytest.approx(clip / 6, rel=1e-4)


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_noise_is_drawn_once_whatever_the_ranks_and_the_clients(ranks):
    """σ = zS / (qK): with S so small that nothing else is seen."""
    options = {"client_clip": 1e-9, "noise": 1e9, "fraction": 0.5}
    results = launch(partial(private, **options), ranks, LocalWorld())
    assert all(np.array_equal(result, results[0]) for result in results)
    assert results[0].std() == pytest.approx(1 / (0.5 * 6), rel=0.1)  # of 227 draws
    assert np.array_equal(results[0], launch(partial(private, **options), 1, LocalWorld())[0])


def test_private_averaging_is_the_same_on_any_number_of_ranks():
    expected = on(1, KINDS["private"])[0]
    for ranks in (2, 4):
        for losses, got in on(ranks, KINDS["private"]):
            assert losses == pytest.approx(expected[0], rel=1e-12)
            assert gap(got, expected[1]) < 1e-12


def test_each_client_tosses_its_own_coin():
    def run(comm):
        method = PrivateFederatedAveraging(
            mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, 3, clients=100, fraction=0.3
        )
        counts = []
        for method.steps in range(200):
            counts.append(len(method.drawn([1] * 100)))
        return counts

    counts = launch(run, 1)[0]
    assert np.mean(counts) == pytest.approx(30, rel=0.05)
    assert np.var(counts) == pytest.approx(100 * 0.3 * 0.7, rel=0.3)  # a fixed number has none


def test_epsilon_is_that_of_dp_sgd_with_clients_for_samples():
    """Once z and σ, in other words; and the published figure of Abadi et al. 2016."""

    def run(comm):
        method = PrivateFederatedAveraging(
            mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, clients=1000, fraction=0.01, noise=4.0
        )
        with pytest.raises(AttributeError, match=r"fraction was used when it was made"):
            method.fraction = 0.5
        return method.epsilon_after(10_000, 1e-5, "mironov"), method.epsilon_after(0, 1e-5)

    spent, nothing = launch(run, 1)[0]
    assert round(spent, 2) == 1.26 and nothing == 0


def test_a_round_of_nobody_is_noise_alone():
    def run(comm):
        method = PrivateFederatedAveraging(
            mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, 3, clients=SKEWED, fraction=1e-6
        )
        before = method.model.flat.data.copy()
        loss = method.step(whole())
        return loss, method.steps, np.array_equal(before, method.model.flat.data)

    for loss, steps, same in launch(run, 2, LocalWorld()):
        assert np.isnan(loss) and steps == 1 and not same


# Formulas, devices, worlds without numbers


@pytest.mark.parametrize(
    ("key", "ranks", "batch"),
    [("average", 1, 13), ("average", 4, 60), ("prox", 2, 23), ("private", 3, 13)],
)
def test_measured_equals_formula(key, ranks, batch, monkeypatch):
    monkeypatch.setitem(METHODS, "federated", partial(KINDS[key], microbatches=2))
    setting = Setting(batch=batch, steps=2)
    slow_net = Machine(latency=1e-5, bandwidth=1e8, reduce_bandwidth=3e8, flops=1e8)
    launch(lambda comm: check_predictions(comm, "federated", setting), ranks, LocalWorld(slow_net))


@pytest.mark.parametrize("key", ["prox", "private"])
def test_gives_on_a_device_what_the_host_gives(key, monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    monkeypatch.setitem(METHODS, "federated", KINDS[key])
    check_device("federated", "strict", 3)


@pytest.mark.parametrize("key", KINDS)
def test_shapes_do_what_numbers_do(key, monkeypatch):
    from tests.parallel.test_phantom import train

    monkeypatch.setitem(METHODS, "federated", PRIVATE_METHODS[f"federated/{key}"])
    (got, got_flops), (expected, flops) = (
        train("federated", "mlp", 3, device) for device in ("phantom", "cpu")
    )
    assert got_flops == flops
    assert [counted for rank in got for counted, _ in rank] == [
        counted for rank in expected for counted, _ in rank
    ]


def test_buffers_are_averaged_by_samples():
    """Of a running average that starts at 0: Σ n_k/n times the client's own, on every rank."""

    def run(comm):
        with defaults(dtype="float64"):
            model = Sequential(Flatten(), Linear(12, 6), BatchNorm(6), ReLU(), Linear(6, 5),
                               input_shape=(3, 4))  # fmt: skip
            method = FederatedAveraging(model, CrossEntropy(), SGD(0.1), comm, 3, clients=SKEWED)
            cost, before = method.cost(whole(), Machine()), comm.trace.sent.nbytes
            method.step(whole())
            assert comm.trace.sent.nbytes - before == cost.nbytes[comm.rank]
            return method.buffers()["2.mean"], method.parameters()

    results = launch(run, 3, LocalWorld())
    with defaults(dtype="float64"):
        start = Sequential(Flatten(), Linear(12, 6), BatchNorm(6), ReLU(), Linear(6, 5),
                           input_shape=(3, 4)).init(3)  # fmt: skip
        weight = {n: p.data for n, p in start.named_parameters().items()}
        outputs = DATA.batch(np.arange(60)).inputs.reshape(60, 12) @ weight["1.weight"]
        outputs = outputs + weight["1.bias"]
    for mean, _ in results:
        assert np.array_equal(mean, results[0][0])
        np.testing.assert_allclose(mean, 0.1 * outputs.mean(0), rtol=1e-10, atol=1e-14)


# Bad input


def build(kind=FederatedAveraging, comm=None, **options):
    return kind(mlp(WIDTHS), CrossEntropy(), options.pop("optimizer", SGD(0.1)), comm, 3, **options)


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        (FederatedAveraging, {"fraction": 0}, r"clients in a round must be in \(0, 1\], not 0"),
        (FederatedAveraging, {"fraction": 1.5}, r"in \(0, 1\], not 1.5"),
        (FederatedAveraging, {"epochs": 0}, "1 or more epochs a round, not 0"),
        (FederatedAveraging, {"local_batch": 0}, "a local batch has 1 or more samples, not 0"),
        (FederatedAveraging, {"local_lr": 0.0}, "learning rate must be positive, not 0.0"),
        (FederatedAveraging, {"clients": 0}, "an integer ≥ 1, not 0"),
        (FederatedAveraging, {"fraction": float("nan")}, r"in \(0, 1\], not nan"),
        (FederatedAveraging, {"gone": 3}, r"gone is a set of clients, not 3: write \{3\}"),
        (FederatedAveraging, {"gone": [8]}, "gone has client 8.*from 0 to 7"),
        (FedProx, {"mu": -1}, "FedProx: mu must be at least 0, not -1"),
        (
            PrivateFederatedAveraging,
            {"client_clip": 0},
            "client_clip must be positive and finite, not 0",
        ),
        (PrivateFederatedAveraging, {"noise": 0}, "positive and finite, not 0: without"),
    ],
)
def test_bad_settings_are_refused(kind, options, error):
    with pytest.raises((ValueError, TypeError), match=error):
        launch(lambda comm: build(kind, comm, **options), 2, LocalWorld())


def step_of(**options):
    kind = options.pop("kind", FederatedAveraging)
    batch = options.pop("batch", None)
    return lambda comm: build(kind, comm, **options).step(batch or whole())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"clients": SKEWED, "gone": range(6)}, "no client is left.*of 6 clients 6 are gone"),
        (
            {"kind": PrivateFederatedAveraging, "gone": range(8)},
            "all 8 clients are gone in round 0",
        ),
        (
            {"clients": SKEWED, "gone": {0, 1, 2, 3, 4}, "batch": DATA.batch(SKEWED.samples(1))},
            "5 are gone, and the others have no data in the batch",
        ),
        (
            {"clients": Clients(np.zeros(9, int), 1)},
            "own 9 samples, and random has 60: make Clients of",
        ),
        ({"optimizer": SGD(lambda step: 0.0)}, "rate is 0.0 in round 0.*give them a local_lr"),
    ],
)
def test_rounds_that_cannot_be_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        launch(step_of(**options), 1, LocalWorld())


def test_those_who_are_gone_do_not_train_and_may_come_back():
    def run(comm):
        method = build(comm=comm, clients=SKEWED)
        samples, found = method.samples(method.parts(whole())), []
        for gone in ({2, 3}, ()):
            method.gone = gone
            found.append(method.drawn(samples))
        with pytest.raises(ValueError, match="gone has client 6"):
            method.gone = [6]
        with pytest.raises(AttributeError, match=r"clients was used when it was made"):
            method.clients = 4
        return found

    assert launch(run, 2, LocalWorld())[0] == [[0, 1, 4, 5], [0, 1, 2, 3, 4, 5]]
    with pytest.raises(NoClients):
        launch(step_of(gone=range(8)), 1)


def test_ranks_that_draw_other_clients_say_so():
    with pytest.raises(Disagreement, match=r"the round: clients \[1, 2, 3, 4, 5, 6, 7\]"):
        launch(lambda comm: build(comm=comm, gone={comm.rank}).step(whole()), 2, LocalWorld())


def test_private_averaging_refuses_buffers_and_to_leave_out_rounds():
    def run(comm):
        model = Sequential(Linear(4, 3), BatchNorm(3), input_shape=(4,))
        with pytest.raises(ValueError, match=r"buffers, such as 1\.mean, which clients"):
            PrivateFederatedAveraging(model, CrossEntropy(), SGD(0.1), comm)
        with pytest.raises(Unsupported, match="skip is not supported"):
            build(PrivateFederatedAveraging, comm).guard(not_finite="skip")

    launch(run, 1)


# Mutants


def weights_by_client(monkeypatch):
    monkeypatch.setattr(
        rounds, "shares", lambda samples, drawn: {client: 1 / len(drawn) for client in drawn}
    )


def weights_over_everybody(monkeypatch):
    def over_all(samples, drawn):
        return {client: samples[client] / sum(samples) for client in drawn}

    monkeypatch.setattr(rounds, "shares", over_all)


def clients_go_on_from_each_other(monkeypatch):
    """w_k is not set back to w before the next client."""

    def forgetful(self, client, weight):
        flat = self.model.flat
        flat.grad[...] = self.start
        flat.grad -= flat.data
        self.change += weight * flat.grad

    monkeypatch.setattr(FederatedAveraging, "contribute", forgetful)


def orders_by_rank(monkeypatch):
    batches = FederatedAveraging.local_batches

    def shuffled(self, client, part, epoch):
        return batches(self, client + 100 * self.comm.rank, part, epoch)

    monkeypatch.setattr(FederatedAveraging, "local_batches", shuffled)


def drawn_by_rank(monkeypatch):
    monkeypatch.setattr(FederatedAveraging, "agree_on", lambda self, drawn: None)
    monkeypatch.setattr(
        FederatedAveraging, "drawn", lambda self, samples: [self.comm.rank, self.comm.rank + 2]
    )


def local_losses_divided_by_the_whole_batch(monkeypatch):
    monkeypatch.setattr(Batch, "count", lambda self, loss: 60)


def spring_towards_zero(monkeypatch):
    def wrong(self, rate):
        self.model.flat.grad += self.mu * self.model.flat.data
        FederatedAveraging.local_step(self, rate)

    monkeypatch.setattr(FedProx, "local_step", wrong)


def spring_towards_the_last_local_step(monkeypatch):
    def wrong(self, rate):
        before = self.model.flat.data.copy()
        FederatedAveraging.local_step(self, rate)
        self.model.flat.data -= rate * self.mu * (self.model.flat.data - before)

    monkeypatch.setattr(FedProx, "local_step", wrong)


@pytest.mark.parametrize(
    ("key", "mutant"),
    [
        ("average", weights_by_client),
        ("average", weights_over_everybody),
        ("average", clients_go_on_from_each_other),
        ("average", orders_by_rank),
        ("average", drawn_by_rank),
        ("average", local_losses_divided_by_the_whole_batch),
        ("prox", spring_towards_zero),
        ("prox", spring_towards_the_last_local_step),
    ],
)
def test_mutants_are_rejected(key, mutant, monkeypatch):
    expected = by_hand(0.7 if key == "prox" else 0.0)
    mutant(monkeypatch)
    results = on(2, KINDS[key])
    assert max(gap(got, expected) for _, got in results) > 1e-6


def noise_on_each_client(monkeypatch):
    def noisy(self, change):
        client_privacy.clip_by_global_norm(change, self.client_clip)
        random = np.random.default_rng(self.comm.rank)
        change += self.noise * self.client_clip * random.standard_normal(change.size)

    monkeypatch.setattr(PrivateFederatedAveraging, "limit", noisy)
    monkeypatch.setattr(PrivateFederatedAveraging, "finish", lambda self: None)


def noise_of_each_rank(monkeypatch):
    true = client_privacy.generator
    calls = []

    def other(*key):
        calls.append(key)
        return true(*key, len(calls)) if "noise" in key else true(*key)

    monkeypatch.setattr(client_privacy, "generator", other)


def limit_for_the_sum(monkeypatch):
    monkeypatch.setattr(PrivateFederatedAveraging, "limit", lambda self, change: None)

    def late(self):
        client_privacy.clip_by_global_norm(self.change, self.client_clip)

    monkeypatch.setattr(PrivateFederatedAveraging, "finish", late)


def divided_by_who_came(monkeypatch):
    monkeypatch.setattr(
        PrivateFederatedAveraging,
        "weights",
        lambda self, samples, drawn: {client: 1 / len(drawn) for client in drawn},
    )


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        (lambda: test_the_noise_is_drawn_once_whatever_the_ranks_and_the_clients(3), mutant)
        for mutant in (noise_on_each_client, noise_of_each_rank)
    ]
    + [
        (test_one_client_changes_the_model_by_at_most_s_over_qk, mutant)
        for mutant in (limit_for_the_sum, divided_by_who_came)
    ],
)
def test_mutants_of_privacy_are_rejected(check, mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check()
