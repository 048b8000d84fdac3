"""Numbers at the edge: infinite gradients, tails, half precision, long sums, integers.

The right values are PyTorch's, or follow from the definition, which is written beside each.
"""

import numpy as np
import pytest

from minidist import ops
from minidist.engine.tensor import Tensor
from minidist.ops import DTypeError


def gradient(function, values, upstream=1.0, dtype="float64"):
    """The gradient of ``function`` at ``values``."""
    x = Tensor(np.array(values, dtype), requires_grad=True)
    y = function(x)
    with np.errstate(all="ignore"):
        y.backward(
            np.ones(y.shape, dtype) if upstream is None else np.full(y.shape, upstream, dtype)
        )
    return x.grad


# What a mask drops is dropped, also if it is infinite (∞ · 0 is NaN).

MASKED = {
    "relu": (ops.relu, [0.0, 2.0], [0, 1]),
    "absolute": (ops.absolute, [0.0, -2.0], [0, -1]),
    "clip": (lambda x: ops.clip(x, -1, 1), [3.0, 0.5], [0, 1]),
    "where": (lambda x: ops.where(np.array([False, True]), x, 0.0), [1.0, 2.0], [0, 1]),
    "where, else": (lambda x: ops.where(np.array([True, False]), 0.0, x), [1.0, 2.0], [0, 1]),
    "maximum": (lambda x: ops.maximum(x, 1.0), [0.0, 2.0], [0, 1]),
    "minimum": (lambda x: ops.minimum(x, 1.0), [2.0, 0.0], [0, 1]),
    "max": (lambda x: x.max(), [0.0, 2.0], [0, 1]),
    "min": (lambda x: x.min(), [2.0, 0.0], [0, 1]),
    "max_pool2d": (
        lambda x: ops.max_pool2d(ops.broadcast_to(x.reshape(1, 1, 1, 2), (1, 1, 2, 2)), 2),
        [0.0, 2.0],
        [0, 1],
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_an_infinite_gradient_does_not_pass_a_mask(name):
    function, values, slope = MASKED[name]
    got = gradient(function, values, np.inf)
    expected = [np.inf * s if s else 0 for s in slope]
    np.testing.assert_array_equal(got, expected)


def test_sqrt_of_relu_at_0_has_gradient_0():
    np.testing.assert_array_equal(gradient(lambda x: ops.sqrt(ops.relu(x)), [0.0, 4.0]), [0, 0.25])


def test_ignored_targets_do_not_see_their_logits():
    logits = [[np.nan, 1.0], [2.0, 2.0]]

    def loss(z):
        return ops.cross_entropy(z, np.array([-100, 1]), ignore_index=-100)

    assert loss(Tensor(np.array(logits))).item() == pytest.approx(np.log(2))
    np.testing.assert_allclose(gradient(loss, logits), [[0, 0], [0.5, -0.5]])


# Tails


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_lower_tail_of_the_sigmoid_is_the_exponential(dtype):
    x = np.array([-25.0, -60.0, -80.0], dtype)
    np.testing.assert_allclose(ops.sigmoid(Tensor(x)).numpy(), np.exp(x), rtol=1e-6)
    np.testing.assert_allclose(ops.log(ops.sigmoid(Tensor(x))).numpy(), x, rtol=1e-6)
    np.testing.assert_allclose(gradient(ops.sigmoid, x, dtype=dtype), np.exp(x), rtol=1e-6)
    with np.errstate(all="raise", under="ignore"):
        assert ops.sigmoid(Tensor(np.array([-1e4, 0.0, 1e4], dtype))).tolist() == [0, 0.5, 1]


# Half precision: sums are made in float32


def test_half_precision_sums_do_not_overflow():
    many = Tensor(np.ones(100_000, np.float16))
    assert ops.mean_squared_error(many, np.zeros(100_000, np.float16)).item() == 1
    assert many.mean().item() == 1
    assert many.var().item() == 0
    large = np.full(4, 300.0, np.float16)  # whose squares are over 65504
    assert ops.mean_squared_error(Tensor(large), large * 0, count=400).item() == 900
    rows = Tensor(np.full((5000, 2), 0.25, np.float16))
    np.testing.assert_array_equal(ops.sum(rows, axis=0).numpy(), 1250)
    np.testing.assert_allclose(
        ops.softmax(Tensor(np.zeros(100_000, np.float16))).numpy(), 1e-5, 1e-2
    )
    wide = ops.layer_norm(
        Tensor(np.tile(np.array([[200.0, -200.0]], np.float16), 1000)),
        *(Tensor(np.full(2000, value, np.float16)) for value in (1, 0)),
    )
    np.testing.assert_allclose(wide.numpy()[0, :2], [1, -1])


def test_of_many_ties_in_half_precision_each_gets_its_share():
    grad = gradient(lambda x: x.max(), np.zeros(70_000), 60_000, "float16")
    np.testing.assert_allclose(grad, 60_000 / 70_000, rtol=1e-3)


# Long sums in single precision

LONG = 300_000


def sums():
    tall = Tensor(np.full((LONG, 2), 0.1, np.float32), requires_grad=True)
    bias = Tensor(np.zeros(2, np.float32), requires_grad=True)
    weight = Tensor(np.eye(2, dtype=np.float32), requires_grad=True)
    yield "sum", ops.sum(tall, axis=0).numpy(), 0.1 * LONG
    yield "mean", ops.mean(tall, axis=0).numpy(), 0.1
    up = np.full((LONG, 2), 0.1, np.float32)
    (tall.detach() + bias).backward(up)
    yield "broadcast bias", bias.grad, 0.1 * LONG
    bias.grad = None
    ops.linear(tall.detach(), weight, bias).backward(up)
    yield "linear's bias", bias.grad, 0.1 * LONG
    x = np.array([[1, -1], [-1, 1]] * (LONG // 2), np.float32)
    shift, scale = (Tensor(np.array(v, np.float32), requires_grad=True) for v in ([0, 0], [1, 1]))
    ops.layer_norm(Tensor(x), scale, shift).backward(x * np.float32(0.1))
    yield "layer norm's weight", scale.grad, 0.1 * LONG / np.sqrt(1 + 1e-5)
    normed, *_ = ops.batch_norm(Tensor(x), scale, shift)
    scale.grad = None
    normed.backward(x * np.float32(0.1))
    yield "batch norm's weight", scale.grad, 0.1 * LONG / np.sqrt(1 + 1e-5)


def test_sums_of_many_rows_keep_their_digits():
    for name, got, expected in sums():
        np.testing.assert_allclose(got, expected, rtol=5e-6, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_numbers_vary_by_nothing(dtype):
    row = np.full((3, 100), 1e5 / 3, dtype)  # whose rounded mean is another number
    ones, zeros = (Tensor(np.full(100, value, dtype)) for value in (1, 0))
    np.testing.assert_array_equal(ops.layer_norm(Tensor(row), ones, zeros).numpy(), 0)
    np.testing.assert_array_equal(ops.var(Tensor(row), axis=1).numpy(), 0)
    normed, *_ = ops.batch_norm(Tensor(row), ones, zeros)
    np.testing.assert_array_equal(normed.numpy(), 0)


# Integers, by PyTorch's rules: float functions make the default dtype of them, never float64

INTS = np.array([1, 2, 4])


@pytest.mark.parametrize(
    "function",
    [
        *(ops.exp, ops.log, ops.sqrt, ops.tanh, ops.sigmoid, ops.silu, ops.gelu, ops.erf),
        *(lambda x: x / 2, lambda x: x / x, lambda x: x * 1.5, lambda x: 1.5 + x),
        *(lambda x: x**0.5, lambda x: 2.0**x, lambda x: x - np.float64(0.5)),
        lambda x: x + [0.5],  # noqa: RUF005 (an addition)
        *(lambda x: ops.maximum(x, 1.5), lambda x: ops.clip(x, 0.5, 3.5)),
        *(lambda x: x * Tensor(np.float32([2])), lambda x: ops.where(x > 1, x, 0.5)),
        lambda x: ops.concatenate([x, Tensor(np.float32([2]))]),
        lambda x: ops.stack([Tensor(np.float32([1, 2, 3])), x]),
    ],
)
def test_integers_become_float32(function):
    got = function(Tensor(INTS)).numpy()
    assert got.dtype == np.float32
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(got, function(Tensor(INTS.astype("float64"))).numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "function", [lambda x: x**2, lambda x: x + 1, lambda x: x * x, ops.relu, abs]
)
def test_integers_stay_integers(function):
    got = function(Tensor(INTS)).numpy()
    assert got.dtype == INTS.dtype
    np.testing.assert_array_equal(got, function(Tensor(INTS.astype("float64"))).numpy())


REFUSED = {
    "mean": lambda x: x.mean(),
    "var": lambda x: x.var(),
    "logsumexp": lambda x: x.logsumexp(),
    "softmax": ops.softmax,
    "log_softmax": ops.log_softmax,
    "power": lambda x: x**-1,
    "matmul": lambda x: x.reshape(1, 3) @ Tensor(np.ones((3, 1), np.float32)),
    "cross_entropy": lambda x: ops.cross_entropy(x.reshape(1, 3), np.array([0])),
    "binary_cross_entropy": lambda x: ops.binary_cross_entropy(x, x),
    "max_pool2d": lambda x: ops.max_pool2d(x.reshape(1, 1, 1, 3), 1),
    "avg_pool2d": lambda x: ops.avg_pool2d(x.reshape(1, 1, 1, 3), 1),
    "attention": lambda x: ops.attention(*(x.reshape(1, 1, 1, 3),) * 3),
    "dropout": lambda x: ops.dropout(x, 0.5, "d"),
    "rotary": lambda x: ops.rotary(x.reshape(1, 3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_fractions_refuses_integers_by_name(name):
    with pytest.raises(DTypeError, match=f"^{name}: .*int64"):
        REFUSED[name](Tensor(INTS))


def test_powers_of_0():
    np.testing.assert_array_equal(gradient(lambda x: x**0, [0.0, 3.0]), [0, 0])
    np.testing.assert_array_equal(gradient(lambda x: x**1, [0.0, 3.0]), [1, 1])


def test_layers_of_width_0():
    """A product over nothing is 0: PyTorch's Linear(0, n) gives the bias."""
    x, weight = Tensor(np.ones((2, 0))), Tensor(np.ones((0, 3)), requires_grad=True)
    bias = Tensor(np.arange(3.0), requires_grad=True)
    y = ops.linear(x, weight, bias)
    np.testing.assert_array_equal(y.numpy(), [[0, 1, 2]] * 2)
    y.backward(np.ones((2, 3)))
    assert weight.grad.shape == (0, 3)
    np.testing.assert_array_equal(bias.grad, 2)
    out = ops.linear(Tensor(np.ones((2, 3))), Tensor(np.ones((3, 0))), Tensor(np.ones(0)))
    assert out.shape == (2, 0)
    assert ops.matmul(Tensor(np.ones((2, 0))), Tensor(np.ones((0, 2)))).tolist() == [[0, 0]] * 2
    assert ops.softmax(Tensor(np.ones((2, 0)))).shape == (2, 0)


def test_stable_logarithms():
    x = np.array([-200.0, -25, 0, 25, 200])
    np.testing.assert_allclose(ops.log_sigmoid(Tensor(x)).numpy(), -np.logaddexp(0, -x))
    np.testing.assert_allclose(ops.softplus(Tensor(x)).numpy(), np.logaddexp(0, x))
    assert ops.log1p(Tensor(np.array([1e-20]))).item() == 1e-20


def test_where_a_root_is_0_its_slope_is_0():
    np.testing.assert_array_equal(gradient(lambda x: x.norm(), [0.0, 0.0]), 0)
    np.testing.assert_array_equal(gradient(lambda x: x.std(), [2.0, 2.0]), 0)


def test_powers_of_tensors_at_0():
    """0⁰ is 1, whose slope in the base is 0; x^y log x goes to 0."""
    x = Tensor(np.array([0.0, 0.0, 2.0]), requires_grad=True)
    y = Tensor(np.array([0.0, 3.0, 3.0]), requires_grad=True)
    with np.errstate(all="ignore"):
        (x**y).backward(np.ones(3))
    np.testing.assert_array_equal(x.grad, [0, 0, 12])
    np.testing.assert_allclose(y.grad, [0, 0, 8 * np.log(2)])
