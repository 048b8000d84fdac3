"""DP-SGD: exact limits, noise once, the same on any number of ranks, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults
from minidist.models import cnn, gpt, mlp
from minidist.nn import BatchNorm, CrossEntropy, Embedding, Flatten, Linear, Module, Sequential
from minidist.ops import ShapeError
from minidist.optim import SGD
from minidist.parallel import Serial
from minidist.parallel.data_parallel.all_reduce import AllReduce
from minidist.parallel.simulation import simulate
from minidist.privacy import (
    DPSGD,
    BudgetSpent,
    NotBySample,
    PoissonBatches,
    dp_sgd,
    epsilon_of,
    per_sample,
)
from minidist.privacy.dp_sgd import clip_factors, noise_of
from tests.parallel import checks
from tests.parallel.checks import images

WIDTHS = (12, 9, 5)


def train(ranks, steps=4, model=lambda: mlp(WIDTHS), data=None, rate=0.2, poisson=True, **options):
    """Losses, parameters and what was sent."""
    data = data or images()
    batches = PoissonBatches(data, rate, seed=3) if poisson else Batches(data, 13, seed=3)

    def run(comm):
        with defaults(dtype="float64"):
            given = {"rate": rate} if poisson else {}
            method = DPSGD(model(), CrossEntropy(), SGD(0.1, 0.9), comm, 3, **given, **options)
            losses = [method.step(batches[step]) for step in range(steps)]
            return losses, method.parameters(), comm.trace.sent.nbytes

    return launch(run, ranks, LocalWorld())


def gap(got, expected):
    return max(np.abs(got[n] - expected[n]).max() / np.abs(expected[n]).max() for n in expected)


def test_one_two_and_four_ranks_give_the_same_parameters():
    alone = train(1)[0]
    assert len({len(PoissonBatches(images(), 0.2, 3)[step]) for step in range(4)}) > 2
    with defaults(dtype="float64"):
        batch = PoissonBatches(images(), 0.2, 3)[0]
        mean = CrossEntropy()(mlp(WIDTHS).init(3)(batch.inputs), batch.targets)
    assert alone[0][0] == pytest.approx(mean.item(), rel=1e-12), "the mean over this batch"
    for ranks in (2, 4):
        for losses, parameters, _ in train(ranks, microbatches=ranks):
            assert losses == pytest.approx(alone[0], rel=1e-10)
            assert gap(parameters, alone[1]) < 1e-10


def test_a_batch_without_samples_is_noise_alone():
    batches = PoissonBatches(images(), 0.01, seed=3)
    empty = next(step for step in range(100) if not len(batches[step]))

    def run(comm):
        method = DPSGD(mlp(WIDTHS), CrossEntropy(), SGD(1.0), comm, 3, rate=0.01)
        before = method.parameters()
        assert method.step(batches[empty]) == 0
        return gap(method.parameters(), before)

    assert min(launch(run, 2, LocalWorld())) > 0.1


@pytest.mark.parametrize("ranks", [1, 3])
def test_without_noise_and_clip_it_is_serial_training(ranks):
    def serial(comm):
        with defaults(dtype="float64"):
            method = Serial(mlp(WIDTHS), CrossEntropy(), SGD(0.1, 0.9), comm, 3)
            batches = Batches(images(), 13, seed=3)
            return [method.step(batches[step]) for step in range(4)], method.parameters()

    (expected,) = launch(serial, 1, LocalWorld())
    options = {"noise": 0, "sample_clip": math.inf, "poisson": False}
    for microbatches in (1, 2):
        for losses, parameters, _ in train(ranks, microbatches=microbatches, **options):
            assert losses == pytest.approx(expected[0], rel=1e-12)
            assert gap(parameters, expected[1]) < 1e-12


MODELS = {
    "mlp": (lambda: mlp(WIDTHS), images),
    "cnn": (lambda: cnn(2, classes=5, size=8, hidden=6), lambda: squares(8)),
    "gpt": (lambda: gpt(7, context=6, width=8, layers=2, heads=2), lambda: tokens(6)),
    "wide gpt": (lambda: gpt(70, context=3, width=16, layers=1, heads=2), lambda: tokens(3, 70)),
}


def squares(size):
    draw = np.random.default_rng(2)
    return Dataset("squares", draw.standard_normal((60, size, size)), draw.integers(0, 5, 60), 5)


def tokens(length, vocabulary=7):
    text = np.random.default_rng(1).integers(0, vocabulary, (60, length + 1))
    return Dataset("tokens", text[:, :-1], text[:, 1:], vocabulary)


@pytest.mark.parametrize("name", MODELS)
def test_what_it_sends_holds_and_waits_for_is_what_the_formula_says(name, monkeypatch):
    """Of batches of many sizes, and none; and on shapes without numbers the same."""
    model, data = MODELS[name]
    data = data()
    monkeypatch.setattr(checks, "Batches", lambda of, size, seed: PoissonBatches(of, 0.05, seed))
    monkeypatch.setattr(
        checks,
        "make",
        lambda key, comm, s: DPSGD(
            model(), CrossEntropy(), s.optimizer(), comm, s.seed, microbatches=2, rate=0.05
        ),
    )
    setting = checks.Setting(dataset=data, dtype="float32", steps=5)
    launch(lambda comm: checks.check_predictions(comm, name, setting), 3, LocalWorld())


def test_without_numbers_it_takes_as_long():
    """What ``simulate`` predicts of a GPT is what the step takes."""
    machine, data = Machine(), tokens(3, 70)

    def make(comm):
        model = gpt(70, context=3, width=16, layers=1, heads=2)
        return DPSGD(model, CrossEntropy(), SGD(0.1), comm, 0)

    def run(comm):
        method, start = make(comm), comm.time()
        cost = method.cost(Batches(data, 13)[0], machine)
        method.step(Batches(data, 13)[0])
        return comm.time() - start, cost.seconds

    (took, formula), *_ = launch(run, 2, LocalWorld(machine))
    simulated = simulate(make, Batches(data, 13), 2, machine, steps=1)
    assert simulated.step_seconds == pytest.approx(formula, rel=1e-9)
    assert took == pytest.approx(formula, rel=1e-9)


def test_noise_has_the_size_it_should_whatever_the_number_of_ranks():
    """σC/B in each number, drawn anew for each step and parameter, and added once."""
    names = ("1.weight", "1.bias")
    steps = [
        np.concatenate([noise_of(np.zeros(5000), 3, step, name) for name in names])
        for step in (0, 1)
    ]
    assert abs(steps[0].std() - 1) < 0.02 and abs(steps[0].mean()) < 0.03
    assert abs(np.corrcoef(steps[0], steps[1])[0, 1]) < 0.03
    assert abs(np.corrcoef(steps[0][:5000], steps[0][5000:])[0, 1]) < 0.04
    quiet = {ranks: train(ranks, 1, noise=0, sample_clip=0.5)[0][1] for ranks in (1, 3)}
    for ranks in (1, 3):
        loud = train(ranks, 1, noise=2.0, sample_clip=0.5)[0][1]
        for name in ("1.weight", "3.weight"):
            got = (quiet[ranks][name] - loud[name]) / 0.1  # the learning rate
            expected = 2.0 * 0.5 / (0.2 * 60) * noise_of(np.zeros(got.size), 3, 0, name)
            np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-9, atol=1e-12)


def test_no_sample_moves_the_sum_by_more_than_the_clip():
    """The batch with one sample more, without noise: the gradients differ by at most C/B."""
    data, moved = images(), []

    def run(comm):
        for more in range(5, 12):
            sums = []
            for count in (more, more + 1):
                method = DPSGD(
                    mlp(WIDTHS), CrossEntropy(), SGD(1.0), comm, sample_clip=0.3, noise=0
                )
                before = method.model.flat.data.copy()
                method.step(data.batch(np.arange(count)))
                sums.append((method.model.flat.data - before) * count)
            moved.append(np.linalg.norm(sums[1] - sums[0]))

    launch(run, 1, LocalWorld())
    assert max(moved) == pytest.approx(0.3, rel=1e-4)


def test_a_gradient_shorter_than_the_clip_stays_as_it_is():
    squares = np.array([0.0, 0.25, 4.0, 9.0])
    np.testing.assert_allclose(clip_factors(squares, 2.0), [1, 1, 1, 2 / 3])
    np.testing.assert_array_equal(clip_factors(squares, math.inf), 1)


def test_it_stops_before_the_budget_is_spent_also_after_a_load():
    noise, steps = 1.0, 6
    data, rate, delta = images(), 0.2, 1e-3
    spent = [epsilon_of(rate, noise, k, delta) for k in range(steps + 2)]

    def run(comm):
        def made():
            return DPSGD(
                mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm,
                rate=rate, noise=noise, epsilon=(spent[steps] + spent[steps + 1]) / 2, delta=delta,
            )  # fmt: skip

        batches, method = PoissonBatches(data, rate), made()
        for step in range(steps):
            if step == 3:
                saved, method = method.state(), made()
                method.load(saved)
            method.step(batches[step])
            assert method.epsilon_spent == pytest.approx(spent[step + 1], rel=1e-12)
        before = method.parameters()
        with pytest.raises(BudgetSpent, match=r"6 steps have spent ε = .* allowed"):
            method.step(batches[steps])
        assert gap(method.parameters(), before) == 0

    launch(run, 2, LocalWorld())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sample_clip": 0.0}, ValueError, "sample_clip must be positive, not 0.0"),
        ({"noise": -0.5}, ValueError, "the noise is -0.5"),
        ({"noise": math.inf}, ValueError, "the noise is inf"),
        ({"sample_clip": math.inf}, ValueError, "noise 1 times a sample_clip of infinity"),
        ({"rate": 1.5}, ValueError, "above 0 and at most 1, not 1.5"),
        ({"rate": 0.1, "epsilon": 0}, ValueError, "ε = 0 is not possible"),
        ({"rate": 0.1, "epsilon": 1, "delta": 0}, ValueError, "δ = 0: it must be a probability"),
        ({"epsilon": 1}, ValueError, "depends on the sampling rate"),
        (
            {"loss": CrossEntropy(ignore_index=-1)},
            ValueError,
            "depends on the targets of the batch",
        ),
        ({"model": "batch norm"}, NotBySample, "layer '1' is BatchNorm.* use LayerNorm"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(options, error, message):
    def run(comm):
        given = {"loss": CrossEntropy()} | options
        model = mlp(WIDTHS)
        if given.pop("model", None):
            model = Sequential(Linear(12, 9), BatchNorm(9), Linear(9, 5))
        loss = given.pop("loss")
        DPSGD(model, loss, SGD(0.1), comm, **given)

    with pytest.raises(error, match=message):
        launch(run, 2, LocalWorld())


def test_batches_that_were_not_drawn_so_are_refused():
    def run(comm):
        method = DPSGD(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm, rate=0.2)
        for batches in (Batches(images(), 12), PoissonBatches(images(), 0.1)):
            with pytest.raises(ValueError, match=r"with rate=0.2 was given .* PoissonBatches"):
                method.step(batches[0])
        unknown = DPSGD(mlp(WIDTHS), CrossEntropy(), SGD(0.1), comm)
        with pytest.raises(ValueError, match="ε is known for batches that are drawn"):
            unknown.epsilon_after(3)

    launch(run, 1, LocalWorld())


class Centred(Module):
    """Each sample less the mean of the batch: no op of it has a weight."""

    def forward(self, x):
        return x - x.mean(axis=0, keepdims=True)


class TimeFirst(Module):
    """(n, l) tokens with as many steps as samples, which no shape betrays."""

    def __init__(self):
        self.table, self.linear = Embedding(7, 5), Linear(5, 7)

    def forward(self, x):
        turned = self.linear(self.table(x).transpose(1, 0, 2))
        return turned.transpose(1, 0, 2)


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (lambda: Sequential(Flatten(), Linear(12, 9), Centred(), Linear(9, 5)), images,
         NotBySample, "has norm .* alone and .* in a batch of 6"),
        (lambda: Sequential(TimeFirst()), lambda: tokens(6), ShapeError,
         "the samples must be on its first axis"),
    ],
    ids=["mean of the batch", "time first"],
)  # fmt: skip
def test_a_model_that_mixes_samples_without_saying_so_is_found_at_the_first_step(
    model, data, error, message
):
    def run(comm):
        method = DPSGD(model(), CrossEntropy(), SGD(0.1), comm)
        method.step(data().batch(np.arange(6)))

    with pytest.raises(error, match=message):
        launch(run, 1, LocalWorld())


# Mutants: wrong versions, which the checks above must reject.


def noise_on_every_rank(monkeypatch):
    finish = AllReduce.finish

    def noisy(self):
        for name, part in self.model.flat.slices.items():
            self.model.flat.grad[part] += noise_of(self.model.flat.grad[part], 3, self.step, name)
        return finish(self)

    monkeypatch.setattr(AllReduce, "finish", noisy)
    monkeypatch.setattr(DPSGD, "add_noise", lambda self, expected: scaled(self, expected))


def scaled(self, expected):
    self.model.flat.grad[...] /= expected


def noise_of_another_rank(monkeypatch):
    drawn = iter(range(10**6))
    monkeypatch.setattr(
        dp_sgd, "noise_of", lambda like, seed, step, name: noise_of(like, next(drawn), step, name)
    )


def clipped_after_the_sum(monkeypatch):
    def late(squares, limit):
        return np.full_like(squares, min(1, limit / math.sqrt(squares.sum())))

    monkeypatch.setattr(dp_sgd, "clip_factors", late)


def clipped_layer_by_layer(monkeypatch):
    weighted = per_sample.Uses.weighted
    monkeypatch.setattr(dp_sgd, "clip_factors", lambda squares, limit: np.ones_like(squares))
    monkeypatch.setattr(
        per_sample.Uses,
        "weighted",
        lambda self, factors: weighted(self, clip_factors(self.squares(), 0.3)),
    )


def divided_by_this_batch(monkeypatch):
    monkeypatch.setattr(DPSGD, "expected", lambda self, batch: max(1, len(batch)))


def noise_scaled_by_the_batch(monkeypatch):
    monkeypatch.setattr(dp_sgd, "noise_of", lambda like, *key: noise_of(like, *key) / 12)


def checks_of_ranks():
    test_one_two_and_four_ranks_give_the_same_parameters()


def checks_of_noise():
    test_noise_has_the_size_it_should_whatever_the_number_of_ranks()


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (noise_on_every_rank, checks_of_ranks),
        (noise_of_another_rank, checks_of_ranks),
        (clipped_after_the_sum, test_no_sample_moves_the_sum_by_more_than_the_clip),
        (clipped_layer_by_layer, test_no_sample_moves_the_sum_by_more_than_the_clip),
        (divided_by_this_batch, checks_of_noise),
        (noise_scaled_by_the_batch, checks_of_noise),
    ],
)
def test_mutant_is_rejected(mutant, check, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check()
