"""What must hold of every op: dtype, layout, inputs left alone, and arrays kept on their device."""

import cases
import numpy as np
import pytest
import strict
from cases import CASES, run

from minidist import array as arrays
from minidist import ops
from minidist.gradcheck import gradcheck
from minidist.tensor import Tensor


@pytest.fixture(autouse=True)
def strict_device(monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)


def test_the_table_has_every_op():
    methods = {"getitem", "expand_dims"}  # appear in the table as operators and methods
    plain = {"argmax", "argmin", "equal", "not_equal", "less", "less_equal", "greater",
             "greater_equal", "ShapeError", "DTypeError"}  # fmt: skip
    assert not set(ops.__all__) - set(CASES) - methods - plain


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
