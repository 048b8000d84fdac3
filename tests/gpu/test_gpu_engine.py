"""Ops, layers and a training run on a real GPU equal those on the host."""

import numpy as np
import pytest
from cases import CASES, assert_same_on, run

from minidist import array as arrays
from minidist import models, nn, optim
from minidist.seeds import draws

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    try:
        arrays.module("cuda")
    except arrays.DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", CASES)
def test_every_op_gives_what_the_host_gives(name):
    assert_same_on("cuda", name, tolerance=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_promoted(name):
    for array in run(name, "cuda", "float32"):
        assert array.dtype == np.float32


def train(model, shape, device, steps=5):
    """The parameters after some steps of training, on the host."""
    model = model.init(0, dtype="float64", device=device)
    generator = np.random.default_rng(0)
    inputs = arrays.to_device(generator.standard_normal(shape), device)
    targets = arrays.to_device(generator.integers(0, 5, shape[0]), device)
    loss, optimizer = nn.CrossEntropy(), optim.Adam(1e-2)
    for step in range(steps):
        model.zero_grad()
        with draws(0, step):
            loss(model(inputs), targets).backward()
        optimizer.step(model.flat.data, model.flat.grad)
    return model.state()


MODELS = {
    "mlp": (lambda: models.mlp((12, 8, 5)), (6, 3, 4)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Dropout(0.2), nn.Flatten(), nn.Linear(16, 5),
        ),
        (6, 2, 4, 4),
    ),
    "transformer": (
        lambda: nn.Sequential(
            nn.Residual(nn.LayerNorm(8), nn.CausalSelfAttention(8, 4, 2, rotary=True)),
            nn.Residual(nn.RMSNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
            nn.Flatten(),
            nn.Linear(24, 5),
        ),
        (6, 3, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_training_gives_what_the_host_gives(name):
    make, shape = MODELS[name]
    there, here = train(make(), shape, "cuda"), train(make(), shape, "cpu")
    for parameter, expected in here.items():
        np.testing.assert_allclose(
            there[parameter], expected, rtol=1e-8, atol=1e-10, err_msg=parameter
        )
