"""Models of every make: shared parameters, layers used twice, a forward of the user's own."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from minidist import LocalWorld, launch, ops
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults
from minidist.engine.recompute import checkpoint
from minidist.models import gpt
from minidist.nn import (
    CrossEntropy,
    Dropout,
    Flatten,
    LayerCost,
    Linear,
    Module,
    ReLU,
    Residual,
    Sequential,
)
from minidist.optim import SGD, AdamW
from minidist.parallel import METHODS, Pipeline, Serial, TensorParallel, blocks, method
from tests.parallel.checks import images, is_exact

TEXT = np.random.default_rng(3).integers(0, 11, (40, 7))
TOKENS = Dataset("tokens", TEXT[:, :-1], TEXT[:, 1:], 11)
IMAGES = images()
SQUARE = np.random.default_rng(4).standard_normal((5, 5))


class Twice(Module):
    """Uses one layer twice, and another with a way around it: no list of blocks."""

    def __init__(self):
        self.first, self.inner, self.last = Linear(12, 8), Linear(8, 8), Linear(8, 5)
        self.flatten, self.drop = Flatten(), Dropout(0.2)

    def forward(self, x):
        x = self.drop(ops.relu(self.first(self.flatten(x))))
        x = x + ops.relu(self.inner(x))
        return self.last(self.inner(x))

    def cost(self, shape, itemsize=4):
        return LayerCost((shape[0], 5), *[1000 * shape[0]] * 3, saved_bytes=1)


class Again(Module):
    """x + layer(layer(x)), computed again in the backward."""

    def __init__(self, layer):
        self.layer, self.drop = layer, Dropout(0.2)

    def inside(self, x):
        return self.drop(ops.relu(self.layer(ops.relu(self.layer(x)))))

    def forward(self, x):
        return x + checkpoint(self.inside, x)

    def cost(self, shape, itemsize=4):
        return LayerCost(shape, *[1000 * shape[0]] * 3, saves_input=True, saved_bytes=1)


class WithAWayAround(Sequential):
    """A Sequential whose forward is not that of its blocks."""

    def forward(self, x):
        first, second, third, last = self.blocks.values()
        x = second(first(x))
        return last(x + third(x))


def tied_gpt():
    return gpt(11, context=6, width=8, layers=2, heads=2, dropout=0.1)


def a_layer_twice():
    layer = Linear(8, 8)
    return Sequential(
        Flatten(), Linear(12, 8), layer, ReLU(), Dropout(0.2), layer, ReLU(), Linear(8, 5),
        input_shape=(3, 4),
    )  # fmt: skip


def a_layer_three_times():
    layer = Linear(8, 8)
    blocks = [layer, ReLU(), layer, ReLU(), layer, ReLU()]
    return Sequential(Flatten(), Linear(12, 8), *blocks, Linear(8, 5), input_shape=(3, 4))


def an_assigned_weight():
    one, two = Linear(8, 8), Linear(8, 8)
    two.weight = one.weight
    return Sequential(
        Flatten(), Linear(12, 8), one, ReLU(), two, ReLU(), Linear(8, 5), input_shape=(3, 4)
    )


def a_layer_inside_two_blocks():
    layer = Linear(8, 8)
    return Sequential(
        Flatten(), Linear(12, 8), Residual(layer), ReLU(), Residual(ReLU(), layer), Linear(8, 5),
        input_shape=(3, 4),
    )  # fmt: skip


def recomputed():
    """One layer in two blocks: its backwards inside are not its last."""
    layer = Linear(8, 8)
    blocks = [Linear(12, 8), Again(layer), ReLU(), Again(layer), Linear(8, 5)]
    return Sequential(Flatten(), *blocks, input_shape=(3, 4))


def own_forward():
    return WithAWayAround(Flatten(), Linear(12, 8), Linear(8, 8), Linear(8, 5))


SHARED = [
    *(recomputed, tied_gpt, a_layer_twice, a_layer_three_times),
    *(an_assigned_weight, a_layer_inside_two_blocks),
]
OWN = [Twice, own_forward]
EXACT = [key for key in METHODS if is_exact(key)]


def trained(key, make, ranks, **options):
    """Losses, and parameters before and after three steps."""

    def run(comm):
        with defaults(dtype="float64"):
            optimizer = AdamW(0.01) if make is tied_gpt else SGD(0.1, momentum=0.9)
            way = METHODS[key](make(), CrossEntropy(), optimizer, comm, 3, **options)
            start = way.parameters()
            batches = Batches(TOKENS if make is tied_gpt else IMAGES, 13, 3)
            losses = [way.step(batches[step]) for step in range(3)]
            return losses, start, way.parameters(), way.evaluate(batches.dataset)

    return launch(run, ranks, LocalWorld())


@cache
def serial(make):
    return trained("serial", make, 1)[0]


def check_equal(key, make, ranks=3, **options):
    losses, start, end, evaluated = serial(make)
    results = trained(key, make, ranks, **options)
    for got in results:
        assert list(got[1]) == list(start), "other names"
        for name, values in start.items():
            gap = np.abs(got[1][name] - values).max()  # an average of equal numbers is rounded
            assert gap < 1e-15, f"{key}: {name} starts from other values"
        if not is_exact(key):
            assert got[0] == results[0][0]
            continue
        assert got[0] == pytest.approx(losses, rel=1e-11)
        for name, values in end.items():
            gap = np.abs(got[2][name] - values).max() / np.abs(values).max()
            assert gap < 1e-9, f"{key}: {name} differs from serial by {gap}"
        assert got[3] == pytest.approx(evaluated, rel=1e-9)


def pairs_of(makes):
    """Every method with one model, every model with a method of each kind."""
    kinds = ("data_parallel/overlapped", "zero/1", "zero/2", "zero/3", "pipeline/1f1b",
             "pipeline/zero_bubble_v", "parameter_server/bsp_sharded")  # fmt: skip
    keys = [key for key in METHODS if key != "serial"]
    return [
        (key, make)
        for index, key in enumerate(keys)
        for number, make in enumerate(makes)
        if key in kinds or (index + number) % len(makes) == 0
    ]


@pytest.mark.parametrize(("key", "make"), pairs_of(SHARED))
def test_shared_parameters_are_right_or_refused(key, make):
    if key == "pipeline/pipedream":
        with pytest.raises(ValueError, match="takes no tied parameters, such as"):
            trained(key, make, 3)
    else:
        check_equal(key, make)


@pytest.mark.parametrize("key", ["pipeline/1f1b", "pipeline/interleaved"])
def test_a_layer_used_twice_on_one_stage_or_on_two(key):
    """Two stages: both uses on one, or one on each; and three chunks of a stage share it."""
    for ranks in (1, 2, 4):
        check_equal(key, a_layer_twice, ranks)


def test_a_stage_may_hold_nothing_but_shared_parameters():
    """Its part of the norm is that of nothing; each shared parameter is a message of its own."""

    def run(comm, key):
        with defaults(dtype="float64"):
            layer = Linear(5, 5)
            blocks = [layer, ReLU(), layer]
            model = Sequential(*blocks, input_shape=(5,))
            options = {} if key == "serial" else {"microbatches": 2, "bounds": [(0, 2), (2, 3)]}
            way = METHODS[key](model, CrossEntropy(), SGD(0.1), comm, 3, clip=0.02, **options)
            batch, sent = Dataset("few", SQUARE, TEXT[:5, 0] % 5).batch(range(5)), comm.trace.sent
            for _ in range(2):
                cost, before = way.cost(batch, comm.machine), (sent.messages, sent.nbytes)
                way.step(batch)
                got = sent.messages - before[0], sent.nbytes - before[1]
                assert got == (cost.messages[comm.rank], cost.nbytes[comm.rank])
            return way.parameters()

    (expected,) = launch(lambda comm: run(comm, "serial"), 1, LocalWorld())
    for found in launch(lambda comm: run(comm, "pipeline/gpipe"), 2, LocalWorld()):
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-12, atol=1e-15)


def test_tensor_parallelism_takes_blocks_alone_and_a_norm_of_nothing():
    def refused(comm):
        TensorParallel(Twice(), CrossEntropy(), SGD(0.1), comm)

    with pytest.raises(
        TypeError, match=r"a list of blocks, .* a Twice has a forward of its own: .*Sequential"
    ):
        launch(refused, 2, LocalWorld())

    def run(comm):
        with defaults(dtype="float64"):
            options = {"plan": {"*": "whole"}} if comm.size > 1 else {}
            kind = TensorParallel if comm.size > 1 else Serial
            model = Sequential(Flatten(), Linear(12, 5), input_shape=(3, 4))
            way = kind(model, CrossEntropy(), SGD(0.1), comm, 3, clip=0.02, **options)
            return [way.step(Batches(IMAGES, 13, 3)[step]) for step in range(3)]

    for losses in launch(run, 2, LocalWorld()):  # all is counted on the first rank
        assert losses == pytest.approx(launch(run, 1, LocalWorld())[0], rel=1e-12)


def test_several_ways_of_sharing_are_refused_with_the_way():
    def run(comm):
        one, two = Linear(8, 8), Linear(8, 8)
        model = Sequential(one, two, ReLU(), one, ReLU(), two, one, input_shape=(8,))
        bounds = [(0, 2), (2, 5), (5, 7)]
        Pipeline(model, CrossEntropy(), SGD(0.1), comm, bounds=bounds)

    with pytest.raises(ValueError, match=r"share parameters in several ways, .*pass bounds"):
        launch(run, 3, LocalWorld())


@pytest.mark.parametrize(("key", "make"), [(k, m) for k in METHODS for m in OWN if k != "serial"])
def test_a_model_with_a_forward_of_its_own_is_taken_or_refused(key, make):
    if key.startswith(("pipeline", "mesh", "tensor")):
        kind = make.__name__ if make is Twice else "WithAWayAround"
        cuts = "cuts layers that it finds" if key.startswith("tensor") else "cuts a model between"
        with pytest.raises(TypeError, match=f"{cuts} .* {kind} .*Sequential"):
            trained(key, make, 3)
    else:
        check_equal(key, make)


@pytest.mark.parametrize("key", ["zero/2", "zero/3", "data_parallel/overlapped"])
def test_what_such_a_model_costs_is_what_it_says(key):
    """Messages, bytes and memory follow from its parameters, time from its ``cost``."""

    def run(comm):
        way = METHODS[key](Twice(), CrossEntropy(), SGD(0.1, momentum=0.9), comm)
        batch, sent = Batches(IMAGES, 13)[0], comm.trace.sent
        way.step(batch)
        before = sent.messages, sent.nbytes
        way.step(batch)
        cost = way.cost(batch, comm.machine)
        got = sent.messages - before[0], sent.nbytes - before[1]
        assert got == (cost.messages[comm.rank], cost.nbytes[comm.rank])
        for kind, held in way.arrays().items():
            assert sum(a.nbytes for a in held) == cost.peak_bytes[kind][comm.rank], kind

    launch(run, 3, LocalWorld())


# Mutants


def blocks_name_their_parameters_themselves(monkeypatch):
    monkeypatch.setattr(method, "name_shared", lambda model: None)


def takes_the_blocks_of_any_sequential(monkeypatch):
    from minidist.parallel.zero import stage2

    monkeypatch.setattr(blocks, "is_list_of_blocks", lambda model: isinstance(model, Sequential))
    assert stage2.blocks_of is blocks.blocks_of


@pytest.mark.parametrize(
    ("mutant", "key", "make"),
    [
        (blocks_name_their_parameters_themselves, "zero/2", a_layer_twice),
        (blocks_name_their_parameters_themselves, "zero/3", an_assigned_weight),
        (blocks_name_their_parameters_themselves, "pipeline/1f1b", a_layer_twice),
        (takes_the_blocks_of_any_sequential, "zero/3", own_forward),
    ],
)
def test_mutant_is_rejected(mutant, key, make, monkeypatch):
    check_equal(key, make)
    mutant(monkeypatch)
    with pytest.raises((AssertionError, AttributeError, KeyError, RuntimeError)):
        check_equal(key, make)
