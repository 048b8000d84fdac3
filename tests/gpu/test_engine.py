"""On a real GPU: kernels, ops, models, optimizers and training aids give what the host gives.

The checks are those that the strict stand-in passes on every machine (tests/cases.py,
tests/kernel_examples.py, tests/on_device.py). Skipped without a GPU. Needs no MPI and no greenlet.
"""

import kernel_examples
import numpy as np
import on_device
import pytest
from cases import CASES, assert_same_on, run

from minidist import ops
from minidist.bench import engine
from minidist.engine import array as arrays
from minidist.engine.tensor import Tensor

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", sorted(kernel_examples.EXAMPLES))
def test_kernel_equals_its_numpy_lines(device, name, dtype):
    kernel_examples.check(device, name, dtype)


@pytest.mark.parametrize("name", CASES)
def test_every_op_gives_what_the_host_gives(device, name):
    assert_same_on(device, name, tolerance=1e-10)


@pytest.mark.parametrize("name", on_device.MODELS)
def test_training(device, name):
    on_device.check_training(device, name)


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("name", on_device.OPTIMIZERS)
def test_optimizers(device, name, mixed):
    on_device.check_optimizer(device, name, mixed)


def test_mixed_precision(device):
    on_device.check_mixed_precision(device)


def test_training_aids(device):
    on_device.check_training_aids(device)


def test_sampling_and_metrics(device):
    on_device.check_evaluation(device)


def test_a_repeated_run_gives_the_same_bits(device):
    states = [on_device.train_gpt(device) for _ in range(2)]
    for name, values in states[0].items():
        np.testing.assert_array_equal(values, states[1][name], err_msg=name)


def test_a_target_or_token_out_of_range_gives_nan(device):
    """A GPU does not stop to look at every number: the loss tells."""
    xp = arrays.module(device)
    logits = Tensor(xp.zeros((2, 3), np.float32), requires_grad=True)
    loss = ops.cross_entropy(logits, xp.asarray([0, 3]))
    loss.backward()
    assert np.isnan(loss.item())
    np.testing.assert_array_equal(np.isnan(arrays.to_host(logits.grad)), [[False] * 3, [True] * 3])
    rows = ops.embedding(xp.asarray([1, -1]), Tensor(xp.ones((2, 2), np.float32))).numpy()
    np.testing.assert_array_equal(np.isnan(rows), [[False] * 2, [True] * 2])


def test_clipping_leaves_the_norm_on_the_device(device):
    on_device.check_clipping(device)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_promoted(device, name, dtype):
    for array in run(name, device, dtype):
        assert array.dtype == dtype, f"{name}: {array.dtype} from {dtype}"


def test_host_and_device_arrays_do_not_mix(device):
    there = Tensor(arrays.to_device(np.ones((2, 2)), device))
    for op in (ops.add, ops.matmul, ops.linear):
        with pytest.raises(arrays.DeviceError, match="numpy"):
            op(Tensor(np.ones((2, 2))), there)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_bench_measures_steps_and_memory(device, dtype):
    row = engine.measure(engine.cases()[0], device, 0.0, dtype=dtype)
    assert row["minidist_ms"] > 0 and row["peak_bytes"] > 0
