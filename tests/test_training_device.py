"""Optimizers, models and data on a stand-in device that refuses to mix with NumPy."""

import numpy as np
import pytest

from minidist import array, metrics, models, nn, optim
from minidist.data import Augment, Batches, fashion_mnist, shakespeare
from tests.test_optim import SLICES, start_and_grads

strict = pytest.importorskip("strict")

OPTIMIZERS = (
    *("GradientDescent", "SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop"),
    *("Adam", "AdamW", "LARS", "LAMB"),
)


@pytest.fixture(autouse=True)
def strict_device(monkeypatch):
    monkeypatch.setitem(array.DEVICES, "strict", lambda: strict)


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_equals_the_host(name, mixed):
    start, grads = start_and_grads()
    ends = []
    for device in ("cpu", "strict"):
        optimizer = getattr(optim, name)(0.1)
        if mixed:
            optimizer = optim.MixedPrecision(optimizer, dtype="float64")
        optimizer.bind(SLICES)
        data = array.to_device(start.copy(), device)
        for host_grad in grads:
            grad = array.to_device(host_grad.copy(), device)
            optim.clip_by_global_norm(grad, 1.0)
            optimizer.step(data, grad)
        ends.append(array.to_host(data))
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-12)


def test_models_train_and_are_measured_there():
    cases = {
        "mlp": (models.mlp((784, 8, 10)), fashion_mnist()[0], None),
        "cnn": (models.cnn(2), fashion_mnist()[0], Augment()),
        "gpt": (models.gpt(63, 16, 16, 1, 2), shakespeare(16)[0], None),
    }
    for name, (model, data, augment) in cases.items():
        losses = []
        for device in ("cpu", "strict"):
            with array.defaults(device=device):
                model.init(0, device=device)
                optimizer = optim.AdamW(1e-2)
                for step in range(3):
                    batch = Batches(data, 8, augment=augment)[step]
                    model.zero_grad()
                    loss = nn.CrossEntropy()(model(batch.inputs), batch.targets, batch.count)
                    loss.backward()
                    optimizer.step(model.flat.data, model.flat.grad)
                losses.append(loss.item())
        print(f"{name}: {losses}")
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    with array.defaults(device="strict"):
        assert models.sample(model, [1, 2], 5).shape == (5,)
        mlp, test = models.mlp((784, 10)).init(0), fashion_mnist()[1]
        assert metrics.accuracy(mlp, test) == np.trace(metrics.confusion(mlp, test)) / 2000
