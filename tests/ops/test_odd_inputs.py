"""What is no number, or of a dtype that NumPy would widen: PyTorch's rule, or refused by name."""

import copy
import pickle

import numpy as np
import pytest

from minidist import Tensor, ops
from minidist.engine.tape import GradientShapeError
from minidist.nn import CrossEntropy, Module
from minidist.nn.module import Buffer
from minidist.ops import DTypeError, ShapeError

X = Tensor(np.ones(3, np.float32), requires_grad=True)


def ints(dtype, *values):
    return Tensor(np.array(values, dtype))


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        (lambda: X * np.array(2.0), "float32"),
        (lambda: ops.where(X.data > 0, Tensor(np.array(0.0)), X), "float32"),
        (lambda: ops.maximum(np.array(0.0), X), "float32"),
        (lambda: X + np.ones(3), "float64"),
        (lambda: ints("int32", 1, 2) * 2, "int32"),
        (lambda: 1 - ints("int8", 1, 2), "int8"),
        (lambda: ints("uint8", 255, 255).sum(), "int64"),
        (lambda: ints("bool", True) ** 2, "int64"),
        (lambda: 2 ** ints("int64", 1, 40), "int64"),
        (lambda: Tensor(np.float32(2)) * 1, "float32"),
    ],
)
def test_dtypes_are_pytorchs(op, dtype):
    assert op().dtype == dtype


def test_a_number_without_dimensions_has_a_gradient_of_its_own_dtype():
    rate = Tensor(np.array(0.5), requires_grad=True)
    (X.detach() * rate).sum().backward()
    assert rate.grad.dtype == np.float64 and rate.grad == 3


@pytest.mark.parametrize(
    ("op", "error", "message"),
    [
        (lambda: X + None, TypeError, "not object"),
        (lambda: X * "2", TypeError, "not <U1"),
        (lambda: X * 1j, TypeError, "not complex128"),
        (lambda: Tensor(np.ones(2, complex)), TypeError, "not complex128"),
        (lambda: Tensor(np.ma.array([1.0, 2.0], mask=[0, 1])), TypeError, "lose its mask"),
        (
            lambda: ints("int64", 1) + ints("uint64", 1),
            DTypeError,
            "no integer dtype has all numbers",
        ),
        (
            lambda: ops.stack([ints("int64", 1), ints("uint64", 1)]),
            DTypeError,
            "no integer dtype has all numbers",
        ),
        (lambda: ints("uint8", 1) * 300, DTypeError, "300 does not fit uint8"),
        (lambda: 2 ** ints("int64", -1), DTypeError, "to the power -1 is no integer"),
        (lambda: -ints("bool", True), DTypeError, r"negative: the input \(1,\) is bool"),
        (
            lambda: ints("bool", True) - ints("bool", True),
            DTypeError,
            r"subtract: the input \(1,\) is bool",
        ),
        (lambda: X.sum(axis=[0]), TypeError, "several are a tuple"),
        (lambda: X.sum(axis=(0, -1)), ShapeError, "comes twice"),
        (lambda: X.clip(Tensor(0.5)), TypeError, "bounds are numbers"),
        (lambda: copy.deepcopy(X * 2), TypeError, "copy tensor.detach"),
    ],
)
def test_what_is_no_number_is_refused(op, error, message):
    with pytest.raises(error, match=message):
        op()


def test_matrices_multiply_as_arrays_do():
    two = np.matrix([[0.0, 2.0], [2.0, 0.0]])
    np.testing.assert_array_equal((Tensor(two) * Tensor(two)).data, [[0, 4], [4, 0]])


def test_gradients_given_to_backward_and_by_hooks():
    for grad in ([1, 2, 3], Tensor(np.array([1.0, 2.0, 3.0])), np.array([1, 2, 3])):
        x = Tensor(np.ones(3, np.float32), requires_grad=True)
        (x * 2).backward(grad)
        assert x.grad.dtype == np.float32 and x.grad.tolist() == [2, 4, 6]
    y = X * 2
    y.register_hook(lambda grad: [1, 1, 1])
    with pytest.raises(GradientShapeError, match="gradient of list"):
        y.sum().backward()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_leaf_is_a_leaf_of_its_own(way):
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    x.sum().backward()
    other = way(x)
    (other * 3).sum().backward()
    assert other.grad.tolist() == [4, 4] and x.grad.tolist() == [1, 1]


def test_nothing_has_a_variance_of_nan_and_a_logsumexp_of_minus_infinity():
    one = Tensor(np.ones(1, np.float32), requires_grad=True)
    variance = one.var(ddof=1)
    variance.backward()
    assert np.isnan(variance.item()) and np.isnan(one.grad).all()
    assert ops.logsumexp(Tensor(np.ones((2, 0), np.float32)), 1).tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (CrossEntropy(-1, z_loss=0.1), np.array([-1, 0])),
        (CrossEntropy(), np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)),
    ],
)
def test_logits_of_rows_that_do_not_count_may_be_nan(loss, targets):
    z = Tensor(np.array([[np.nan, 1], [1, 2]], np.float32), requires_grad=True)
    value = loss(z, targets)
    value.backward()
    assert np.isfinite(value.item()) and z.grad[0].tolist() == [0, 0] and z.grad[1].any()


def test_load_refuses_numbers_that_the_model_cannot_hold():
    class Counter(Module):
        def __init__(self):
            self.codes = Buffer((2,), 0, np.int8)

    model = Counter().init(0)
    for value in (300, 0.5, np.nan):
        with pytest.raises(ValueError, match=r"codes is int8 in the model, and .* does not fit"):
            model.load({"codes": np.array([1.0, value])})
    assert model.load({"codes": np.array([1.0, -128.0])}).codes.data.tolist() == [1, -128]
