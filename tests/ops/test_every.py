"""What must hold of every op: dtype, layout, inputs left alone, and arrays kept on their device."""

import cases
import numpy as np
import pytest
import strict
from cases import CASES, run

from minidist import ops
from minidist.engine import array as arrays
from minidist.engine.gradcheck import gradcheck
from minidist.engine.tensor import Tensor


@pytest.fixture(autouse=True)
def strict_device(monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)


def test_the_table_has_every_op():
    methods = {"getitem", "expand_dims"}  # appear in the table as operators and methods
    plain = {"argmax", "argmin", "equal", "not_equal", "less", "less_equal", "greater",
             "greater_equal", "ShapeError", "DTypeError"}  # fmt: skip
    assert not set(ops.__all__) - set(CASES) - methods - plain


def test_nodes_have_the_names_of_ops():
    """Errors, counts and drawings name an op so."""
    for name, (function, *inputs) in CASES.items():
        out = function(*(Tensor(value, requires_grad=True) for value in inputs))
        assert out.node.name in ops.__all__, f"{name}: {out.node.name}"


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_numeric_slopes(name):
    function, *inputs = CASES[name]
    gradcheck(function, *inputs, tolerance=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_promoted(name):
    for dtype in ("float32", "float16"):
        for array in run(name, dtype=dtype):
            assert array.dtype == dtype, f"{name}: {array.dtype} from {dtype}"


@pytest.mark.parametrize("name", CASES)
def test_layout_does_not_matter(name):
    def strided(array):
        wide = np.full((*array.shape[:-1], array.shape[-1] * 2), np.nan, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]

    for turned in (strided, np.asfortranarray):
        for got, expected in zip(run(name, change=turned), run(name), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_inputs_and_the_gradient_that_arrives_are_left_alone(name):
    function, *inputs = CASES[name]
    arrays_in = [value.copy() for value in inputs]
    for value in arrays_in:
        value.flags.writeable = False
    tensors = [Tensor(value, requires_grad=True) for value in arrays_in]
    out = function(*tensors)
    grad = np.broadcast_to(np.float64(2.0), out.shape)  # read-only, and strides of 0
    out.backward(grad)
    for tensor in tensors:
        assert tensor.grad.shape == tensor.shape


@pytest.mark.parametrize("name", CASES)
def test_arrays_stay_on_a_strict_device(name):
    cases.assert_same_on("strict", name)


@pytest.mark.parametrize("device", ["cpu", "strict"])
def test_an_empty_batch_is_no_trouble(device):
    def empty(*shape):
        return Tensor(arrays.to_device(np.ones(shape), device), requires_grad=True)

    for y, inputs in (
        (ops.softmax(x := empty(0, 3)), [x]),
        (ops.log_softmax(x := empty(0, 3)), [x]),
        (ops.softmax(x := empty(2, 0)), [x]),
        (ops.self_attention(x := empty(0, 4, 12), 2), [x]),
        (ops.layer_norm(x := empty(0, 3), w := empty(3), None), [x, w]),
        (ops.conv2d(x := empty(0, 1, 4, 4), w := empty(2, 1, 3, 3)), [x, w]),
        (ops.max_pool2d(x := empty(0, 1, 4, 4), 2), [x]),
        (ops.embedding(arrays.to_device(np.zeros((0, 2), int), device), w := empty(3, 2)), [w]),
        (ops.cross_entropy(x := empty(0, 3), arrays.to_device(np.zeros(0, int), device), 5), [x]),
    ):
        y.backward(arrays.to_device(np.ones(y.shape), device))
        for given in inputs:
            assert given.grad.shape == given.shape and not bool((given.grad != 0).any())


def test_astype_sends_the_gradient_back_as_it_came():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    y, seen = x * 1.0, []
    y.register_hook(lambda grad: seen.append(grad.dtype))
    y.astype("float64").sum().backward()
    assert seen == [np.float32]


def test_the_strict_device_is_strict():
    here, there = np.ones(3), strict.asarray(np.ones(3))
    for mixed in (
        lambda: here + there,
        lambda: there + here,
        lambda: np.exp(there),
        lambda: strict.exp(here),
        lambda: np.asarray(there),
        lambda: there.__setitem__(0, here[:1]),
        lambda: there[np.array([0])],
    ):
        with pytest.raises(TypeError):
            mixed()
    for op in (ops.add, ops.matmul, lambda x, y: ops.linear(x, y)):
        with pytest.raises(arrays.DeviceError, match="numpy"):
            op(Tensor(np.ones((2, 2))), Tensor(strict.asarray(np.ones((2, 2)))))
