"""On a real GPU: every collective and every method, on ranks in one process.

The checks are those of tests/collectives and tests/parallel. Skipped without a GPU or greenlet.
"""

import on_device
import pytest

pytest.importorskip("greenlet")

from claims import all_collectives, data

from minidist import LocalWorld, launch
from minidist.engine import array as arrays
from minidist.parallel import METHODS
from tests.parallel.checks import check_device

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("key", sorted(METHODS.keys() - {"data_parallel/symmetric"}))
def test_methods(device, key):
    check_device(key, device, ranks=3)


@pytest.mark.parametrize("collective", all_collectives()[1:], ids=str)  # symmetric: on the host
def test_collectives(device, collective):
    def on(device):
        def rank(comm):
            array = arrays.to_device(data(comm.rank, 7, "float64", "sum"), device)
            collective.run(comm, array, "sum")
            assert arrays.module_of(array) is arrays.module(device)
            return arrays.to_host(array)

        return launch(rank, 3, LocalWorld())

    for got, expected in zip(on(device), on("cpu"), strict=True):
        on_device.assert_near(got, expected, 1e-14)
