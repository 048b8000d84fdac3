"""On a real GPU: ops, models, optimizers, training aids and every method give what the host gives.

The checks are those that the strict stand-in passes on every machine (tests/cases.py,
tests/on_device.py, tests/parallel/checks.py). Skipped without a GPU.
"""

import numpy as np
import on_device
import pytest
from cases import CASES, assert_same_on, run
from claims import all_collectives, data

from minidist import LocalWorld, launch, ops
from minidist.bench import engine
from minidist.engine import array as arrays
from minidist.engine.tensor import Tensor
from minidist.parallel import METHODS
from tests.parallel.checks import check_device

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    try:
        arrays.module("cuda")
    except arrays.DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", CASES)
def test_every_op_gives_what_the_host_gives(name):
    assert_same_on("cuda", name, tolerance=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_promoted(name, dtype):
    for array in run(name, "cuda", dtype):
        assert array.dtype == dtype, f"{name}: {array.dtype} from {dtype}"


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("name", on_device.OPTIMIZERS)
def test_optimizers(name, mixed):
    on_device.check_optimizer("cuda", name, mixed)


@pytest.mark.parametrize("name", on_device.MODELS)
def test_training(name):
    on_device.check_training("cuda", name)


def test_sampling_and_metrics():
    on_device.check_evaluation("cuda")


def test_mixed_precision():
    on_device.check_mixed_precision("cuda")


def test_training_aids():
    on_device.check_training_aids("cuda")


@pytest.mark.parametrize("key", sorted(METHODS.keys() - {"data_parallel/symmetric"}))
def test_methods(key):
    check_device(key, "cuda", ranks=3)


@pytest.mark.parametrize("collective", all_collectives()[1:], ids=str)  # symmetric: on the host
def test_collectives(collective):
    def on(device):
        def rank(comm):
            array = arrays.to_device(data(comm.rank, 7, "float64", "sum"), device)
            collective.run(comm, array, "sum")
            assert arrays.module_of(array) is arrays.module(device)
            return arrays.to_host(array)

        return launch(rank, 3, LocalWorld())

    for got, expected in zip(on("cuda"), on("cpu"), strict=True):
        on_device.assert_near(got, expected, 1e-14)


def test_host_and_gpu_arrays_do_not_mix():
    there = Tensor(arrays.to_device(np.ones((2, 2)), "cuda"))
    for op in (ops.add, ops.matmul, ops.linear):
        with pytest.raises(arrays.DeviceError, match="numpy"):
            op(Tensor(np.ones((2, 2))), there)


def test_the_bench_measures_steps_and_memory(monkeypatch):
    monkeypatch.setattr(engine, "peers", lambda device: {})
    (row,) = engine.measure_all("cuda", 0.0, "MLP 32")["cases"]
    assert row["minidist_ms"] > 0 and row["peak_bytes"] > 0
