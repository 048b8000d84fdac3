"""Backwards of structured ops equal numeric gradients in float64, over drawn shapes and options.

The element-wise ops, reductions and matmul are drawn in test_gradients.py; here is the rest.
"""

import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, basic_indices, broadcastable_shapes
from hypothesis.extra.numpy import integer_array_indices as array_indices

from minidist import ops
from minidist.engine.gradcheck import gradcheck
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor
from tests.examples import examples
from tests.ops.test_gradients import distinct, normal, positive

quick = examples(40)
SHAPES = array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
FULL = array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)
SIDE = st.integers(1, 4)


@quick
@given(
    leading=array_shapes(min_dims=0, max_dims=2, min_side=0), i=SIDE, o=SIDE, biased=st.booleans()
)
def test_linear(leading, i, o, biased):
    inputs = [normal(0, *leading, i), normal(1, i, o), normal(2, o)]
    gradcheck(ops.linear, *inputs[: 2 + biased])


@quick
@given(shape=SHAPES, data=st.data())
def test_reshape_transpose_and_swapaxes(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    gradcheck(lambda x: x.transpose(*order), normal(0, *shape))
    gradcheck(lambda x: x.reshape(tuple(shape[axis] for axis in order)), normal(0, *shape))
    gradcheck(lambda x: x.swapaxes(order[0], order[-1]), normal(0, *shape))


@quick
@given(shape=FULL, data=st.data())
def test_broadcast_to(shape, data):
    small = data.draw(broadcastable_shapes(shape, max_dims=len(shape)))
    assume(np.broadcast_shapes(small, shape) == shape)
    gradcheck(lambda x: ops.broadcast_to(x, shape), normal(0, *small))


@quick
@given(shape=SHAPES, data=st.data())
def test_joining_and_cutting(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    parts = [normal(i, *shape[:axis], n, *shape[axis:][1:]) for i, n in enumerate(lengths)]
    gradcheck(lambda *parts: ops.concatenate(parts, axis), *parts)
    cut = sum(lengths)
    whole = normal(0, *shape[:axis], cut, *shape[axis:][1:])
    gradcheck(lambda x: ops.concatenate(x.split(lengths, axis)[::-1], axis), whole)
    gradcheck(lambda x, y: ops.stack([x, y, x], axis), normal(0, *shape), normal(1, *shape))


@quick
@given(shape=SHAPES, data=st.data())
def test_pad(shape, data):
    pairs = st.tuples(st.integers(0, 2), st.integers(0, 2))
    widths = data.draw(st.lists(pairs, min_size=len(shape), max_size=len(shape)))
    gradcheck(lambda x: ops.pad(x, widths, value=1.5), normal(0, *shape))


@quick
@given(shape=FULL, data=st.data())
def test_slicing(shape, data):
    index = data.draw(basic_indices(shape, allow_newaxis=True))
    gradcheck(lambda x: x[index], normal(0, *shape))


@quick
@given(shape=FULL, data=st.data())
def test_indexing_with_integer_arrays(shape, data):
    index = data.draw(array_indices(shape, result_shape=array_shapes(max_dims=2, max_side=4)))
    gradcheck(lambda x: x[index], normal(0, *shape))
    gradcheck(lambda x: x[index[0]], normal(0, *shape))


@quick
@given(shape=FULL, data=st.data())
def test_softmax(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    gradcheck(lambda x: ops.softmax(x, axis), normal(0, *shape))
    gradcheck(lambda x: ops.log_softmax(x, axis), normal(0, *shape))


@quick
@given(
    leading=array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3),
    classes=SIDE,
    smoothing=st.sampled_from([0.0, 0.2]),
    ignored=st.sampled_from([None, 0, -1]),
    data=st.data(),
)
def test_cross_entropy(leading, classes, smoothing, ignored, data):
    size = int(np.prod(leading))
    lowest = -1 if ignored == -1 else 0
    drawn = data.draw(st.lists(st.integers(lowest, classes - 1), min_size=size, max_size=size))
    targets = np.array(drawn, np.int64).reshape(leading)
    counted = (targets != ignored).any()
    if not counted:  # there is no mean over none
        with pytest.raises(ValueError, match="no mean over no targets"):
            ops.cross_entropy(Tensor(normal(0, *leading, classes)), targets, None, ignored)
    gradcheck(
        lambda z: ops.cross_entropy(z, targets, None if counted else 1, ignored, smoothing),
        normal(0, *leading, classes),
    )


@quick
@given(shape=SHAPES)
def test_other_losses(shape):
    x, y, p = normal(0, *shape), normal(1, *shape), positive(1, *shape) / 5
    count = None if x.size else 1  # there is no mean over none
    gradcheck(lambda x, y: ops.mean_squared_error(x, y, count), x, y)
    gradcheck(lambda x, y: ops.huber(x, y, count, 0.7), x, y)
    gradcheck(lambda z: ops.binary_cross_entropy(z, p, count), x)
    if shape:
        gradcheck(lambda x: ops.kl_divergence(x, p, count), x)


@quick
@given(
    leading=array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3), width=st.integers(2, 5)
)
def test_normalization_over_the_last_axis(leading, width):
    x, w, b = normal(0, *leading, width), normal(1, width), normal(2, width)
    gradcheck(ops.layer_norm, x, w, b, tolerance=1e-5)
    gradcheck(ops.rms_norm, x, w, tolerance=1e-5)


@quick
@given(n=st.integers(2, 4), channels=SIDE, rest=array_shapes(min_dims=0, max_dims=2, max_side=3))
def test_batch_norm(n, channels, rest):
    x, w, b = normal(0, n, channels, *rest), normal(1, channels), normal(2, channels)
    assume(x.size // channels > 2)  # two values become ±1 whatever they are: slopes of 0
    gradcheck(lambda *a: ops.batch_norm(*a)[0], x, w, b, tolerance=1e-4)


@quick
@given(shape=SHAPES, rate=st.sampled_from([0.0, 0.3, 0.9]))
def test_dropout(shape, rate):
    def dropped(x):
        with draws(seed=0, step=1):
            return ops.dropout(x, rate, "layer")

    gradcheck(dropped, normal(0, *shape))


@quick
@given(rows=SIDE, width=SIDE, data=st.data())
def test_embedding(rows, width, data):
    shape = data.draw(array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4))
    indices = np.random.default_rng(0).integers(0, rows, shape)
    gradcheck(lambda table: ops.embedding(indices, table), normal(0, rows, width))


@pytest.fixture(autouse=True, scope="module")
def many_blocks():
    """Attention works in blocks of query rows: short ones, so that small shapes have many."""
    attention = sys.modules["minidist.ops.blockwise_attention"]
    block, attention.BLOCK = attention.BLOCK, 2
    yield
    attention.BLOCK = block


@quick
@given(
    batch=st.integers(0, 2), groups=st.integers(1, 2), shared=st.integers(1, 2),
    length=SIDE, more=st.integers(0, 2), d=st.integers(1, 3), causal=st.booleans(),
)  # fmt: skip
def test_attention_with_grouped_queries(batch, groups, shared, length, more, d, causal):
    q = normal(0, batch, groups * shared, length, d)
    k, v = (normal(i, batch, groups, length + more, d) for i in (1, 2))
    gradcheck(lambda q, k, v: ops.attention(q, k, v, causal), q, k, v)


@quick
@given(
    batch=st.integers(0, 2), groups=st.integers(1, 2), shared=st.integers(1, 2),
    length=SIDE, half=st.integers(1, 2), base=st.sampled_from([None, 100.0]),
)  # fmt: skip
def test_packed_attention_with_rotary_positions(batch, groups, shared, length, half, base):
    heads, d = groups * shared, 2 * half
    packed = normal(0, batch, length, (heads + 2 * groups) * d)
    gradcheck(lambda x: ops.self_attention(x, heads, groups, base), packed)


@quick
@given(leading=SHAPES, half=st.integers(1, 3), start=st.integers(0, 5))
def test_rotary(leading, half, start):
    gradcheck(lambda x: ops.rotary(x, 50.0, start), normal(0, *leading, 2 * half))


@quick
@given(
    n=st.integers(0, 2), groups=st.integers(1, 2), inputs=st.integers(1, 2),
    outputs=st.integers(1, 2), size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), stride=st.integers(1, 3),
    padding=st.integers(0, 2), biased=st.booleans(),
)  # fmt: skip
def test_conv2d(n, groups, inputs, outputs, size, kernel, stride, padding, biased):
    assume(all(length + 2 * padding >= k for length, k in zip(size, kernel, strict=True)))
    x = normal(0, n, groups * inputs, *size)
    w, b = normal(1, groups * outputs, inputs, *kernel), normal(2, groups * outputs)

    def convolve(x, w, b=None):
        return ops.conv2d(x, w, b, stride, padding, groups)

    gradcheck(convolve, x, w, *([b] if biased else []))


@quick
@given(
    n=st.integers(0, 2), channels=st.integers(1, 2), size=st.tuples(SIDE, SIDE),
    kernel=st.integers(1, 3), stride=st.integers(1, 3), data=st.data(),
)  # fmt: skip
def test_pooling(n, channels, size, kernel, stride, data):
    padding = data.draw(st.integers(0, kernel // 2))
    assume(all(length + 2 * padding >= kernel for length in size))
    x = distinct(0, n, channels, *size)
    gradcheck(lambda x: ops.max_pool2d(x, kernel, stride, padding), x)
    gradcheck(lambda x: ops.avg_pool2d(x, kernel, stride, padding), x)
