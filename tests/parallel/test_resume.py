"""Saved on some ranks, loaded on others: the curve goes on as if nothing had happened."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults
from minidist.models import gpt
from minidist.nn import CrossEntropy
from minidist.optim import LAMB, LARS, SGD, AdaGrad, Adam, AdamW, MixedPrecision, Nesterov, RMSprop
from minidist.parallel import METHODS
from minidist.parallel.state import OptimizerShard
from tests.parallel.checks import Setting, make, train

KEYS = ["serial", "data_parallel/ring", "data_parallel/overlapped", "zero/1", "zero/2", "zero/3"]
OPTIMIZERS = {
    "sgd": lambda: SGD(0.1),
    "nesterov": lambda: Nesterov(0.05),
    "adagrad": lambda: AdaGrad(0.05),
    "rmsprop": lambda: RMSprop(1e-2),
    # A schedule: the rate depends on the steps already made.
    "adam": lambda: Adam(lambda step: 1e-2 / (step + 1)),
    "adamw": lambda: AdamW(1e-2, exclude=("*bias",)),
    "lars": lambda: LARS(1.0, weight_decay=1e-3, trust=0.02),
    "lamb": lambda: LAMB(1e-2),
}


def saved(key, ranks, setting, steps=3):
    """What every rank's ``state()`` gives after some steps."""

    def run(comm):
        with defaults(dtype=setting.dtype):
            method = make(key, comm, setting)
            for step in range(steps):
                method.step(Batches(setting.dataset, setting.batch, setting.seed)[step])
            return method.state()

    return launch(run, ranks, LocalWorld())


def resumed(key, ranks, setting, state, start=3):
    """Losses and last parameters of a method that loads the state and goes on."""

    def run(comm):
        with defaults(dtype=setting.dtype):
            method = make(key, comm, setting)
            method.load(state)
            batches = Batches(setting.dataset, setting.batch, setting.seed)
            losses = [method.step(batches[step]) for step in range(start, setting.steps)]
            return losses, method.parameters()

    return launch(run, ranks, LocalWorld())


def unbroken(key, ranks, setting):
    def run(comm):
        with defaults(dtype=setting.dtype):
            return train(make(key, comm, setting), setting)

    return launch(run, ranks, LocalWorld())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("key", KEYS)
def test_saved_on_4_ranks_and_loaded_on_3_is_the_same_curve(key, optimizer):
    setting = Setting(optimizer=OPTIMIZERS[optimizer])
    ((losses, states),) = unbroken("serial", 1, setting)
    many, few = (1, 1) if key == "serial" else (4, 3)
    state, *others = saved(key, many, setting)
    for other in others:
        assert list(other) == list(state)
        assert all(np.array_equal(other[name], state[name]) for name in state)
    for got, parameters in resumed(key, few, setting, state):
        assert got == pytest.approx(losses[3:], rel=1e-12)
        for name, expected in states[-1].items():
            gap = np.abs(parameters[name] - expected).max() / np.abs(expected).max()
            assert gap < 1e-12, f"{name}: {gap}"


@pytest.mark.parametrize("to", KEYS)
@pytest.mark.parametrize("by", KEYS)
def test_what_one_method_saved_every_other_can_load(by, to):
    setting = Setting(optimizer=OPTIMIZERS["adam"])
    ((losses, _),) = unbroken("serial", 1, setting)
    state = saved(by, 1 if by == "serial" else 3, setting)[0]
    for got, _ in resumed(to, 1 if to == "serial" else 2, setting, state):
        assert got == pytest.approx(losses[3:], rel=1e-12)


@pytest.mark.parametrize("key", KEYS)
def test_on_as_many_ranks_it_is_the_same_run_bitwise(key):
    setting = Setting(optimizer=OPTIMIZERS["lamb"], dtype="float32")
    ranks = 1 if key == "serial" else 3
    (losses, states), *_ = unbroken(key, ranks, setting)
    got, parameters = resumed(key, ranks, setting, saved(key, ranks, setting)[0])[0]
    assert got == losses[3:]
    assert all(np.array_equal(parameters[name], states[-1][name]) for name in parameters)


@pytest.mark.parametrize("key", ["zero/2", "zero/3"])
def test_tables_that_blocks_share_are_saved_once(key):
    random = np.random.default_rng(3)
    text = random.integers(0, 11, (24, 7))
    dataset = Dataset("tokens", text[:, :-1], text[:, 1:], 11)

    def run(comm, key, start, stop, state=None):
        with defaults(dtype="float64"):
            model = gpt(11, context=6, width=8, layers=2, heads=2)
            method = METHODS[key](model, CrossEntropy(), AdamW(1e-2), comm, 5)
            if state is not None:
                method.load(state)
            losses = [method.step(Batches(dataset, 7, 0)[step]) for step in range(start, stop)]
            return losses, method.state()

    ((losses, expected),) = launch(partial(run, key="serial", start=0, stop=4), 1, LocalWorld())
    _, state = launch(partial(run, key=key, start=0, stop=2), 4, LocalWorld())[0]
    assert state.keys() == expected.keys()
    got, _ = launch(partial(run, key=key, start=2, stop=4, state=state), 3, LocalWorld())[0]
    assert got == pytest.approx(losses[2:], rel=1e-12)


@pytest.mark.parametrize("key", KEYS)
def test_a_state_from_before_the_first_step_is_where_training_begins(key):
    setting, ranks = Setting(optimizer=OPTIMIZERS["adam"]), 1 if key == "serial" else 3
    ((losses, _),) = unbroken("serial", 1, setting)
    state = saved(key, ranks, setting, steps=0)[0]
    assert resumed(key, ranks, setting, state, start=0)[0][0] == pytest.approx(losses, rel=1e-12)


def test_another_optimizers_state_is_refused():
    state = saved("zero/1", 2, Setting(optimizer=OPTIMIZERS["sgd"]))[0]
    with pytest.raises(KeyError, match=r"optimizer/mean/1\.weight"):
        resumed("zero/1", 2, Setting(optimizer=OPTIMIZERS["adam"]), state)


@pytest.mark.parametrize("key", KEYS)
def test_mixed_precision_is_refused_until_methods_scale_the_loss(key):
    """The rule divides gradients by a scale that no method has multiplied the loss by."""
    with pytest.raises(TypeError, match="MixedPrecision"):
        launch(
            lambda comm: make(key, comm, Setting(optimizer=lambda: MixedPrecision(SGD(0.1)))),
            1,
            LocalWorld(),
        )


def every_rank_takes_the_first_shard(monkeypatch):
    def wrong(self, comm, by_name, cut=OptimizerShard.cut):
        return cut(self, type("First", (), {"rank": 0}), by_name)[: self.data.size]

    monkeypatch.setattr(OptimizerShard, "cut", wrong)


def nobody_gathers(monkeypatch):
    def wrong(self, comm, array):
        whole = np.zeros(self.shards[-1].stop, array.dtype)
        whole[self.shards[comm.rank]] = array
        return whole

    monkeypatch.setattr(OptimizerShard, "gather", wrong)


@pytest.mark.parametrize("mutant", [every_rank_takes_the_first_shard, nobody_gathers])
def test_mutant_is_rejected(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        test_saved_on_4_ranks_and_loaded_on_3_is_the_same_curve("zero/2", "adam")
