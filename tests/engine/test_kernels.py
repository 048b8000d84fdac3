"""Every CUDA kernel does what the NumPy lines beside it do (here compiled as C++)."""

import kernel_examples
import numpy as np
import pytest
import strict
from cuda_on_host import library

from minidist.engine import array as arrays
from minidist.engine.kernels import KERNELS, kernel
from minidist.engine.products import product


@pytest.fixture(autouse=True)
def strict_device(monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)


def test_every_kernel_has_an_example():
    assert sorted(KERNELS) == sorted(kernel_examples.EXAMPLES)


@pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(kernel_examples.EXAMPLES))
def test_kernel_equals_its_numpy_lines(name, dtype):
    strict.counts.clear()
    kernel_examples.check("strict", name, dtype)
    assert strict.counts[name] == strict.counts["kernels"] > 0, "not as one kernel"


def test_float16_runs_the_lines_where_there_is_no_compiler_for_it():
    strict.counts.clear()
    kernel_examples.check("strict", "normalise", "float16")
    assert strict.counts["normalise"] == len(kernel_examples.EXAMPLES["normalise"])  # as a GPU's


def doubled(xp, out, x):
    xp.multiply(x, 2, out=out)


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setattr("minidist.engine.kernels.KERNELS", dict(KERNELS))
    return kernel("T *out, const T *x", "out[i] = 2 * x[i];")(doubled)


def test_arrays_that_the_text_does_not_declare_run_the_lines(double):
    x, out = strict.asarray(np.arange(6)), strict.asarray(np.zeros(6, int))
    double(strict, out, x)  # integers: no float, half or double
    np.testing.assert_array_equal(strict.asnumpy(out), 2 * np.arange(6))
    out = strict.asarray(np.zeros((2, 3)))
    double(strict, out.T, strict.asarray(np.ones((3, 2))))  # what is filled is not contiguous
    np.testing.assert_array_equal(strict.asnumpy(out), 2)
    double(strict, out, strict.asarray(np.ones((2, 3), np.float32)))  # two dtypes
    np.testing.assert_array_equal(strict.asnumpy(out), 2)


def test_a_kernel_says_what_it_cannot_read():
    with pytest.raises(ValueError, match="cannot read the argument"):
        kernel("T& x", "")(doubled)
    with pytest.raises(ValueError, match="over must be one of"):
        kernel("T *x", "", over="columms")(doubled)


def test_a_kernel_over_points_takes_arrays_of_any_one_order():
    random = np.random.default_rng(0)
    y, grad = (random.standard_normal((2, 4, 5, 3)) for _ in range(2))
    expected = np.where(y > 0, grad, 0).transpose(0, 3, 1, 2)

    def run(y, grad):
        strict.counts.clear()
        out = strict.empty_like(y)
        KERNELS["relu_backward"].launch(strict, (out, grad, y))
        np.testing.assert_array_equal(strict.asnumpy(out), expected)
        return strict.counts["relu_backward"]

    last = strict.asarray(y).transpose(0, 3, 1, 2)  # channels last in memory
    assert run(last, strict.asarray(grad).transpose(0, 3, 1, 2)) == 1
    other_order = strict.asarray(np.ascontiguousarray(grad.transpose(0, 3, 1, 2)))
    assert run(last, other_order) == 0, "two orders: the lines"
    gaps = strict.asarray(np.repeat(y, 2, axis=0))[::2].transpose(0, 3, 1, 2)
    assert run(gaps, strict.asarray(grad).transpose(0, 3, 1, 2)) == 0


def test_a_product_has_its_own_scale_however_many_there_were():
    """cuBLAS reads the scale from host memory, which must still hold it."""
    a, b = (strict.asarray(np.random.default_rng(i).standard_normal((3, 3))) for i in (0, 1))
    expected = strict.asnumpy(a) @ strict.asnumpy(b)
    out = strict.empty((3, 3))
    for number in range(700):
        for scale in (0.125, 1 + number / 7):  # the first is asked for again and again
            product(strict, a, b, out, scale)
            np.testing.assert_allclose(strict.asnumpy(out), scale * expected, rtol=1e-12)
