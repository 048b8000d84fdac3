"""Clipping by the norm of the *whole* gradient: every method that can, and what it costs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.collectives import ring
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import LAMB, SGD
from minidist.optim.clip import global_norm
from minidist.parallel import (
    METHODS,
    Compressed,
    DataParallel,
    Overlapped,
    PerParameter,
    Serial,
    Zero1,
    Zero2,
    Zero3,
)
from minidist.parallel.data_parallel.all_reduce import AllReduce
from minidist.parallel.gradient_compression.compressors import PowerSGD, RandomK, TopK
from minidist.parallel.zero.stage1 import Sharded
from tests.pairs import pairs
from tests.parallel.checks import Setting, check_predictions, make, train

LIMIT = 0.02
CLIPPED = {
    "per parameter": PerParameter,
    "flat": DataParallel,
    "flat, accumulated": partial(DataParallel, microbatches=3),
    "overlapped": partial(Overlapped, bucket_mb=5e-4, last_mb=0),
    "overlapped, accumulated": partial(Overlapped, bucket_mb=5e-4, last_mb=0, microbatches=2),
    "zero/1": Zero1,
    "zero/2": Zero2,
    "zero/3": Zero3,
    "top_k of everything": partial(Compressed, compressor=partial(TopK, 1.0)),
    "random_k of everything": partial(Compressed, compressor=partial(RandomK, 1.0)),
    "power_sgd of full rank": partial(Compressed, compressor=partial(PowerSGD, 99)),
}
OPTIMIZERS = {"momentum": lambda: SGD(0.1, momentum=0.9), "lamb": lambda: LAMB(1e-2)}


@pytest.fixture(autouse=True)
def clipped(monkeypatch):
    for key, kind in CLIPPED.items():
        monkeypatch.setitem(METHODS, f"clipped {key}", partial(kind, clip=LIMIT))


def expected(setting, clip):
    def run(comm):
        with defaults(dtype="float64"):
            optimizer = setting.optimizer()
            model = mlp(setting.widths)
            return train(
                Serial(model, CrossEntropy(), optimizer, comm, setting.seed, clip=clip), setting
            )

    return LocalWorld().run(run, 1)[0]


def check(key, ranks, batch, optimizer="momentum"):
    setting = Setting(optimizer=OPTIMIZERS[optimizer], batch=batch)
    losses, states = expected(setting, LIMIT)
    free, _ = expected(setting, None)
    assert losses != pytest.approx(free, rel=1e-6), "nothing was clipped"

    launch(lambda comm: check_clipped(comm, key, setting, losses, states), ranks, LocalWorld())


def check_clipped(comm, key, setting, losses, states):
    check_predictions(comm, f"clipped {key}", setting)
    with defaults(dtype="float64"):
        got, got_states = train(make(f"clipped {key}", comm, setting), setting)
    assert got == pytest.approx(losses, rel=1e-12)
    for name, values in states[-1].items():
        gap = np.abs(got_states[-1][name] - values).max() / np.abs(values).max()
        assert gap < 1e-11, f"{name}: {gap}"


@pytest.mark.parametrize(("key", "ranks", "batch"), pairs(CLIPPED, [1, 2, 3, 4], [13, 3]))
def test_clipped_as_serial_and_as_its_formula_says(key, ranks, batch):
    check(key, ranks, batch)


@pytest.mark.parametrize("key", ["zero/1", "zero/2", "zero/3"])
def test_with_layer_norms_of_shards_as_well(key):
    check(key, 3, 13, "lamb")


def by_the_norm_of_the_own_shard(monkeypatch):
    monkeypatch.setattr(Sharded, "clip", lambda self, limit: [
        np.multiply(unit.grad, min(1, LIMIT / global_norm(unit.grad)), out=unit.grad)
        for unit in self.units
    ])  # fmt: skip


def a_norm_nobody_sums(monkeypatch):
    monkeypatch.setattr(Sharded, "sum_numbers", lambda self, numbers: float(numbers[0]))


def before_the_sum(monkeypatch):
    """Each rank clips what it has found itself."""

    def wrong(self, comm, array):
        array *= min(1, LIMIT / global_norm(array[:-1]))
        ring.all_reduce(comm, array)

    monkeypatch.setattr(AllReduce, "all_reduce", wrong)


@pytest.mark.parametrize(
    ("key", "mutant"),
    [
        ("zero/1", by_the_norm_of_the_own_shard),
        ("zero/3", by_the_norm_of_the_own_shard),
        ("zero/2", a_norm_nobody_sums),
        ("flat", before_the_sum),
    ],
)
def test_mutant_is_rejected(key, mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check(key, 3, 13)
