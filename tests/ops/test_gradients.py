"""Every op's backward equals numeric gradients in float64, over drawn shapes with broadcasting."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

from minidist import ops
from minidist.engine.gradcheck import gradcheck
from minidist.engine.seeds import draws, generator
from minidist.engine.tensor import Tensor
from tests.examples import examples

quick = examples(12)
SEEDS = st.integers(0, 2**16)


def normal(seed, *shape):
    return generator(seed, "test", shape).standard_normal(shape)


def positive(seed, *shape):
    return np.abs(normal(seed, *shape)) + 0.5


def distinct(seed, *shape):
    """Values well apart, so that a maximum does not change hands within a numeric step."""
    size = int(np.prod(shape))
    return (generator(seed, "distinct").permutation(size) - size / 2 + 0.25).reshape(shape) * 0.1


UNARY = {
    "negative": (ops.negative, normal),
    "exp": (ops.exp, normal),
    "log": (ops.log, positive),
    "sqrt": (ops.sqrt, positive),
    "absolute": (ops.absolute, distinct),
    "clip": (lambda x: ops.clip(x, -0.31, 0.42), distinct),
    "clip below": (lambda x: ops.clip(x, low=0.01), distinct),
    "square": (lambda x: x**2, normal),
    "power": (lambda x: x**-1.5, positive),
    "tanh": (ops.tanh, normal),
    "sigmoid": (ops.sigmoid, normal),
    "relu": (ops.relu, distinct),
    "silu": (ops.silu, normal),
    "gelu": (ops.gelu, normal),
    "gelu exact": (lambda x: ops.gelu(x, exact=True), normal),
    "erf": (ops.erf, normal),
    "reflected": (lambda x: 2.0 - x + 3.0 / x - (4.0 * x) + (1.0 + x), positive),
    "x + x": (lambda x: x + x, normal),
    "flatten": (lambda x: ops.flatten(x), normal),
    "transpose": (lambda x: x.transpose() * 2.0, normal),
    "T": (lambda x: x.T * x.T, normal),
}


@pytest.mark.parametrize("name", UNARY)
@quick
@given(shape=array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3), seed=SEEDS)
def test_functions_of_one_tensor(name, shape, seed):
    function, draw = UNARY[name]
    gradcheck(function, draw(seed, *shape))


BINARY = {
    "add": (ops.add, normal),
    "subtract": (ops.subtract, normal),
    "multiply": (ops.multiply, normal),
    "divide": (ops.divide, positive),
    "maximum": (ops.maximum, normal),
    "minimum": (ops.minimum, normal),
    "where": (lambda x, y: ops.where(np.array(True), x, y) + ops.where(False, x, y), normal),
}


@pytest.mark.parametrize("name", BINARY)
@quick
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3), seed=SEEDS)
def test_functions_of_two_tensors_broadcast(name, shapes, seed):
    function, draw = BINARY[name]
    x, y = shapes.input_shapes
    gradcheck(function, draw(seed, *x), draw(seed + 1, *y))


@quick
@given(shapes=mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3), seed=SEEDS)
def test_where_broadcasts_its_condition_too(shapes, seed):
    mask, x, y = shapes.input_shapes
    condition = normal(seed + 2, *mask) > 0
    gradcheck(lambda x, y: ops.where(condition, x, y), normal(seed, *x), normal(seed + 1, *y))


REDUCTIONS = {
    "sum": (ops.sum, normal),
    "mean": (ops.mean, normal),
    "var": (ops.var, normal),
    "max": (ops.max, distinct),
    "min": (ops.min, distinct),
    "logsumexp": (ops.logsumexp, normal),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@quick
@given(
    shape=array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=4),
    data=st.data(),
    keepdims=st.booleans(),
    seed=SEEDS,
)
def test_reductions_over_any_axes(name, shape, data, keepdims, seed):
    function, draw = REDUCTIONS[name]
    choices = [st.none()]
    if shape:
        axis = st.integers(-len(shape), len(shape) - 1)
        choices.append(axis)
        choices.append(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1).map(tuple))
    axis = data.draw(st.one_of(*choices))
    x = draw(seed, *shape)
    gradcheck(lambda x: function(x, axis=axis, keepdims=keepdims), x, tolerance=1e-5)
    expected = {
        "logsumexp": lambda x, axis, keepdims: np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))
    }.get(name, getattr(np, name, None))
    got = function(Tensor(x), axis=axis, keepdims=keepdims).data
    np.testing.assert_allclose(got, expected(x, axis=axis, keepdims=keepdims), atol=1e-13)


@quick
@given(
    shapes=mutually_broadcastable_shapes(signature="(n,k),(k,m)->(n,m)", max_dims=2, max_side=3),
    seed=SEEDS,
)
def test_matmul_of_stacks(shapes, seed):
    x, y = shapes.input_shapes
    gradcheck(ops.matmul, normal(seed, *x), normal(seed + 1, *y))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3), (0, 3)])
def test_linear(shape):
    gradcheck(ops.linear, normal(0, *shape), normal(1, 3, 5), normal(2, 5))
    gradcheck(ops.linear, normal(0, *shape), normal(1, 3, 5))


SHAPES = {
    "reshape": lambda x: ops.reshape(x, 4, -1),
    "reshape tuple": lambda x: x.reshape((3, 8)),
    "transpose": lambda x: ops.transpose(x, 2, 0, 1),
    "swapaxes": lambda x: x.swapaxes(0, -1),
    "broadcast_to": lambda x: ops.broadcast_to(x[:, :1], (3, 2, 5, 4)),
    "squeeze": lambda x: ops.squeeze(x[:, :1], 1),
    "expand_dims": lambda x: x.expand_dims((0, 2)),
    "concatenate": lambda x: ops.concatenate([x, x[:1], x * 2.0], axis=0),
    "concatenate last": lambda x: ops.concatenate([x, x[:, :, :1]], axis=-1),
    "stack": lambda x: ops.stack([x, x * 3.0], axis=1),
    "stack last": lambda x: ops.stack([x, x * 3.0], axis=-1),
    "split": lambda x: ops.split(x, 2, axis=-1)[0] * ops.split(x, 2, axis=-1)[1],
    "split uneven": lambda x: ops.split(x, (1, 0, 3), axis=2)[2],
    "pad": lambda x: ops.pad(x, [(1, 0), (0, 2), (1, 1)], value=2.0),
    "slice": lambda x: x[1:, ::-1, ::2],
    "integer": lambda x: x[1, -1],
    "ellipsis": lambda x: x[..., None, 1],
    "boolean": lambda x: x[np.array([True, False])],
    "repeated rows": lambda x: x[np.array([0, 1, 1, 0, 1])],
    "two arrays": lambda x: x[np.array([0, 0, 1]), :, np.array([3, 3, 1])],
}


@pytest.mark.parametrize("name", SHAPES)
def test_moving_elements_about(name):
    gradcheck(SHAPES[name], normal(0, 2, 3, 4))


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("function", [ops.softmax, ops.log_softmax])
def test_softmax(function, axis):
    gradcheck(lambda x: function(x, axis=axis), normal(0, 3, 4, 2))
    huge = function(Tensor(np.array([[1e4, 0.0, -1e4]])), axis=-1).data
    assert np.isfinite(huge).all(), huge


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [None, 2, -100])
@pytest.mark.parametrize("count", [None, 7])
def test_cross_entropy(smoothing, ignored, count):
    targets = np.array([[0, 1, 2], [2, 3, 3]])
    if ignored == -100:
        targets[0, 1] = -100
    gradcheck(
        lambda z: ops.cross_entropy(z, targets, count, ignored, smoothing), normal(0, 2, 3, 4)
    )


def test_cross_entropy_equals_its_definition():
    z, targets, smoothing = normal(0, 5, 4), np.array([0, -1, 3, -1, 2]), 0.2
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    wanted = np.full((5, 4), smoothing / 4)
    wanted[np.arange(5), targets] += 1 - smoothing
    expected = -(wanted * log_p)[targets >= 0].sum() / 3  # three targets count
    got = ops.cross_entropy(Tensor(z), targets, None, -1, smoothing).item()
    assert got == pytest.approx(expected, rel=1e-14)


def test_other_losses():
    targets = positive(3, 2, 3)
    for count in (None, 5):
        gradcheck(lambda x: ops.mean_squared_error(x, targets, count), normal(0, 2, 3))  # noqa: B023
        gradcheck(
            lambda x: ops.binary_cross_entropy(x, targets / 4, count),  # noqa: B023
            normal(0, 2, 3),
        )
    gradcheck(ops.mean_squared_error, normal(0, 2, 3), targets)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4), (3, 1)])
def test_normalization_over_the_last_axis(shape):
    width = shape[-1:]
    x, w, b = normal(0, *shape), normal(1, *width), normal(2, *width)
    gradcheck(ops.layer_norm, x, w, b, tolerance=1e-5)
    gradcheck(lambda x, w: ops.layer_norm(x, w, None), x, w, tolerance=1e-5)
    gradcheck(ops.rms_norm, x, w, tolerance=1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 2, 2), (4, 2, 3)])
def test_batch_norm(shape):
    x, w, b = normal(0, *shape), normal(1, shape[1]), normal(2, shape[1])
    gradcheck(lambda *a: ops.batch_norm(*a)[0], x, w, b, tolerance=1e-5)
    fixed = normal(3, shape[1]), positive(4, shape[1])
    gradcheck(lambda *a: ops.batch_norm(*a, fixed)[0], x, w, b, tolerance=1e-5)


def test_dropout_and_embedding():
    def dropped(x):
        with draws(seed=3, step=1):
            return ops.dropout(x, 0.4, "layer")

    gradcheck(dropped, normal(0, 4, 3, 5))
    gradcheck(dropped, normal(0, 2, 0))
    for indices in ([[0, 2, 2], [2, 0, 4]], [[]], 3):
        table = np.array(indices, dtype=np.int32)
        gradcheck(lambda w: ops.embedding(table, w), normal(0, 5, 3))  # noqa: B023


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads, groups", [(1, 1), (4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("length, keys", [(1, 1), (3, 3), (5, 5), (2, 5)])
def test_attention(monkeypatch, causal, heads, groups, length, keys):
    monkeypatch.setattr(
        sys.modules["minidist.ops.blockwise_attention"], "BLOCK", 2
    )  # so that there are many blocks
    q, k, v = (normal(i, 2, g, n, 2) for i, (g, n) in
               enumerate([(heads, length), (groups, keys), (groups, keys)]))  # fmt: skip
    gradcheck(lambda q, k, v: ops.attention(q, k, v, causal), q, k, v)


@pytest.mark.parametrize("base", [None, 100.0])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_packed_attention_equals_its_parts(monkeypatch, groups, base):
    monkeypatch.setattr(sys.modules["minidist.ops.blockwise_attention"], "BLOCK", 2)
    qkv = normal(0, 2, 5, (4 + 2 * groups) * 2)
    gradcheck(lambda x: ops.self_attention(x, 4, groups, base), qkv)

    parts = Tensor(qkv).reshape(2, 5, -1, 2).transpose(0, 2, 1, 3)
    q, k, v = ops.split(parts, (4, groups, groups), axis=1)
    if base:
        q, k = ops.rotary(q, base), ops.rotary(k, base)
    expected = ops.attention(q, k, v).transpose(0, 2, 1, 3).reshape(2, 5, 8).data
    np.testing.assert_allclose(
        ops.self_attention(Tensor(qkv), 4, groups, base).data, expected, rtol=1e-13
    )


def test_attention_equals_its_definition():
    q, k, v = normal(0, 2, 4, 100, 3), normal(1, 2, 2, 130, 3), normal(2, 2, 2, 130, 3)
    got = ops.attention(Tensor(q), Tensor(k), Tensor(v)).data
    for head in range(4):
        scores = q[:, head] @ k[:, head // 2].swapaxes(1, 2) / np.sqrt(3)
        hidden = np.arange(130)[None, :] > np.arange(100)[:, None] + 30
        scores = np.where(hidden, -np.inf, scores)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        np.testing.assert_allclose(got[:, head], p @ v[:, head // 2], rtol=1e-12, atol=1e-14)


def test_rotary_depends_on_distance_alone():
    gradcheck(lambda x: ops.rotary(x, start=3), normal(0, 2, 3, 4))
    q, k = Tensor(normal(1, 1, 6)), Tensor(normal(2, 1, 6))
    products = [
        float((ops.rotary(q, start=s + 5).data * ops.rotary(k, start=s).data).sum())
        for s in (0, 1, 40)
    ]
    assert products == pytest.approx([products[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 2), (3, 3), (1, 1)])  # square ones take another way back
def test_conv2d(stride, padding, groups, kernel):
    x, w = normal(0, 2, 4, 5, 4), normal(1, 6, 4 // groups, *kernel)
    gradcheck(lambda *a: ops.conv2d(*a, stride, padding, groups), x, w, normal(2, 6))
    got = ops.conv2d(Tensor(x), Tensor(w), None, stride, padding, groups).data
    np.testing.assert_allclose(got, convolve(x, w, stride, padding, groups), rtol=1e-12, atol=1e-13)


def convolve(x, w, stride, padding, groups):
    """The definition, one output at a time."""
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    (n, _, h, wide), (o, cg, kh, kw) = x.shape, w.shape
    out = np.zeros((n, o, (h - kh) // stride + 1, (wide - kw) // stride + 1))
    for m, k, i, j in np.ndindex(out.shape):
        first = k // (o // groups) * cg
        patch = x[m, first : first + cg, i * stride : i * stride + kh, j * stride : j * stride + kw]
        out[m, k, i, j] = (patch * w[k]).sum()
    return out


@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 1, 1), (3, 2, 0), (2, 3, 1)])
def test_pooling(kernel, stride, padding):
    x = distinct(0, 2, 2, 5, 6)
    gradcheck(lambda x: ops.max_pool2d(x, kernel, stride, padding), x)
    gradcheck(lambda x: ops.avg_pool2d(x, kernel, stride, padding), x)
    tied = ops.max_pool2d(t := Tensor(np.zeros((1, 1, 4, 4)), requires_grad=True), 2)
    tied.sum().backward()
    assert t.grad.sum() == 4 and t.grad[0, 0, 0, 0] == 1, "at a tie one place gets it all"


@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 1, 1), (3, 2, 0), (2, 3, 1)])
def test_pooling_without_a_gradient_finds_the_same(kernel, stride, padding):
    x = distinct(0, 2, 3, 7, 8)
    x[0, 0, 2, 3], x[0, 1, 4, 4], x[1, 2, 0, 0] = np.nan, np.inf, -np.inf
    for data in (x, np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
        recorded = ops.max_pool2d(Tensor(data, requires_grad=True), kernel, stride, padding)
        np.testing.assert_array_equal(
            ops.max_pool2d(Tensor(data), kernel, stride, padding).data, recorded.data
        )


def test_erf_is_accurate():
    x = np.concatenate([np.linspace(-7, 7, 2001), 10.0 ** np.arange(-300, 0, 10.0), [0.0, np.inf]])
    expected = np.array([math.erf(value) for value in x])
    np.testing.assert_allclose(ops.erf(Tensor(x)).data, expected, rtol=2e-15)
    small = x.astype(np.float32)[abs(x) < 7]
    got = ops.gelu(Tensor(small), exact=True).data
    exact = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in small.astype(np.float64)]
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)


def test_nothing_overflows():
    x = Tensor(np.array([-1e30, -90.0, 0.0, 90.0, 1e30], np.float32), requires_grad=True)
    for function in (ops.sigmoid, ops.tanh, ops.silu, ops.softmax, ops.log_softmax, ops.logsumexp):
        with np.errstate(over="raise", invalid="raise"):
            y = function(x)
            y.sum().backward()
        assert np.isfinite(y.data).all() and np.isfinite(x.grad).all(), function


@pytest.mark.parametrize(
    "function",
    [ops.gelu, lambda x: ops.gelu(x, exact=True), ops.silu, ops.erf, ops.tanh, ops.sigmoid],
)
def test_float16_is_as_good_as_its_digits_allow(function):
    x = np.array([-400, -30, -6, -3, -1, -0.1, 0, 0.3, 2, 4, 7, 300], np.float16)
    half, full = (Tensor(x.astype(dtype), requires_grad=True) for dtype in ("float16", "float64"))
    with np.errstate(over="ignore", invalid="raise"):
        for tensor in (half, full):
            y = function(tensor)
            y.backward(np.ones_like(tensor.data))
            assert y.dtype == tensor.dtype
    np.testing.assert_allclose(function(half).data, function(full).data, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(half.grad, full.grad, rtol=4e-3, atol=4e-3)


def test_norms_of_float16_do_not_overflow():
    x = (normal(0, 8, 64) * 400).astype(np.float16)
    w, b = np.ones(64, np.float16), np.zeros(64, np.float16)
    for norm in (
        ops.layer_norm,
        lambda x, w, b: ops.rms_norm(x, w),
        lambda x, w, b: ops.batch_norm(x, w, b)[0],
    ):
        results = []
        for dtype in ("float16", "float64"):
            tensors = [Tensor(value.astype(dtype), requires_grad=True) for value in (x, w, b)]
            y = norm(*tensors)
            y.backward(y.data)
            assert y.dtype == tensors[1].grad.dtype == dtype
            results.append((y.data, tensors[1].grad))
        for got, expected in zip(*results, strict=True):
            np.testing.assert_allclose(got, expected, rtol=4e-3, atol=4e-3)


def test_gradcheck_names_the_op_that_is_wrong():
    def wrong(x: Tensor) -> Tensor:
        return Tensor.of(x.data**3, (x,), lambda grad: (grad * x.data**2,))

    with pytest.raises(AssertionError, match=r"^input 0 of wrong: the gradient at \(0,\) is"):
        gradcheck(wrong, np.array([2.0]))
