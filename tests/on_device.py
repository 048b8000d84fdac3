"""What must give on a device what it gives on the host: shared by the strict stand-in and GPUs.

Each ``check_...(device)`` runs once here and once there and compares. CPU-only machines run them
with ``device="strict"``, ``tests/gpu`` with ``device="cuda"``.
"""

import numpy as np
import pytest

from minidist import models, nn, ops, optim
from minidist.data import Augment, Batches, Dataset, characters, fashion_mnist
from minidist.engine import array as arrays
from minidist.engine.recompute import checkpoint
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor, defer_weight_gradients, no_grad
from minidist.inspect import metrics
from minidist.inspect.anomalies import AnomalyError, detect_anomaly
from minidist.optim import MixedPrecision
from tests.optim.test_optim import SLICES, start_and_grads

OPTIMIZERS = (
    *("GradientDescent", "SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop"),
    *("Adam", "AdamW", "LARS", "LAMB"),
)

TEXT, TEXT_TEST = characters("to be, or not to be: that is the question. " * 40, length=16)
IMAGES = fashion_mnist()[0]


def random_rows(*shape):
    draw = np.random.default_rng(0)
    return Dataset("rows", draw.standard_normal((40, *shape)), draw.integers(0, 5, 40), 5)


# name: (what makes the model, what it is trained on, how its inputs are changed at random)
MODELS = {
    "mlp": (lambda: models.mlp((784, 16, 10)), IMAGES, None),
    "cnn": (lambda: models.cnn(2), IMAGES, Augment()),
    "gpt": (lambda: models.gpt(TEXT.classes, 16, 16, 2, 2, dropout=0.2), TEXT, None),
    "norms and pools": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm(4), nn.SiLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.AvgPool2d(2, 1, 1), nn.Dropout(0.2),
            nn.Flatten(), nn.Linear(16, 5),
        ),
        random_rows(2, 4, 4),
        None,
    ),
    "grouped queries": (
        lambda: nn.Sequential(
            nn.Residual(nn.LayerNorm(8), nn.CausalSelfAttention(8, 4, 2, rotary=True)),
            nn.Residual(nn.RMSNorm(8), nn.Linear(8, 16), nn.GELU(exact=True), nn.Linear(16, 8)),
            nn.Tanh(), nn.Sigmoid(), nn.Flatten(), nn.Linear(24, 5),
        ),
        random_rows(3, 8),
        None,
    ),
}  # fmt: skip


def assert_near(got, expected, tolerance, name=""):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=name)


def assert_on_default_device(*held):
    for array in held:
        assert arrays.module_of(array) is arrays.module(), f"a {type(array)}"


def both(device, compute):
    """What ``compute()`` gives there and here, in float64."""
    for place in (device, "cpu"):
        with arrays.defaults(dtype="float64", device=place):
            yield compute()


def check_optimizer(device, name, mixed, tolerance=1e-10):
    start, grads = start_and_grads()

    def steps():
        optimizer = getattr(optim, name)(0.1)
        if mixed:
            optimizer = MixedPrecision(optimizer, dtype="float64")
        optimizer.bind(SLICES)
        data = arrays.to_device(start.copy())
        for host_grad in grads:
            grad = arrays.to_device(host_grad.copy())
            optim.clip_by_global_norm(grad, 1.0)
            optimizer.step(data, grad)
        assert_on_default_device(data, *optimizer.arrays())
        return arrays.to_host(data)

    there, here = both(device, steps)
    assert_near(there, here, tolerance, name)


def check_training(device, name, tolerance=1e-8):
    make, data, augment = MODELS[name]

    def train():
        model = make().init(0)
        optimizer, loss = optim.AdamW(1e-2, exclude=("*bias",)), nn.CrossEntropy()
        optimizer.bind(model.flat.slices)
        losses = []
        for step in range(4):
            batch = Batches(data, 6, augment=augment)[step]
            model.zero_grad()
            # Seven parts of six samples: one is empty, of which batch norm has no statistics.
            for part in batch.microbatches(3 if name == "norms and pools" else 7):
                with draws(0, step, part.positions):
                    value = loss(model(part.inputs), part.targets, part.count(loss))
                value.backward()
                losses.append(value.item())
            optimizer.step(model.flat.data, model.flat.grad)
        assert_on_default_device(model.flat.data, model.flat.grad, value.data)
        return losses, model.state()

    (losses_there, there), (losses_here, here) = both(device, train)
    assert_near(losses_there, losses_here, tolerance)
    for parameter, expected in here.items():
        assert_near(there[parameter], expected, tolerance, parameter)


