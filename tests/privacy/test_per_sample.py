"""The gradient of each sample equals that of the sample alone, for every layer and any sharing."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import nn, ops
from minidist.data import Dataset
from minidist.engine import draws
from minidist.engine.array import defaults
from minidist.models import cnn, gpt, mlp
from minidist.nn import CrossEntropy
from minidist.privacy import per_sample_gradients
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


def test_norms_of_sequences_are_found_without_gradients_where_that_takes_less():
    """2T² numbers against i · o: T = 2 and 40 · 7, but not T = 6 and 5 · 7."""
    ghosts = {}
    for name in ("sequence", "short sequence"):
        make, data = CASES[name]
        model, batch = make().init(0), data.batch(range(N))
        uses = backward_by_sample(loss_of_samples(CrossEntropy(), model(batch.inputs), batch), N)
        ghosts[name] = [uses[key].dense is None for key in ("0.weight", "1.weight")]
    assert ghosts == {"sequence": [False, False], "short sequence": [True, True]}
