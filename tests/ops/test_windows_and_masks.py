"""Convolution with pairs and dilation, attention with masks, tensors as numbers: by definition."""

import itertools
import warnings
from importlib import import_module

import numpy as np
import pytest

import minidist
from minidist import Tensor, nn, ops
from minidist.engine.array import work
from minidist.engine.gradcheck import gradcheck

RANDOM = np.random.default_rng(5)


def convolved(x, weight, stride, padding, groups, dilation):
    """The definition, one output at a time."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    n, _, h, w = x.shape
    o, cg, kh, kw = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    oh = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    ow = (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((n, o, oh, ow))
    for k, y, z in itertools.product(range(o), range(oh), range(ow)):
        first = k // (o // groups) * cg
        patch = x[:, first : first + cg, y * sh :, z * sw :][:, :, ::dh, ::dw][..., :kh, :kw]
        out[:, k, y, z] = (patch * weight[k]).sum(axis=(1, 2, 3))
    return out


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [
        ((1, 1), (0, 0), (1, 1)),
        ((2, 1), (0, 1), (1, 1)),
        ((1, 1), (2, 0), (1, 2)),
        ((1, 3), (1, 2), (2, 1)),
        ((2, 2), (3, 3), (2, 3)),
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_of_pairs_is_its_definition(kernel, stride, padding, dilation, groups):
    x = RANDOM.standard_normal((2, 4, 6, 7))
    weight = RANDOM.standard_normal((6, 4 // groups, *kernel))
    got = ops.conv2d(x, Tensor(weight), None, stride, padding, groups, dilation)
    np.testing.assert_allclose(
        got.data, convolved(x, weight, stride, padding, groups, dilation), atol=1e-12
    )
    gradcheck(
        lambda a, b: ops.conv2d(a, b, None, stride, padding, groups, dilation), x[:1, :, :5], weight
    )


def test_a_number_means_both_axes_and_nonsense_is_refused():
    x, weight = RANDOM.standard_normal((1, 1, 5, 5)), Tensor(RANDOM.standard_normal((1, 1, 2, 2)))
    one, pair = (ops.conv2d(x, weight, None, s, p, 1, d) for s, p, d in (
        (2, 1, 2), ((2, 2), (1, 1), (2, 2))))  # fmt: skip
    np.testing.assert_array_equal(one.data, pair.data)
    for settings in ((0, 0, 1), (1, -1, 1), (1, 0, 0), ((1, 1, 1), 0, 1), (1.5, 0, 1)):
        stride, padding, dilation = settings
        with pytest.raises(ValueError, match=r"conv2d: .* a pair"):
            ops.conv2d(x, weight, None, stride, padding, 1, dilation)
    with pytest.raises(ops.ShapeError, match="dilation"):
        ops.conv2d(x, weight, None, 1, 0, 1, 5)  # covers 6 of 5 pixels
    with pytest.raises(ValueError, match="conv1d: stride is a whole number"):
        ops.conv1d(x[0], weight[0], None, (1, 1))
    with pytest.raises(ops.ShapeError, match="conv1d"):
        ops.conv1d(x, weight)


def test_conv1d_is_its_definition():
    x, weight, bias = (RANDOM.standard_normal(shape) for shape in ((2, 4, 9), (6, 2, 3), (6,)))
    got = ops.conv1d(x, Tensor(weight), Tensor(bias), 2, 3, 2, 2)
    expected = convolved(x[:, :, None], weight[:, :, None], (1, 2), (0, 3), 2, (1, 2))[:, :, 0]
    np.testing.assert_allclose(got.data, expected + bias[:, None], atol=1e-12)
    gradcheck(lambda *a: ops.conv1d(*a, 2, 3, 2, 2), x, weight, bias)


LAYERS = [
    (nn.Conv2d(3, 4, (2, 3), (1, 2), (1, 0), dilation=(2, 1)), (2, 3, 6, 7)),
    (nn.Conv2d(2, 4, 3, 2, 1, groups=2), (2, 2, 5, 5)),
    (nn.Conv1d(4, 6, 3, 2, 1, groups=2, dilation=2), (2, 4, 9)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: repr(value))
def test_costs_of_the_layers_are_what_is_computed(layer, shape):
    layer = layer.init(0)
    layer.zero_grad()
    cost = layer.cost(shape)
    before = work.flops
    y = layer(Tensor(RANDOM.standard_normal(shape).astype(np.float32), requires_grad=True))
    assert y.shape == cost.shape and work.flops - before == cost.flops > 0
    y.sum().backward()
    assert work.flops - before == cost.flops + cost.input_flops + cost.weight_flops


def test_layers_say_what_they_are():
    assert repr(LAYERS[0][0]) == (
        "Conv2d(3, 4, kernel=(2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1))"
    )
    assert repr(LAYERS[1][0]) == "Conv2d(2, 4, kernel=3, stride=2, padding=1, groups=2)"
    assert repr(LAYERS[2][0]).startswith("Conv1d(4, 6, kernel=3")


def attended(q, k, v, allowed, bias):
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + bias
    scores = np.where(allowed, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
    return np.nan_to_num(weights) @ v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [3, 70])  # one block of query rows, and two
@pytest.mark.parametrize(
    "shape", [(2, 4, "l", "s"), (2, 1, 1, "s"), (4, 1, "s"), ("l", "s"), ("s",), (1, 1, "l", 1), ()]
)
def test_masks_broadcast_as_in_pytorch(shape, length, causal):
    keys = length + 2
    q, k, v = (RANDOM.standard_normal((2, 4, n, 2)) for n in (length, keys, keys))
    shape = tuple({"l": length, "s": keys}.get(n, n) for n in shape)
    allowed = RANDOM.random(shape) > 0.3
    past = np.tri(length, keys, keys - length, bool) if causal else True
    got = ops.attention(Tensor(q), Tensor(k), Tensor(v), causal, allowed)
    np.testing.assert_allclose(got.data, attended(q, k, v, allowed & past, 0), atol=1e-12)
    bias = RANDOM.standard_normal(shape)
    got = ops.attention(Tensor(q), Tensor(k), Tensor(v), causal, bias)
    np.testing.assert_allclose(got.data, attended(q, k, v, past, bias), atol=1e-12)


def test_a_query_without_any_key_gives_zero_and_no_nan():
    q, k, v = (RANDOM.standard_normal((1, 2, 3, 2)) for _ in range(3))
    allowed = np.ones((3, 3), bool)
    allowed[1] = False
    out = ops.attention(Tensor(q), Tensor(k), Tensor(v), False, allowed)
    assert (out.data[:, :, 1] == 0).all()
    gradcheck(lambda *a: ops.attention(*a, False, allowed), q, k, v)
    x = Tensor(q, requires_grad=True)
    ops.attention(x, Tensor(k), Tensor(v), True, allowed).sum().backward()
    assert np.isfinite(x.grad).all()


def test_self_attention_and_the_layer_take_the_same_mask():
    packed = Tensor(RANDOM.standard_normal((2, 5, 16)))
    keys = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)[:, None, None]  # padding
    q, k, v = packed.reshape(2, 5, 8, 2).transpose(0, 2, 1, 3).split((4, 2, 2), axis=1)
    apart = ops.attention(q, k, v, True, keys).transpose(0, 2, 1, 3).reshape(2, 5, 8)
    np.testing.assert_allclose(
        ops.self_attention(packed, 4, 2, mask=keys).data, apart.data, atol=1e-12
    )
    layer = nn.CausalSelfAttention(8, 4, 2).init(0, "float64")
    x = RANDOM.standard_normal((2, 5, 8))
    changed = x.copy()
    changed[0, 3:] += 1  # what is padding changes nothing before it
    for given in (x, changed):
        y = layer(Tensor(given), mask=keys).data
        np.testing.assert_allclose(y[0, :3], layer(Tensor(x[:1, :3])).data[0], atol=1e-12)


def test_masks_that_are_none_are_refused():
    q = Tensor(RANDOM.standard_normal((1, 2, 3, 2)))
    with pytest.raises(ops.ShapeError, match="does not broadcast"):
        ops.attention(q, q, q, mask=np.ones((2, 3), bool))
    with pytest.raises(ops.DTypeError, match="booleans"):
        ops.attention(q, q, q, mask=np.ones((3, 3), int))
    with pytest.raises(TypeError, match="constant"):
        ops.attention(q, q, q, mask=Tensor(np.zeros((3, 3)), requires_grad=True))


def test_tensors_are_numbers_as_in_numpy():
    one, many = Tensor(2.567), Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert int(one) == 2 and round(one) == 3 and f"{one:.2f}" == "2.57" and float(one) > 2.5
    assert round(one, 1) == pytest.approx(2.6) and f"{one}" == str(one) and bool(one)
    assert int(Tensor([3])) == 3 and not Tensor(0.0)
    assert len(many) == 2 and [float(row.sum()) for row in many] == [3, 7]
    first, second = many
    assert first.shape == (2,) and second.tolist() == [3, 4]
    for wrong in (int, round, float, lambda t: f"{t:.3f}"):
        with pytest.raises(TypeError, match=r"one element.*\(2, 2\)"):
            wrong(many)
    for wrong in (len, iter):
        with pytest.raises(TypeError, match="0-d"):
            wrong(one)
    for wrong in (many, Tensor(np.zeros(0))):
        with pytest.raises(ValueError, match="ambiguous"):
            bool(wrong)
    x = Tensor([1.0, 2.0], requires_grad=True)
    sum(part * weight for part, weight in zip(x, (3, 4), strict=True)).backward()
    assert x.grad.tolist() == [3, 4]


def test_minidist_tensor_copies():
    array = np.zeros(2)
    made = minidist.tensor(array)
    array += 1
    assert made.data.tolist() == [0, 0]
    assert minidist.tensor([1.0]).dtype == np.float32
    assert minidist.tensor([1], dtype="float64", requires_grad=True).requires_grad
    with warnings.catch_warnings(action="ignore"):
        import_module(".".join(("minidist", "tensor")))  # version 0.1's module has this name too
    assert minidist.tensor([1.0]).shape == (1,)