def check_evaluation(device):
    """Sampling with a cache, accuracy and the confusion matrix."""

    def evaluate():
        gpt = models.gpt(TEXT.classes, 16, 16, 2, 2).init(0)
        gpt.flat.data *= 10  # far from uniform
        with arrays.defaults(device="cpu"):  # the model knows where it is
            written = models.sample(gpt, TEXT.encode("to be"), 20, 0.8, top_k=5)
        mlp, some = models.mlp((784, 10)).init(0), IMAGES.split(0.02)[1]
        loss = metrics.mean_loss(gpt, nn.CrossEntropy(), TEXT_TEST)
        return written, metrics.accuracy(mlp, some), metrics.confusion(mlp, some), loss

    for there, here in zip(*both(device, evaluate), strict=True):
        assert_near(there, here, 1e-9)


def check_mixed_precision(device):
    """float16 trains, in float16, and an overflow skips the step."""
    with arrays.defaults(device=device):
        model, losses = models.mlp((784, 16, 10)).init(0, dtype="float16"), []
        optimizer, loss = MixedPrecision(optim.Adam(3e-3)), nn.CrossEntropy()
        for _ in range(12):
            batch = Batches(IMAGES, 32)[0]
            model.zero_grad()
            logits = model(batch.inputs.astype("float16"))
            assert logits.dtype == np.float16
            value = loss(logits.astype("float32"), batch.targets)
            optimizer.backward(value)
            optimizer.step(model.flat.data, model.flat.grad)
            losses.append(value.item())
        assert losses[-1] < 0.7 * losses[0], losses
        before, scale = arrays.to_host(model.flat.data).copy(), optimizer.scale
        model.flat.grad[0] = np.inf
        optimizer.step(model.flat.data, model.flat.grad)
        assert optimizer.scale == scale / 2
        np.testing.assert_array_equal(arrays.to_host(model.flat.data), before)


def check_training_aids(device):
    """Recomputation, deferral, hooks and anomalies on the device."""

    def gradients(through, defer=False):
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)).init(0)
        x = Tensor(arrays.to_device(np.linspace(-1, 1, 12).reshape(3, 4)), requires_grad=True)
        seen = []
        x.register_hook(lambda grad: seen.append(arrays.to_host(grad)))
        y = (through(model, x) ** 2).sum()
        if defer:
            with defer_weight_gradients() as queue:
                y.backward()
            queue.run()
        else:
            y.backward()
        return arrays.to_host(model.flat.grad), seen[0]

    ways = (
        (lambda model, x: model(x), False),
        (checkpoint, False),
        (lambda model, x: model(x), True),
    )
    for way in ways:
        for there, here in zip(*both(device, lambda way=way: gradients(*way)), strict=True):
            assert_near(there, here, 1e-10)
    with arrays.defaults(device=device), no_grad(), detect_anomaly():
        zero = Tensor(arrays.to_device(np.zeros(2, np.float32)))
        with np.errstate(all="ignore"), pytest.raises(AnomalyError, match="2 infinite of 2"):
            ops.log(zero)


def train_gpt(device, steps=3):
    """A small GPT with dropout, trained in float32: its parameters."""
    with arrays.defaults(device=device):
        model, loss = models.gpt(TEXT.classes, 16, 32, 2, 2, dropout=0.1).init(0), nn.CrossEntropy()
        optimizer = optim.Adam(1e-2)
        for step in range(steps):
            batch = Batches(TEXT, 8)[step]
            model.zero_grad()
            with draws(0, step, batch.positions):
                loss(model(batch.inputs), batch.targets).backward()
            optim.clip_by_global_norm(model.flat.grad, 1.0)
            optimizer.step(model.flat.data, model.flat.grad)
    return model.state()


def check_clipping(device):
    """The norm stays on the device; the gradient is scaled, or left if the norm is small or NaN."""
    for values, factor in (([3.0, 4.0], 0.2), ([0.3, 0.4], 1.0), ([np.nan, 4.0], 1.0)):
        grad = arrays.to_device(np.array(values, np.float32), device)
        norm = optim.clip_by_global_norm(grad, 1.0)
        assert arrays.module_of(norm) is arrays.module(device)
        assert_near(float(norm), np.linalg.norm(values), 1e-6)
        assert_near(arrays.to_host(grad), np.array(values) * factor, 1e-6)
