"""There is one optimizer, the user's: what changes in it while training acts in every method."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import Adam, AdamW, Optimizer
from minidist.parallel import METHODS
from tests.parallel.checks import Setting, is_exact

SETTING = Setting(widths=(12, 7, 6, 6, 5), batch=13)
BEFORE, AFTER = 2, 2  # steps with the first settings, and with those after
DECAYS = {"3.*": {"lr": 0.03}, "*bias": {"weight_decay": 0.0}}


class Rate:
    """A schedule that the user holds, and changes."""

    def __init__(self):
        self.now = 0.01

    def __call__(self, step):
        return self.now


def nothing(optimizer):
    """The settings stay."""


def rate(optimizer):
    optimizer.lr = 0.05


def schedule(optimizer):
    optimizer.lr.now = 0.05


def decay(optimizer):
    optimizer.weight_decay = 0.5


def betas(optimizer):
    optimizer.betas = (0.5, 0.6)


def groups(optimizer):
    optimizer.groups |= DECAYS


CHANGES = [nothing, rate, schedule, decay, betas, groups]


def trained(key, change, ranks):
    """Losses and the last parameters of every rank."""

    def run(comm):
        with defaults(dtype="float64"):
            lr = Rate() if change is schedule else 0.01
            optimizer = AdamW(lr, weight_decay=0.1)
            model = mlp(SETTING.widths)
            method = METHODS[key](model, CrossEntropy(), optimizer, comm, SETTING.seed)
            assert method.optimizer is optimizer
            batches, losses = Batches(SETTING.dataset, SETTING.batch, SETTING.seed), []
            for step in range(BEFORE + AFTER):
                if step == BEFORE:
                    change(optimizer)  # on every rank alike
                losses.append(method.step(batches[step]))
            return losses, method.parameters()

    return launch(run, ranks, LocalWorld())


@cache
def serial(change):
    return trained("serial", change, 1)[0]


def check_acts(key, change):
    expected = serial(change)
    before = serial(nothing)
    assert expected[0][-1] != before[0][-1]
    results = trained(key, change, 3)
    for losses, parameters in results:
        assert losses == results[0][0]
        for name, values in expected[1].items():
            gap = np.abs(parameters[name] - values).max() / np.abs(values).max()
            assert gap < 1e-10, f"{key}: {name} differs from serial by {gap}"


EXACT = [key for key in METHODS if is_exact(key) and key != "serial"]
PAIRS = [
    *((key, rate) for key in EXACT),  # and of the families' other changes:
    *((key, change) for key in EXACT if key[-1] in "3fgd2" for change in CHANGES[2:]),
]


@pytest.mark.parametrize(("key", "change"), PAIRS)
def test_a_change_between_two_steps_acts_as_in_serial_training(key, change):
    check_acts(key, change)


@pytest.mark.parametrize("key", [key for key in METHODS if not is_exact(key)])
def test_a_change_acts_in_a_method_that_is_not_exact(key):
    """A number that changes and a schedule that changes are the same, and not as before."""
    by_number, by_schedule, unchanged = (trained(key, c, 3) for c in (rate, schedule, nothing))
    for one, other, still in zip(by_number, by_schedule, unchanged, strict=True):
        for name, values in one[1].items():
            assert np.array_equal(values, other[1][name])
            assert not np.allclose(values, still[1][name], rtol=1e-4)


@pytest.mark.parametrize("key", ["zero/1", "zero/2", "zero/3", "parameter_server/bsp_sharded"])
def test_groups_are_found_in_every_shard(key, monkeypatch):
    """From the first step on, and with a rule that keeps state."""

    def run(comm, key):
        with defaults(dtype="float64"):
            optimizer = Adam(0.01, groups=DECAYS, weight_decay=0.2)
            method = METHODS[key](mlp(SETTING.widths), CrossEntropy(), optimizer, comm, 3)
            for step in range(3):
                method.step(Batches(SETTING.dataset, 13, 3)[step])
            return method.parameters()

    (expected,) = launch(lambda comm: run(comm, "serial"), 1, LocalWorld())
    for got in launch(lambda comm: run(comm, key), 4, LocalWorld()):
        for name, values in expected.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("key", METHODS)
def test_a_group_without_a_parameter_is_refused(key):
    def run(comm):
        optimizer = Adam(0.01, groups={"9.*": {"lr": 0.1}})
        METHODS[key](mlp(SETTING.widths), CrossEntropy(), optimizer, comm)

    with pytest.raises(ValueError, match=r"Adam: no parameter's name matches the group '9\.\*'"):
        launch(run, 1, LocalWorld())


# Mutants


def steps_a_copy(monkeypatch):
    step = Optimizer.step_parts

    def copied(self, items):
        kept = vars(self).setdefault("_copy", None) or copy.copy(self)
        vars(self)["_copy"] = kept
        kept.parts, kept.steps = self.parts, self.steps
        step(kept, items)
        self.steps = kept.steps

    monkeypatch.setattr(Optimizer, "step_parts", copied)


def counts_a_step_for_each_part(monkeypatch):
    step = Optimizer.step_parts

    def apart(self, items):
        for item in items:
            step(self, [item])

    monkeypatch.setattr(Optimizer, "step_parts", apart)


@pytest.mark.parametrize(
    ("mutant", "change"),
    [(steps_a_copy, rate), (steps_a_copy, decay), (counts_a_step_for_each_part, rate)],
)
def test_mutant_is_rejected(mutant, change, monkeypatch):
    serial(change)
    serial(nothing)
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_acts("zero/2", change)
