"""Wrong shapes, dtypes and targets: the error names the op, the values, and the way out."""

import numpy as np
import pytest

from minidist import nn, ops
from minidist.array import DeviceError, module
from minidist.ops import ShapeError
from minidist.tensor import Tensor


def t(*shape):
    return Tensor(np.zeros(shape, np.float32))


LABELS = np.array([0, 1])

SHAPES = {
    "add: shapes (2, 3) and (4,)": lambda: t(2, 3) + t(4),
    "multiply: shapes (2,) and (3,)": lambda: t(2) * t(3),
    "matmul: cannot multiply (2, 3) by (2, 3)": lambda: t(2, 3) @ t(2, 3),
    "matmul: the leading axes": lambda: t(2, 2, 3) @ t(3, 3, 2),
    "linear: input (2, 3) does not fit weight (4, 5)": lambda: ops.linear(t(2, 3), t(4, 5)),
    "linear: bias (4,)": lambda: ops.linear(t(2, 3), t(3, 5), t(4)),
    "reshape: (2, 3) has 6 elements and cannot become (4,)": lambda: t(2, 3).reshape(4),
    "transpose: axes (0, 0)": lambda: t(2, 3).transpose(0, 0),
    "broadcast_to: (2,) cannot be broadcast to (3,)": lambda: ops.broadcast_to(t(2), (3,)),
    "concatenate: [(2, 3), (2, 4)] differ": lambda: ops.concatenate([t(2, 3), t(2, 4)]),
    "stack: shapes differ": lambda: ops.stack([t(2), t(3)]),
    "split: axis 0 of (3,) does not divide into 2": lambda: t(3).split(2),
    "split: lengths [1, 1] do not add up": lambda: t(3).split([1, 1]),
    "pad: ": lambda: ops.pad(t(2, 3), [(1, 1)]),
    "squeeze: axis 0 of shape (2, 1)": lambda: t(2, 1).squeeze(0),
    "sum: axis 2 does not exist in shape (2, 3)": lambda: t(2, 3).sum(axis=2),
    "softmax: axis 1": lambda: t(3).softmax(1),
    "max: no largest": lambda: t(0).max(),
    "cross_entropy: logits (3, 4)": lambda: ops.cross_entropy(t(3, 4), LABELS),
    "cross_entropy: logits (2, 4) need integer targets": lambda: ops.cross_entropy(
        t(2, 4), LABELS * 1.0
    ),
    "layer_norm: input (2, 3) needs a weight of shape (3,)": lambda: ops.layer_norm(
        t(2, 3), t(4), t(4)
    ),
    "batch_norm: input (1, 3) has one value a channel": lambda: ops.batch_norm(t(1, 3), t(3), t(3)),
    "embedding: the table": lambda: ops.embedding(LABELS, t(3)),
    "attention: q (1, 3, 2, 2)": lambda: ops.attention(t(1, 3, 2, 2), t(1, 2, 2, 2), t(1, 2, 2, 2)),
    "self_attention: qkv (1, 2, 7)": lambda: ops.self_attention(t(1, 2, 7), 2),
    "rotary: features are turned in pairs, and d = 3": lambda: ops.rotary(t(2, 3)),
    "conv2d: input (1, 3, 5, 5)": lambda: ops.conv2d(t(1, 3, 5, 5), t(4, 2, 3, 3)),
    "max_pool2d: input (1, 1, 1, 1)": lambda: ops.max_pool2d(t(1, 1, 1, 1), 2),
    "mean_squared_error: (2, 3) against targets (3,)": lambda: ops.mean_squared_error(
        t(2, 3), t(3)
    ),
    "Residual: the blocks turn (2, 3) into (2, 4)": lambda: nn.Residual(nn.Linear(3, 4)).cost(
        (2, 3)
    ),
}


@pytest.mark.parametrize("message", SHAPES)
def test_shapes(message):
    with pytest.raises(ShapeError) as caught:
        SHAPES[message]()
    assert message in str(caught.value)


def test_targets_out_of_range():
    for dtype in (np.int64, np.int32, np.uint8, np.int8):
        with pytest.raises(ValueError, match=r"\[0, 4\), found 1 to 9"):
            ops.cross_entropy(t(2, 4), np.array([1, 9], dtype))
    with pytest.raises(ValueError, match="found -3 to 1"):
        ops.cross_entropy(t(2, 4), np.array([1, -3]), ignore_index=-100)
    with pytest.raises(IndexError, match=r"embedding.*\[0, 3\), found 0 to 3"):
        ops.embedding(np.array([0, 3]), t(3, 2))
    with pytest.raises(IndexError, match=r"shape \(2, 3\)"):
        t(2, 3)[5]


def test_types():
    with pytest.raises(TypeError, match="only floating tensors can require gradients, not int64"):
        Tensor(np.arange(3), requires_grad=True)
    with pytest.raises(TypeError, match="embedding: indices must be an array of integers"):
        ops.embedding(np.ones(2), t(3, 2))
    with pytest.raises(TypeError, match=r"exp\(y \* log\(x\)\)"):
        t(2) ** t(2)
    with pytest.raises(TypeError, match=r"tensor.detach\(\)"):
        Tensor(t(2))
    with pytest.raises(TypeError, match="concatenate: needs a sequence"):
        ops.concatenate([])


def test_values():
    for wrong in (
        lambda: nn.Dropout(1.0),
        lambda: ops.cross_entropy(t(2, 4), LABELS, label_smoothing=1.0),
        lambda: ops.conv2d(t(1, 1, 5, 5), t(1, 1, 3, 3), stride=0),
        lambda: ops.max_pool2d(t(1, 1, 5, 5), 2, padding=2),
        lambda: nn.CausalSelfAttention(10, 4),
        lambda: nn.Conv2d(3, 4, 3, groups=2),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_devices():
    with pytest.raises(DeviceError, match="unknown device 'gpu': choose one of cpu, cuda"):
        module("gpu")


def test_comparisons_are_plain_arrays():
    x = Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    for got, expected in (
        (x > 2, [False, False, True]),
        (x >= 2.0, [False, True, True]),
        (x < Tensor(np.array([2.0, 2.0, 4.0])), [True, False, True]),
        (x <= np.array([0.0, 2.0, 3.0]), [False, True, True]),
        (x == 1, [True, False, False]),
        (x != 1, [False, True, True]),
        (2 > x, [True, False, False]),  # noqa: SIM300
    ):
        assert type(got) is np.ndarray and got.tolist() == expected
    assert x.argmax() == 2 and x.reshape(3, 1).argmin(axis=0).tolist() == [0]


def test_integers_and_numpy_scalars_do_not_change_the_dtype():
    x = t(3)
    for other in (1, 2.5, True, np.float64(2), np.int64(3), np.arange(3), [1.0, 2.0, 3.0]):
        assert (x + other).dtype == (other * x).dtype == np.float32, repr(other)
    assert (x + np.ones(3)).dtype == np.float64  # a float64 *array* is meant: NumPy's rule
    assert (Tensor(np.arange(3)) * x).dtype == np.float32
    assert Tensor(2.0).dtype == np.float32 and Tensor([1, 2]).dtype.kind == "i"
