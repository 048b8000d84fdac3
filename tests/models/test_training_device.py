"""Optimizers, models, metrics and training aids on a stand-in that refuses to mix with NumPy."""

import numpy as np
import on_device
import pytest
import strict

from minidist.engine import array


@pytest.fixture(autouse=True)
def strict_device(monkeypatch):
    monkeypatch.setitem(array.DEVICES, "strict", lambda: strict)


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("name", on_device.OPTIMIZERS)
def test_optimizer_equals_the_host(name, mixed):
    on_device.check_optimizer("strict", name, mixed)


@pytest.mark.parametrize("name", on_device.MODELS)
def test_training_gives_what_the_host_gives(name):
    on_device.check_training("strict", name)


def test_sampling_and_metrics():
    on_device.check_evaluation("strict")


def test_mixed_precision():
    on_device.check_mixed_precision("strict")


def test_training_aids():
    on_device.check_training_aids("strict")


def test_a_fused_function_is_noted_once_and_takes_its_numbers_each_time():
    calls = []

    @array.fused
    def scaled(xp, x, number, out):
        calls.append(number)
        out[...] = xp.tanh(x) * number
        out -= x

    x, out = strict.asarray([1.0, 2.0]), strict.asarray([0.0, 0.0])
    for number in (2.0, 3.0):
        scaled(strict, x, number, out)
        expected = np.tanh([1.0, 2.0]) * number - [1.0, 2.0]
        on_device.assert_near(strict.asnumpy(out), expected, 1e-15)
    assert len(calls) == 1


def test_what_a_fused_function_may_not_do():
    x = strict.asarray([1.0, 2.0])
    for wrong in (
        lambda xp, x: x.sum(),
        lambda xp, x: x[:1],
        lambda xp, x: xp.where(x > 0, x, 0.0),
        lambda xp, x: x if x > 0 else -x,
        lambda xp, x: x + strict.asarray([1.0, 2.0]),
    ):
        wrong.__name__ = "wrong"
        with pytest.raises((TypeError, AttributeError, AssertionError)):
            array.fused(wrong)(strict, x)
