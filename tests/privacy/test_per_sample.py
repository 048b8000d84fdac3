"""The gradient of each sample equals that of the sample alone, for every layer and any sharing."""

from __future__ import annotations

import numpy as np
import pytest
import strict

from minidist import nn, ops
from minidist.data import Dataset
from minidist.engine import array as arrays
from minidist.engine import draws
from minidist.engine.array import defaults
from minidist.models import cnn, gpt, mlp
from minidist.nn import CrossEntropy
from minidist.privacy import NotBySample, per_sample, per_sample_gradients
from minidist.privacy.outer import gram
from minidist.privacy.per_sample import backward_by_sample, loss_of_samples

N = 4


def tokens(length, vocabulary=7):
    draw = np.random.default_rng(1)
    text = draw.integers(0, vocabulary, (N, length + 1))
    return Dataset("tokens", text[:, :-1], text[:, 1:], vocabulary)


def images(*shape, classes=3):
    draw = np.random.default_rng(2)
    return Dataset(
        "images", draw.standard_normal((N, *shape)), draw.integers(0, classes, N), classes
    )


class Pooled(nn.Module):
    """(n, c, ...) → (n, c): the mean over all places."""

    def forward(self, x):
        return ops.mean(x, axis=tuple(range(2, len(x.shape))))


class AtBothEnds(nn.Module):
    """One weight used four times: as it is, transposed once and twice, and a part of it."""

    def __init__(self):
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        x = ops.linear(self.linear(x), ops.transpose(self.linear.weight))
        x = ops.linear(x, ops.transpose(ops.swapaxes(self.linear.weight, 0, 1)))
        return x + self.linear.weight[1:2, 0:3].reshape(3, 1)[1]


