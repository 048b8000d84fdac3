"""Every method on a device that refuses to mix with NumPy gives what it gives on the host."""

import pytest
import strict

from minidist.comm import CommError
from minidist.engine import array as arrays
from minidist.parallel import METHODS
from tests.parallel.checks import check_device


@pytest.fixture(autouse=True)
def strict_device(monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("key", sorted(METHODS.keys() - {"data_parallel/symmetric"}))
def test_gives_what_the_host_gives(key, ranks):
    check_device(key, "strict", ranks)


def test_symmetric_memory_is_on_the_host():
    with pytest.raises(CommError, match="needs gradients in host memory"):
        check_device("data_parallel/symmetric", "strict", 2)
