"""Training as a whole: accumulated gradients, repeated runs, and models that learn."""

import numpy as np
import pytest

from minidist import models, nn, optim
from minidist.data import Augment, Batches, Dataset, characters, fashion_mnist
from minidist.engine import array
from minidist.engine.seeds import draws
from minidist.inspect import metrics


def train(model, data, steps, size, lr, parts=1, augment=None):
    """Parameters and losses after some steps of AdamW, each batch in ``parts`` microbatches."""
    loss, batches = nn.CrossEntropy(), Batches(data, size, seed=1, augment=augment)
    optimizer, losses = optim.AdamW(lr, exclude=("*bias",)), []
    optimizer.bind(model.flat.slices)
    for step in range(steps):
        batch = batches[step]
        model.zero_grad()
        total = 0.0
        for part in batch.microbatches(parts):
            with draws(0, step, part.positions):
                value = loss(model(part.inputs), part.targets, part.count(loss))
            value.backward()
            total += value.item()
        optim.clip_by_global_norm(model.flat.grad, 1.0)
        optimizer.step(model.flat.data, model.flat.grad)
        losses.append(total)
    return model.flat.data, losses


def part_of(data, count):
    return Dataset(data.name, data.inputs[:count], data.targets[:count], data.classes, data.prepare)


TEXT, _ = characters("to be, or not to be: that is the question. " * 20, length=16)
CASES = {
    "mlp": (lambda: models.mlp((784, 16, 10)), part_of(fashion_mnist()[0], 30)),
    "cnn": (lambda: models.cnn(2), part_of(fashion_mnist()[0], 30)),
    "gpt": (lambda: models.gpt(TEXT.classes, 16, 16, 2, 2, dropout=0.2), TEXT),
}


@pytest.mark.parametrize("parts", [2, 3, 12])  # 3 and 12 leave uneven and empty microbatches
@pytest.mark.parametrize("name", CASES)
def test_accumulated_gradients_equal_the_whole_batch(name, parts):
    make, data = CASES[name]
    augment = None if name == "gpt" else Augment()
    with array.defaults(dtype="float64"):
        expected, losses = train(make().init(0), data, 4, 10, 1e-2, augment=augment)
        got, parts_losses = train(make().init(0), data, 4, 10, 1e-2, parts, augment)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    print(f"{name} in {parts} parts: largest difference {error:.1e}")
    assert error < 1e-12
    np.testing.assert_allclose(parts_losses, losses, rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_repeated_run_is_the_same_to_the_last_bit(name):
    make, data = CASES[name]
    first, again = (train(make().init(0), data, 3, 10, 1e-2)[0] for _ in range(2))
    assert (first == again).all()


@pytest.mark.parametrize("name", CASES)
def test_learns_a_few_samples_by_heart(name):
    make, data = CASES[name]
    model = make().init(0)
    _, losses = train(model, data, 100, 30, 1e-2)
    print(f"{name}: {losses[0]:.2f} -> {losses[-1]:.3f}")
    assert losses[-1] < 0.3 * losses[0]


def test_an_mlp_on_fashion_mnist_passes_80_percent():
    train_data, test = fashion_mnist()
    model = models.mlp((784, 64, 10)).init(0)
    train(model, train_data, 200, 100, 3e-3)
    reached = metrics.accuracy(model, test)
    print(f"accuracy {reached:.3f}")
    assert reached > 0.80