CASES = {
    "linear": (lambda: mlp((6, 5, 3)), images(2, 3)),
    "sequence": (lambda: nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7)), tokens(6)),
    "short sequence": (lambda: nn.Sequential(nn.Embedding(7, 40), nn.Linear(40, 7)), tokens(2)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 6, 3, stride=2, groups=2), Pooled(), nn.Linear(6, 3)),
        images(2, 9),
    ),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, (3, 2), stride=(1, 2), padding=1, dilation=(1, 2)),
            nn.Conv2d(6, 4, 3, groups=2, bias=False),
            Pooled(),
            nn.Linear(4, 3),
        ),
        images(2, 7, 8),
    ),
    "norms": (
        lambda: nn.Sequential(nn.Embedding(7, 5), nn.LayerNorm(5), nn.RMSNorm(5), nn.Linear(5, 7)),
        tokens(6),
    ),
    "shared": (lambda: nn.Sequential(AtBothEnds(), nn.Linear(5, 3)), images(5)),
    "cnn": (lambda: cnn(2, classes=3, size=8, hidden=5), images(8, 8)),
    "gpt": (lambda: gpt(7, context=6, width=8, layers=2, heads=2), tokens(6)),
    "wide gpt": (lambda: gpt(70, context=3, width=16, layers=1, heads=2), tokens(3, 70)),
    "gpt, recomputing": (
        lambda: gpt(7, context=9, width=8, layers=1, heads=2, recompute_attention=True),
        tokens(3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_each_sample_is_that_of_the_sample_alone(name):
    make, data = CASES[name]
    with defaults(dtype="float64"), draws(0, 0):
        model, loss = make().init(3), CrossEntropy()
        got = per_sample_gradients(model, loss, data.batch(range(N)))
        assert not model.flat.grad.any(), "nothing is added to the gradients"
        total = loss_of_samples(loss, model(data.batch(range(N)).inputs), data.batch(range(N)))
        uses = backward_by_sample(total, N)
        assert list(got) and got.keys() == model.trained().keys()
        factors = np.random.default_rng(5).random(N)
        weighted = dict.fromkeys(got, 0)
        for k in range(N):
            model.zero_grad()
            alone = data.batch([k])
            loss(model(alone.inputs), alone.targets).backward()
            for key, parameter in model.named_parameters().items():
                expected = parameter.grad
                np.testing.assert_allclose(got[key][k], expected, rtol=1e-10, atol=1e-13)
                square = uses[key].squares()[k]
                np.testing.assert_allclose(square, (expected**2).sum(), rtol=1e-10, atol=1e-15)
                weighted[key] = weighted[key] + factors[k] * expected
        for key, expected in weighted.items():
            got_sum = uses[key].weighted(factors)
            np.testing.assert_allclose(got_sum, expected, rtol=1e-10, atol=1e-13)


def test_products_of_all_pairs_of_rows_are_those_of_rows_written_out():
    """Integers stand for rows (0, ..., 1, ..., 0), on either side."""
    draw = np.random.default_rng(4)
    places, rows, others = (
        draw.integers(0, 5, (N, 3)), draw.random((N, 2, 5)), draw.integers(0, 5, (N, 2)),
    )  # fmt: skip
    for x, y in ((places, rows), (rows, places), (rows, rows), (places, others)):
        full = [np.eye(5)[one] if one.dtype.kind == "i" else one for one in (x, y)]
        np.testing.assert_allclose(gram(x, y), np.einsum("nti,nsi->nts", *full))


def test_norms_of_sequences_are_found_without_gradients_where_that_takes_less():
    """2T² numbers against i · o: T = 2 and 40 · 7, but not T = 6 and 5 · 7."""
    ghosts = {}
    for name in ("sequence", "short sequence"):
        make, data = CASES[name]
        model, batch = make().init(0), data.batch(range(N))
        uses = backward_by_sample(loss_of_samples(CrossEntropy(), model(batch.inputs), batch), N)
        ghosts[name] = [uses[key].dense is None for key in ("0.weight", "1.weight")]
    assert ghosts == {"sequence": [False, False], "short sequence": [True, True]}


@pytest.mark.parametrize("name", ["short sequence", "cnn", "shared"])
def test_a_device_that_refuses_to_mix_with_numpy_gives_what_the_host_gives(name, monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    make, data = CASES[name]
    found = []
    for device in ("cpu", "strict"):
        with defaults(dtype="float64", device=device), draws(0, 0):
            model, batch = make().init(3), data.batch(range(N))
            total = loss_of_samples(CrossEntropy(), model(batch.inputs), batch)
            uses = backward_by_sample(total, N)
            factors = arrays.to_device(np.arange(1.0, N + 1))
            each = per_sample_gradients(model, CrossEntropy(), batch)
            found.append(
                {
                    key: [
                        arrays.to_host(one)
                        for one in (each[key], use.squares(), use.weighted(factors))
                    ]
                    for key, use in uses.items()
                }
            )
    for key, expected in found[0].items():
        for one, other in zip(found[1][key], expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


# What cannot be told apart is refused, by name.


class Scaled(nn.Module):
    """x · w: an op that has no gradients by sample."""

    def __init__(self):
        self.weight = nn.Parameter((3,), lambda draw, shape: draw.random(shape))

    def forward(self, x):
        return x * self.weight


class Indexed(nn.Module):
    """Reads an element of a weight twice."""

    def __init__(self):
        self.weight = nn.Parameter((3,), lambda draw, shape: draw.random(shape))

    def forward(self, x):
        return x + self.weight[np.array([0, 0, 1])]


class TimeFirst(nn.Module):
    """(n, l) tokens → (l, n, width): the samples are on the second axis."""

    def __init__(self):
        self.table, self.linear = nn.Embedding(7, 5), nn.Linear(5, 7)

    def forward(self, x):
        return ops.transpose(self.linear(ops.transpose(self.table(x), 1, 0, 2)), 1, 0, 2)


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 3), Scaled()), images(5), NotBySample,
         "the op multiply cannot tell the samples apart in the gradient of 1.weight"),
        (lambda: nn.Sequential(nn.Linear(5, 3), Indexed()), images(5), NotBySample,
         "1.weight: an index reads an element of it more than once"),
        (lambda: nn.Sequential(TimeFirst()), tokens(6), ops.ShapeError,
         r"linear: the gradient of each of 4 samples .* shape \(6, 4, 5\)"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm(2), Pooled()), images(1, 5, 5),
         NotBySample, "layer '1' is BatchNorm.2., which computes each sample from all others"),
    ],
    ids=["multiply", "index", "time first", "batch norm"],
)  # fmt: skip
def test_what_cannot_be_told_apart_is_refused(model, data, error, message):
    with pytest.raises(error, match=message):
        per_sample_gradients(model().init(0), CrossEntropy(), data.batch(range(N)))


def test_a_loss_that_divides_by_what_the_targets_say_is_refused():
    with pytest.raises(ValueError, match="use a loss without ignore_index and weight"):
        per_sample_gradients(
            mlp((5, 3)).init(0), CrossEntropy(weight=[1, 2, 3]), images(5).batch(range(N))
        )


# Mutants of the norms of weights that are used several times.


def uses_of_a_shared_weight_counted_apart(monkeypatch):
    def squares(self):
        return sum(use.inner(use) for use in self.uses)

    monkeypatch.setattr(per_sample.Uses, "squares", squares)


def table_not_transposed(monkeypatch):
    monkeypatch.setattr(per_sample.Outer, "transposed", property(lambda self: self))


@pytest.mark.parametrize("mutant", [uses_of_a_shared_weight_counted_apart, table_not_transposed])
def test_mutant_is_rejected(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        test_the_gradient_of_each_sample_is_that_of_the_sample_alone("wide gpt")
