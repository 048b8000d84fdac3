"""There is one optimizer, the user's: what changes in it while training acts in every method."""

from __future__ import annotations

import copy
from functools import cache, partial

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam, AdamW, Optimizer
from minidist.parallel import METHODS, LocalSGD, Pipeline
from minidist.parallel.gradient_sync import GradientSync
from minidist.parallel.method import Unsupported
from minidist.parallel.pipeline.layout import Layout
from minidist.parallel.settings import options_of
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


# Settings of the method itself


class Sharper(CrossEntropy):
    """Another loss."""

    def forward(self, output, targets, count=None):
        return super().forward(output * 3.0, targets, count)


LATER = [("clip", 0.02), ("loss", Sharper()), ("microbatches", 3)]


def set_later(key, name, value, ranks):
    """Losses, parameters, and what was sent and predicted, if a setting changes after a step."""

    def run(comm):
        with defaults(dtype="float64"):
            model, optimizer = mlp(SETTING.widths), SGD(0.1, momentum=0.9)
            method = METHODS[key](model, CrossEntropy(), optimizer, comm, SETTING.seed)
            batches, losses, sent = Batches(SETTING.dataset, 13, 3), [], comm.trace.sent
            for step in range(4):
                if step == 1:
                    setattr(method, name, value)
                before = sent.messages, sent.nbytes
                cost = method.cost(batches[step], comm.machine)  # of the next step
                losses.append(method.step(batches[step]))
                got = sent.messages - before[0], sent.nbytes - before[1]
                assert got == (cost.messages[comm.rank], cost.nbytes[comm.rank]), step
            return losses, method.parameters()

    return launch(run, ranks, LocalWorld())


@pytest.mark.parametrize(("name", "value"), LATER, ids=["clip", "loss", "microbatches"])
@pytest.mark.parametrize("key", [key for key in METHODS if key != "serial"])
def test_a_setting_of_a_method_acts_when_it_changes_or_is_refused(key, name, value):
    kind = getattr(METHODS[key], "func", METHODS[key])
    if name not in kind.changeable:
        with pytest.raises(AttributeError, match=f"^{kind.__name__}.{name} was used when it was"):
            set_later(key, name, value, 2)
        return
    if name in kind.refuses:
        with pytest.raises(Unsupported, match=f"^{kind.__name__}: {name} is not supported"):
            set_later(key, name, value, 2)
        return
    results = set_later(key, name, value, 3)
    assert all(losses == results[0][0] for losses, _ in results)
    if not kind.exact:
        return
    ((losses, parameters),) = set_later("serial", name, value, 1)
    assert results[0][0] == pytest.approx(losses, rel=1e-12)
    for parameter, values in parameters.items():
        np.testing.assert_allclose(results[0][1][parameter], values, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("key", METHODS)
def test_no_option_of_a_constructor_is_ignored_later(key):
    """Each can be assigned and acts (the test before), or is refused by name."""

    def run(comm):
        method = METHODS[key](mlp(SETTING.widths), CrossEntropy(), SGD(0.1), comm)
        names = options_of(type(method))
        assert {"model", "loss", "optimizer", "comm", "seed", "clip", "microbatches"} <= names
        for name in names - method.changeable:
            with pytest.raises(AttributeError, match=f"{name} was used when it was made"):
                setattr(method, name, None)
        for name, nonsense in [("clip", -1.0), ("microbatches", 0), ("every", 0)]:
            if name in method.changeable:
                with pytest.raises(ValueError, match=r"positive|at least one|1 or more"):
                    setattr(method, name, nonsense)

    launch(run, 1 if key == "serial" else 2, LocalWorld())


def test_how_often_ranks_meet_may_change():
    """Averaged after every step from now on: with plain SGD that is serial training again."""

    def run(comm, later):
        with defaults(dtype="float64"):
            options = {"every": 50} if later else {"every": 1}
            model = mlp(SETTING.widths)
            method = LocalSGD(model, CrossEntropy(), SGD(0.1), comm, 3, **options)
            method.every = 1
            losses = [method.step(Batches(SETTING.dataset, 13, 3)[step]) for step in range(3)]
            return losses, method.parameters()

    later, first = (launch(partial(run, later=later), 3, LocalWorld())[0] for later in (1, 0))
    assert later[0] == first[0]


def test_a_part_that_sums_gradients_refuses_what_it_would_ignore():
    def run(comm):
        method = METHODS["data_parallel/ring"](mlp((12, 5)), CrossEntropy(), SGD(0.1), comm)
        method.sync.algorithm = "central"  # read in every step
        buckets = METHODS["data_parallel/overlapped"](
            mlp((12, 5)), CrossEntropy(), SGD(0.1), comm
        ).sync
        with pytest.raises(AttributeError, match=r"Buckets\.bucket_mb was used when it was made"):
            buckets.bucket_mb = 1.0

    launch(run, 2, LocalWorld())


def keeps_the_first_programs(monkeypatch):
    monkeypatch.setattr(Layout, "clipped", lambda self, clips: self)


def nothing_follows(monkeypatch):
    monkeypatch.setattr(Pipeline, "changed", lambda self, name: None)


def prices_stay(monkeypatch):
    monkeypatch.setattr(GradientSync, "clips", lambda self, clips: None)


@pytest.mark.parametrize(
    ("mutant", "key"),
    [
        (keeps_the_first_programs, "pipeline/1f1b"),
        (nothing_follows, "pipeline/gpipe"),
        (prices_stay, "zero/3"),
        (prices_stay, "zero/1"),
    ],
)
def test_a_setting_that_does_not_act_is_rejected(mutant, key, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_setting_of_a_method_acts_when_it_changes_or_is_refused(key, "clip", 0.02)
