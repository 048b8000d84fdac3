"""The machine model: α + nβ, nγ, and errors for machines that cannot be."""

from __future__ import annotations

import pytest

from minidist.comm import Machine


def test_message_reduce_compute():
    machine = Machine("test", 2.0, 10.0, 4.0, 5.0, slowdown={1: 2.0})
    assert machine.message(0) == 2.0
    assert machine.message(30) == 5.0
    assert machine.reduce(8) == 2.0
    assert machine.compute(10) == 2.0
    assert machine.compute(10, rank=1) == 4.0


@pytest.mark.parametrize("name", ("bandwidth", "reduce_bandwidth", "flops"))
def test_speeds_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, not 0"):
        Machine(**{name: 0})


def test_latency_must_not_be_negative():
    with pytest.raises(ValueError, match="latency must not be negative: -1"):
        Machine(latency=-1)
