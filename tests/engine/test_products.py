"""Products of matrices on the host."""

import numpy as np
import pytest

from minidist.engine.products import product_of, product_of_transposed


@pytest.mark.parametrize("rows", [0, 1, 8, 9, 31, 32, 33, 200])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (128, 128), (127, 129), (9000, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_with_a_transposed_matrix(rows, inputs, outputs, dtype):
    rng = np.random.default_rng(rows)
    a, b = rng.standard_normal((rows, outputs)), rng.standard_normal((inputs, outputs))
    found = product_of_transposed(np, a.astype(dtype), b.astype(dtype))
    assert found.dtype == dtype and found.shape == (rows, inputs) and found.flags.c_contiguous
    np.testing.assert_allclose(found, np.einsum("mk,nk->mn", a, b), rtol=0, atol=1e-3)


def test_a_product_fills_the_memory_that_it_is_given():
    a, b, out = np.ones((2, 3)), np.ones((3, 4)), np.zeros((2, 4))
    assert product_of(np, a, b, out) is out
    assert (out == 3).all() and (product_of(np, a, b) == 3).all()
