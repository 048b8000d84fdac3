"""Frozen parameters under every method: never changed, never sent, and the rest as in serial."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import LARS, SGD, Adam
from minidist.parallel import METHODS, DataParallel, Serial
from tests.parallel.checks import Setting, check_equals_serial, check_predictions, is_exact, make

# The first layer whole, so that the backward ends before it; and half of a later one.
FROZEN = Setting(
    frozen=("1.*", "5.weight"),
    steps=3,
    optimizer=lambda: SGD(0.1, momentum=0.9, weight_decay=0.1),
)


def same(got, expected):
    return got.keys() == expected.keys() and all((got[n] == expected[n]).all() for n in got)


@pytest.mark.parametrize("key", METHODS)
def test_frozen_parameters_stay_and_the_rest_equals_serial(key):
    def run(comm):
        if is_exact(key):
            check_equals_serial(comm, key, FROZEN)
        check_predictions(comm, key, FROZEN)
        method, batches = make(key, comm, FROZEN), Batches(FROZEN.dataset, 13, FROZEN.seed)
        start = method.parameters()
        assert list(start) == list(mlp(FROZEN.widths).named_parameters())
        for step in range(4):  # the first in which all of them meet
            method.step(batches[step])
        after, saved = method.parameters(), method.state()
        for name, values in start.items():
            stays = name in ("1.weight", "1.bias", "5.weight")
            assert (after[name] == values).all() == stays, f"{key}: {name}"
            assert f"optimizer/velocity/{name}" not in saved or not stays
        other = make(key, comm, FROZEN)
        changed = {
            n: v + 1 if n.startswith("parameters/1.") else v for n, v in saved.items()
        }  # a state brings frozen values along
        other.load(changed)
        got = other.parameters()
        np.testing.assert_array_equal(got["1.weight"], start["1.weight"] + 1)
        np.testing.assert_allclose(got["3.weight"], after["3.weight"], rtol=1e-5)
        other.step(batches[4])
        assert (other.parameters()["1.bias"] == got["1.bias"]).all()

    launch(run, 1 if key == "serial" else 3, LocalWorld())


def test_norms_of_frozen_parameters_are_not_sent():
    """A layer-wise rule sums two norms for each parameter that is trained, and for no other."""
    setting = replace(FROZEN, optimizer=partial(LARS, 0.1))
    taken = 0

    def run(comm, key):
        check_predictions(comm, key, setting)

    for key in METHODS:
        try:
            launch(partial(run, key=key), 1 if key == "serial" else 2, LocalWorld())
            taken += 1
        except ValueError as refused:
            assert "whole parameters" in str(refused), key
    assert taken > 30


@pytest.mark.parametrize("key", ["data_parallel/ring", "zero/1", "zero/2", "zero/3"])
def test_bytes_shrink_by_the_frozen_share(key):
    """A ring sends 2Ψ(p - 1)/p (stage 3: 3Ψ(p - 1)/p) elements, and Ψ counts what is trained."""
    sizes = {n: p.size for n, p in mlp(FROZEN.widths).named_parameters().items()}
    frozen = sum(sizes[name] for name in ("1.weight", "1.bias", "5.weight"))

    def run(comm, setting):
        method = make(key, comm, setting)
        before = comm.trace.sent.nbytes
        method.step(Batches(setting.dataset, 13, 3)[0])
        return comm.trace.sent.nbytes - before

    whole, part = (
        sum(launch(lambda comm, s=setting: run(comm, s), 3, LocalWorld()))
        for setting in (Setting(), FROZEN)
    )
    passes = 3 if key == "zero/3" else 2
    assert whole - part == passes * frozen * 4 * (3 - 1)  # of all three ranks together


def test_a_model_that_a_method_trains_cannot_be_frozen_any_more():
    def run(comm):
        method = DataParallel(mlp((12, 5)), CrossEntropy(), SGD(0.1), comm)
        with pytest.raises(RuntimeError, match="is trained by DataParallel"):
            method.model.freeze("1.*")
        with pytest.raises(RuntimeError, match="before you pass the model"):
            method.model.parameters()[0].requires_grad = False
        with pytest.raises(ValueError, match="nothing to train"):
            Serial(mlp((12, 5)).freeze(), CrossEntropy(), SGD(0.1), comm.split(comm.rank))

    launch(run, 2, LocalWorld())


def test_an_optimizer_does_not_go_on_with_other_parameters():
    """Two layers of one size: without a check the momentum of one would move the other."""
    model, optimizer = mlp((4, 4, 4)).freeze("1.*").init(0), Adam(0.1)
    model.zero_grad()
    optimizer.step(model.flat.data, model.flat.grad)
    model.freeze("3.*").unfreeze("1.*")
    with pytest.raises(ValueError, match="frozen or unfrozen since"):
        optimizer.step(model.flat.data, model.flat.grad)
