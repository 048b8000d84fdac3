"""Wrong shapes, dtypes and targets: the error names the op, the values, and the way out."""

import numpy as np
import pytest

from minidist import models, nn, ops, optim
from minidist.data import Dataset
from minidist.engine.array import DeviceError, module
from minidist.engine.tensor import Tensor
from minidist.ops import ShapeError


def t(*shape):
    return Tensor(np.zeros(shape, np.float32))


LABELS = np.array([0, 1])

SHAPES = {
    "add: shapes (2, 3) and (4,)": lambda: t(2, 3) + t(4),
    "multiply: shapes (2,) and (3,)": lambda: t(2) * t(3),
    "matmul: cannot multiply (2, 3) by (2, 3)": lambda: t(2, 3) @ t(2, 3),
    "matmul: the leading axes": lambda: t(2, 2, 3) @ t(3, 3, 2),
    "linear: input (2, 3) does not fit weight (4, 5)": lambda: ops.linear(t(2, 3), t(4, 5)),
    "linear: input (2, 3) does not fit weight (3,)": lambda: ops.linear(t(2, 3), t(3)),
    "linear: input () does not fit weight (3, 5)": lambda: ops.linear(t(), t(3, 5)),
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
    "max: the input (0,) has no elements": lambda: t(0).max(),
    "cross_entropy: logits (3, 4)": lambda: ops.cross_entropy(t(3, 4), LABELS),
    "cross_entropy: logits (2, 4) need integer targets": lambda: ops.cross_entropy(
        t(2, 4), LABELS * 1.0
    ),
    "layer_norm: input (2, 3) needs a weight of shape (3,)": lambda: ops.layer_norm(
        t(2, 3), t(4), t(4)
    ),
    "batch_norm: input (1, 3) has one value": lambda: ops.batch_norm(t(1, 3), t(3), t(3)),
    "embedding: the table": lambda: ops.embedding(LABELS, t(3)),
    "attention: q (1, 3, 2, 2)": lambda: ops.attention(t(1, 3, 2, 2), t(1, 2, 2, 2), t(1, 2, 2, 2)),
    "self_attention: qkv (1, 2, 7)": lambda: ops.self_attention(t(1, 2, 7), 2),
    "rotary: features are rotated in pairs, and d = 3": lambda: ops.rotary(t(2, 3)),
    "conv2d: input (1, 3, 5, 5)": lambda: ops.conv2d(t(1, 3, 5, 5), t(4, 2, 3, 3)),
    "AddChannel: images must be (n, height, width), not (2, 1, 28, 28)": lambda: models.cnn(2).init(
        0
    )(t(2, 1, 28, 28)),
    "gpt: tokens must be (batch, length), not (2,)": lambda: models.gpt(5, 4, 4, 1, 1).init(0)(
        LABELS
    ),
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
        with pytest.raises(ValueError, match="found 1 to 4"):  # the first that is none
            ops.cross_entropy(t(2, 4), np.array([1, 4], dtype))
    with pytest.raises(ValueError, match="found -3 to 1"):
        ops.cross_entropy(t(2, 4), np.array([1, -3]), ignore_index=-100)
    with pytest.raises(IndexError, match=r"embedding.*\[0, 3\), found 0 to 3"):
        ops.embedding(np.array([0, 3]), t(3, 2))
    with pytest.raises(IndexError, match=r"shape \(2, 3\)"):
        t(2, 3)[5]


def test_targets_that_overflowed_when_they_were_made():
    for dtype, most in ((np.int8, 127), (np.uint8, 255)):
        overflowed = np.array([300, 1]).astype(dtype)
        with pytest.raises(ops.DTypeError, match=rf"entropy: {dtype.__name__}.*most {most}"):
            ops.cross_entropy(t(2, 301), overflowed)
        with pytest.raises(ops.DTypeError, match=rf"dataset x: {dtype.__name__}.*301 classes"):
            Dataset("x", np.zeros((2, 3)), overflowed, 301)
    ops.cross_entropy(t(2, 256), np.array([255, 1], np.uint8))  # fits
    with pytest.raises(ops.DTypeError):
        ops.cross_entropy(t(2, 257), np.array([255, 1], np.uint8))
    with pytest.raises(ValueError, match="found 0 to 18446744073709551615"):
        ops.cross_entropy(t(2, 4), np.array([2**64 - 1, 0], np.uint64))


LAYERS = {
    "linear": (lambda: nn.Linear(4, 2), (3, 4)),
    "conv2d": (lambda: nn.Conv2d(1, 2, 3), (1, 1, 4, 4)),
    "layer_norm": (lambda: nn.LayerNorm(4), (3, 4)),
    "rms_norm": (lambda: nn.RMSNorm(4), (3, 4)),
    "batch_norm": (lambda: nn.BatchNorm(4), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_inputs_of_its_own_dtype_alone(name):
    make, shape = LAYERS[name]
    layer = make().init(0)
    for dtype in ("float64", "int64", "uint8", "float16"):
        with pytest.raises(ops.DTypeError) as caught:
            layer(np.ones(shape, dtype))
        message = str(caught.value)
        assert f"{name}: the input {shape} is {dtype}, the weight" in message
        assert '.astype("float32")' in message
        assert (f'init(dtype="{dtype}")' in message) == dtype.startswith("float")
    assert layer(np.ones(shape, np.float32)).dtype == np.float32


def test_uninitialised_modules():
    for use in (
        lambda model: model(t(1, 4)),
        lambda model: model.flat,
        lambda model: model.zero_grad(),
        lambda model: model.state(),
        lambda model: model.blocks["0"].weight * 2,
    ):
        with pytest.raises(nn.UninitialisedError, match=r"call model.init\(seed\) first"):
            use(nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(TypeError, match="int32"):
        nn.Linear(4, 3).init(0, dtype="int32")


def test_habits_from_elsewhere():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match=r"SGD: the first argument is the learning rate.*list"):
        optim.SGD(nn.Linear(2, 2).init(0).parameters())
    with pytest.raises(TypeError, match=r"block 0 is a list.*Sequential\(\*blocks\)"):
        nn.Sequential([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"as model.flat.data and model.flat.grad are"):
        optim.SGD(0.1).step(np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(TypeError, match=r"tensor\.data"):
        x[0] = 1
    for lose in (np.asarray, np.array, lambda x: np.concatenate([x, x])):
        with pytest.raises(TypeError, match=r"\(2,\) whose gradient it would lose"):
            lose(x)
    assert np.asarray(x.detach()).tolist() == x.tolist() == [1.0, 2.0]
    with pytest.raises(TypeError, match="astype: a tensor of int64 has no gradient"):
        x.astype("int64")
    with pytest.raises(TypeError, match="the base must be a positive number, not -2"):
        (-2) ** x


def test_ops_take_arrays_and_lists_too():
    z = np.array([[1.0, 2.0], [3.0, 0.0]], np.float32)
    assert ops.softmax(z).shape == ops.relu(z).shape == (2, 2)
    assert ops.cross_entropy(z, [1, 0]).item() == ops.cross_entropy(z, np.array([1, 0])).item()
    assert ops.embedding([1, 1], Tensor(z)).tolist() == [[3.0, 0.0]] * 2
    assert ops.stack([z, z]).shape == (2, 2, 2)


def test_types():
    with pytest.raises(TypeError, match="only floating tensors can require gradients, not int64"):
        Tensor(np.arange(3), requires_grad=True)
    with pytest.raises(TypeError, match="embedding: indices must be an array of integers"):
        ops.embedding(np.ones(2), t(3, 2))
    with pytest.raises(ops.ShapeError, match="power: shapes"):
        t(2) ** t(3)
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


def test_einsum_says_what_does_not_fit():
    for subscripts, shapes, error in (
        ("ij,jk->ik", [(2, 3), (4, 5)], "'j' of .* is 3 and 4 long"),
        ("ij->ji", [(2,)], "'ij' of .* does not fit shape"),
        ("ij,jk", [(2, 3)], "names 2 operands of 1"),
        ("ii->i", [(2, 2)], "has a letter twice"),
        ("ij->k", [(2, 2)], r"no operand of .* has \['k'\]"),
        ("...i->i", [(2, 2)], 'is not like "ij,jk->ik"'),
    ):
        with pytest.raises(ValueError, match=f"^einsum: .*{error}"):
            ops.einsum(subscripts, *[t(*shape) for shape in shapes])
    with pytest.raises(ops.DTypeError, match="einsum: convert to one dtype"):
        ops.einsum("i,i->", t(2), t(2).astype("float16"))
