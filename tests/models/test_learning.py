"""The engine learns real images: serial training of the shipped part of Fashion-MNIST."""

from __future__ import annotations

import pytest

from minidist.data import Batches, fashion_mnist
from minidist.inspect.metrics import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam


def trained_accuracy(optimizer, epochs=8):
    training, test = fashion_mnist()
    batches = Batches(training, 128, seed=0)
    model, loss = mlp().init(0), CrossEntropy()
    for step in range(epochs * batches.steps_per_epoch):
        batch = batches[step]
        model.zero_grad()
        loss(model(batch.inputs), batch.targets, batch.count(loss)).backward()
        optimizer.step(model.flat.data, model.flat.grad)
    return accuracy(model, test)


def test_mlp_reaches_84_percent_with_momentum():
    reached = trained_accuracy(SGD(0.05, momentum=0.9))
    assert reached >= 0.84, reached


@pytest.mark.slow
def test_mlp_reaches_84_percent_with_adam():
    reached = trained_accuracy(Adam(1e-3))
    assert reached >= 0.84, reached
