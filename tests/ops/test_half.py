"""float16: sums, shares and norms in float32, and what float16 cannot hold is refused."""

import numpy as np
import pytest

from minidist import Tensor, ops
from minidist.data import Dataset
from minidist.engine.kernels import wide
from minidist.inspect.metrics import mean_loss
from minidist.nn import BatchNorm, Linear, MeanSquaredError
from minidist.ops import DTypeError
from minidist.ops.matmul import column_sums
from minidist.optim import LARS, Adam
from minidist.parallel.gradient_compression import compressors


def half(*shape, value=0.3):
    return Tensor(np.full(shape, value, np.float16), requires_grad=True)


def normal(*shape, scale=1.0):
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float16)


LONG = {  # an op whose terms are added one after another, the result, the gradient of its input
    "std": (lambda x: x.std(), normal(100, scale=400)),
    "norm": (lambda x: x.norm(), normal(100, scale=3500)),
    "mean": (lambda x: x.mean() * 1024, half(99_999).data),
    "einsum": (lambda x: ops.einsum("ij->j", x).sum(), half(10_000, 1).data),
    "einsum of two": (lambda x: ops.einsum("ij,jk->ik", x, Tensor(x.data.T)), half(1, 9000).data),
    "average": (lambda x: ops.avg_pool2d(x, 3).sum(), np.full((1, 1, 3, 3), 3e4, np.float16)),
    "rows": (lambda x: ops.embedding(np.zeros(5000, int), x) * 0.1, half(2, 1).data),
    "elements": (lambda x: x[np.zeros(5000, int)] * 0.1, half(2).data),
    "squares": (  # whose share of 4e7 targets is 0 in float16
        lambda x: ops.mean_squared_error(x, np.zeros(9999, x.dtype), 4e7) * 3e4, half(9999).data
    ),
    "attention": (lambda x: ops.attention(x, x, x), normal(1, 2, 8, 64, scale=100)),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_float16_has_the_value_and_gradient_of_float64(name):
    op, values = LONG[name]
    found = []
    for dtype in ("float16", "float64"):
        x = Tensor(values.astype(dtype), requires_grad=True)
        y = op(x)
        y.backward(np.ones(y.shape))
        assert y.dtype == x.grad.dtype == dtype
        found.append((y.data.astype(float), x.grad.astype(float)))
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=4e-3, atol=1e-2 * np.abs(expected).max())


def test_a_bias_gets_the_sum_of_many_float16_rows():
    for rows in (1000, 3000):
        total = column_sums(np.full((rows, 2), 0.3, np.float16))
        assert total.dtype == np.float16
        np.testing.assert_allclose(total, rows * np.float64(np.float16(0.3)), rtol=5e-4)


def test_long_sums_of_float32_keep_their_digits():
    many = Tensor(np.full((200_000, 1), 0.1, np.float32), requires_grad=True)
    assert ops.einsum("ij->j", many).item() == pytest.approx(2e4, rel=1e-6)
    table = Tensor(np.zeros(2, np.float32), requires_grad=True)
    (table[np.zeros(200_000, int)] * 0.1).sum().backward()
    assert table.grad[0] == pytest.approx(2e4, rel=1e-6)


def test_numbers_beyond_float16_are_refused():
    for op in (lambda x: x / 100_000, lambda x: x * 1e5, lambda x: ops.where(x.data > 0, x, -1e9)):
        with pytest.raises(DTypeError, match=r"does not fit float16.* largest number is 65504"):
            op(half(2))


def test_running_averages_of_a_float16_model_are_float32():
    layer = BatchNorm(1).init(0, dtype="float16")
    layer(normal(50, 1, scale=3000))
    assert layer.variance.data.dtype == np.float32 and 1e5 < layer.variance.data[0] < np.inf


def test_the_loss_of_a_dataset_does_not_overflow():
    data = Dataset("large", np.ones((500, 1)), np.full((500, 1), 200.0))
    model = Linear(1, 1).init(0, dtype="float16")
    loss = mean_loss(lambda x: model(x.astype("float16")), MeanSquaredError(), data)
    assert loss == pytest.approx(40_000, rel=0.1)  # 500 of these are 2e7


def test_rules_that_divide_by_roots_of_squares_refuse_float16():
    """g² and ε are 0 in it: 0 / 0 for each g = 0, and steps without bound for small ones."""
    with pytest.raises(TypeError, match=r"Adam of float16 .*MixedPrecision\(Adam"):
        Adam().step(np.ones(2, np.float16), np.zeros(2, np.float16))


def test_lars_measures_float16_in_float32():
    data = np.full(4000, 10, np.float16)
    rule = LARS(1.0, momentum=0.0, trust=0.1)
    rule.bind({"weight": slice(0, 4000)})
    rule.step(data, np.full(4000, 10, np.float16))  # ‖w‖² is 400,000
    np.testing.assert_allclose(data, 9, rtol=1e-3)


@pytest.mark.parametrize("make", [compressors.Quantised, lambda: compressors.PowerSGD(2)])
def test_small_float16_gradients_can_be_compressed(make):
    grad = normal(40, scale=1e-4)
    compressor, got = make(), np.zeros(40, np.float16)
    compressor.start(grad, {"w": (8, 5)}, 0)
    compressor.decode(compressor.encode(grad.copy(), 0), got, 0)
    error = np.abs(wide(got) - wide(grad)).max() / np.abs(wide(grad)).max()
    assert error < (0.02 if make is compressors.Quantised else 0.9)
