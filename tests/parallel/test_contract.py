"""The contract of all methods: each point works and is right, or is refused by name."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy, Flatten, Linear, ReLU, Sequential
from minidist.nn.module import Buffer, Module
from minidist.optim import SGD, Adam, MixedPrecision
from minidist.parallel import (
    METHODS,
    DataParallel,
    DiLoCo,
    Overlapped,
    Pipeline,
    ReduceScatter,
    ReduceScatterUnits,
    state,
)
from minidist.parallel.data_parallel import Buckets
from minidist.parallel.evaluation import evaluate
from minidist.parallel.method import Method, StepCost, Unsupported
from minidist.privacy import PRIVATE_METHODS
from tests.parallel.checks import Setting, check_predictions, images, train

ALL = METHODS | PRIVATE_METHODS  # the rows of compare
ROWS = [key for key in ALL if key != "serial"]
REFUSED = {  # what each row does not support
    "mixed precision": set(ALL),
    "clip": {
        *("local_sgd/average", "local_sgd/diloco", "gossip/ring", "gossip/exponential"),
        *("easgd/sync", "pipeline/pipedream"),
    },
    "microbatches": {"zero/3"},
}
# Which push comes first decides what these become: a run is not repeated from the middle.
TIMED = {key for key in METHODS if "ssp" in key or "async" in key or "backup" in key}
MORE = {
    "diloco, every 2": partial(DiLoCo, every=2),
    "pipeline, buckets": partial(Pipeline, replicas=2),
    "pipeline, zero 1": partial(Pipeline, replicas=2, sync=ReduceScatter, microbatches=2),
    "pipeline, zero 2": partial(Pipeline, replicas=2, sync=ReduceScatterUnits, microbatches=2),
}


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    for key, factory in (PRIVATE_METHODS | MORE).items():
        monkeypatch.setitem(METHODS, key, factory)


def class_of(key):
    return getattr(ALL[key], "func", ALL[key])


def build(key, comm, setting, **options):
    model = mlp(setting.widths)
    return METHODS[key](model, CrossEntropy(), setting.optimizer(), comm, setting.seed, **options)


def ranks_for(key):
    return 1 if key == "serial" else 4


@pytest.mark.parametrize("key", ALL)
def test_every_method_defines_every_point(key):
    def run(comm):
        setting = Setting()
        method = build(key, comm, setting)
        batch = Batches(setting.dataset, setting.batch, setting.seed)[0]
        assert isinstance(method.step(batch), float)
        assert list(method.parameters()) == list(mlp(setting.widths).named_parameters())
        assert method.buffers() == {}
        assert isinstance(method.cost(batch, getattr(comm, "machine", None)), StepCost)
        loss, right = method.evaluate(setting.dataset)
        assert loss > 0 and 0 <= right <= 1
        assert {"steps", "parameters/1.weight"} <= method.state().keys()
        assert set(method.refuses) <= set(REFUSED), f"{key} refuses what nobody asks for"

    launch(run, ranks_for(key), LocalWorld())


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("clip", {"clip": 0.02}),
        ("microbatches", {"microbatches": 3}),
        ("mixed precision", {}),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name_with_the_reason(key, what, options):
    optimizer = (lambda: MixedPrecision(SGD(0.1))) if what == "mixed precision" else None
    setting = Setting(optimizer=optimizer) if optimizer else Setting()
    refused = key in REFUSED[what]
    assert (what in class_of(key).refuses) == refused
    name = class_of(key).__name__

    def run(comm):
        build(key, comm, setting, **options)

    if not refused:
        launch(run, ranks_for(key), LocalWorld())
        return
    with pytest.raises(Unsupported, match=f"^{name}: {what} is not supported: .{{20}}"):
        launch(run, ranks_for(key), LocalWorld())


@pytest.mark.parametrize("bad", [{"clip": 0.0}, {"clip": -1.0}, {"microbatches": 0}], ids=str)
@pytest.mark.parametrize("key", ALL)
def test_nonsense_is_refused_by_name(key, bad):
    name = class_of(key).__name__
    with pytest.raises(ValueError, match=rf"^{name}.*(must be positive|at least one microbatch)"):
        launch(lambda comm: build(key, comm, Setting(), **bad), ranks_for(key), LocalWorld())


def checks_with(key, **options):
    """Predictions hold; and an exact method equals serial training."""
    setting = Setting(steps=4)
    METHODS["with options"] = partial(METHODS[key], **options)

    def run(comm):
        check_predictions(comm, "with options", setting)
        with defaults(dtype="float64"):
            method = build("with options", comm, setting)
            if not method.exact:
                return [float(method.step(Batches(setting.dataset, 13)[step])) for step in range(2)]
            got = train(method, setting)
            alone = build("serial", comm.split(comm.rank), setting, **options)
            expected = train(alone, setting)
        assert got[0] == pytest.approx(expected[0], rel=1e-12)
        for name, values in expected[1][-1].items():
            gap = np.abs(got[1][-1][name] - values).max() / np.abs(values).max()
            assert gap < 1e-11, f"{key}: {name} differs by {gap}"
        return got[0]

    try:
        results = launch(run, 4, LocalWorld())
    finally:
        del METHODS["with options"]
    assert all(losses == results[0] for losses in results)


@pytest.mark.parametrize("key", [key for key in ROWS if key not in REFUSED["clip"]])
def test_clip(key):
    checks_with(key, clip=0.02)


@pytest.mark.parametrize("key", [key for key in ROWS if key not in REFUSED["microbatches"]])
def test_microbatches(key):
    checks_with(key, microbatches=3)


@pytest.mark.parametrize("key", ALL)
def test_evaluate_looks_at_the_model_that_parameters_gives(key):
    setting = Setting(dataset=images(50))

    def run(comm):
        with defaults(dtype="float64"):
            method = build(key, comm, setting)
            method.step(Batches(setting.dataset, 13, 3)[0])
            got = method.evaluate(setting.dataset, chunk=16)
            model = mlp(setting.widths).init(0).load(method.parameters())
            alone = comm.split(comm.rank)
            expected = evaluate(model, CrossEntropy(), setting.dataset, alone, chunk=50)
            method.step(Batches(setting.dataset, 13, 3)[1])  # and training goes on
        assert got == pytest.approx(expected, rel=1e-12)
        return got

    results = launch(run, ranks_for(key), LocalWorld())
    assert all(result == results[0] for result in results)


def trained(key, setting, first, last, saved=None, ranks=None):
    """Losses of some steps, and the state after them, of every rank."""

    def run(comm):
        with defaults(dtype=setting.dtype):
            method = build(key, comm, setting)
            if saved is not None:
                method.load(saved)
            batches = Batches(setting.dataset, setting.batch, setting.seed)
            losses = [method.step(batches[step]) for step in range(first, last)]
            return losses, method.state()

    return launch(run, ranks or ranks_for(key), LocalWorld())


@pytest.mark.parametrize("optimizer", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(1e-2)])
@pytest.mark.parametrize("key", [key for key in [*ALL, *MORE] if key not in TIMED])
def test_on_as_many_ranks_training_goes_on_as_if_nothing_had_happened(key, optimizer):
    setting = Setting(optimizer=optimizer, dtype="float32")
    _, (first, *others) = zip(*trained(key, setting, 0, 3), strict=True)
    for other in others:
        assert list(other) == list(first), "every rank gets the same state"
        assert all(np.array_equal(other[name], first[name]) for name in first)
    whole = trained(key, setting, 0, 6)[0]
    again = trained(key, setting, 3, 6, first)[0]
    assert again[0] == whole[0][3:]
    for name, values in whole[1].items():
        assert np.array_equal(again[1][name], values), name


@pytest.mark.parametrize("key", [*ALL, *MORE])
def test_an_exact_methods_state_goes_on_in_any_other(key):
    """On another number of ranks: what it saved is what serial training would have saved."""
    if not EXACT.get(key, "diloco" not in key):
        pytest.skip("it is not serial training that it goes on with")
    setting = Setting(optimizer=lambda: Adam(1e-2))
    straight = trained("serial", setting, 0, 6)[0]
    state = trained(key, setting, 0, 3)[0][1]
    for other in ("serial", "zero/2", "pipeline/1f1b", "parameter_server/bsp_sharded"):
        ranks = 1 if other == "serial" else 3
        losses, last = trained(other, setting, 3, 6, state, ranks)[0]
        assert losses == pytest.approx(straight[0][3:], rel=1e-11), f"{key} → {other}"
        gap = max(np.abs(last[n] - straight[1][n]).max() for n in straight[1])
        assert gap < 1e-10, f"{key} → {other}: {gap}"


def test_diloco_on_more_ranks_begins_at_the_average():
    setting = Setting()
    state = trained("diloco, every 2", setting, 0, 3)[0][1]

    def run(comm):
        with defaults(dtype="float64"):
            method = build("diloco, every 2", comm, setting)
            method.load(state)
            assert np.array_equal(method.anchor, method.model.flat.data)
            for name, values in method.parameters().items():
                np.testing.assert_allclose(values, state[f"parameters/{name}"], rtol=1e-14)

    launch(run, 5, LocalWorld())


EXACT = {key: class_of(key).exact for key in ALL}


@pytest.mark.parametrize("key", [key for key in ALL if not EXACT[key]])
def test_an_inexact_methods_state_can_be_loaded_by_all_on_another_number_of_ranks(key):
    """They begin with its parameters and the mean of its ranks' optimizer states."""
    setting = Setting(optimizer=lambda: Adam(1e-2))
    state = trained(key, setting, 0, 3)[0][1]
    for other in (key, "serial", "zero/1"):
        ranks = 1 if other == "serial" else 3

        def run(comm, other=other):
            with defaults(dtype="float64"):
                method = build(other, comm, setting)
                method.load(state)
                return method.parameters(), method.state()

        for parameters, again in launch(run, ranks, LocalWorld()):
            for name, values in parameters.items():
                np.testing.assert_allclose(values, state[f"parameters/{name}"], rtol=1e-14)
            assert again["steps"] == state["steps"] > 0
            for name in state:
                if name.startswith("optimizer/"):
                    np.testing.assert_allclose(again[name], state[name], rtol=1e-12)


@pytest.mark.parametrize("key", ALL)
def test_another_models_or_optimizers_state_is_refused(key):
    state = trained("serial", Setting(), 0, 2)[0][1]
    for setting, name in [
        (Setting(optimizer=lambda: Adam(1e-2)), "optimizer/mean/1.weight"),
        (Setting(widths=(12, 9, 8, 7, 6, 5)), "parameters/9.bias"),
    ]:
        with pytest.raises(KeyError, match=f"the method and the state differ in.*{name}"):
            trained(key, setting, 0, 0, state, 1 if key == "serial" else 3)


class Count(Module):
    """A layer with a buffer: how many samples it has seen."""

    def __init__(self):
        self.seen = Buffer((2,), 1.0)

    def forward(self, x):
        if self.training:
            self.seen.data += len(x.data if hasattr(x, "data") else x)
        return x

    def cost(self, shape, itemsize=4):
        return ReLU().cost(shape, itemsize)


# Its clients' statistics would leave them without noise: refused, see tests/privacy.
WITHOUT_BUFFERS = {"federated/private"}


@pytest.mark.parametrize("key", [key for key in ALL if key not in WITHOUT_BUFFERS])
def test_buffers_travel_with_the_state_and_stand_still_in_evaluation(key):
    setting = Setting()

    def run(comm):
        def made():
            model = Sequential(
                Flatten(), Linear(12, 8), Count(), Linear(8, 8), Count(), Linear(8, 5),
                input_shape=(3, 4),
            )  # fmt: skip
            return METHODS[key](model, CrossEntropy(), SGD(0.1, momentum=0.9), comm)

        method = made()
        method.step(Batches(setting.dataset, 13)[0])
        buffers = method.buffers()
        assert list(buffers) == ["2.seen", "4.seen"]
        assert all(values[0] > 1 for values in buffers.values())
        method.evaluate(setting.dataset)
        assert all(np.array_equal(values, buffers[n]) for n, values in method.buffers().items())
        again = made()
        again.load(method.state())
        assert all(np.array_equal(values, buffers[n]) for n, values in again.buffers().items())
        return buffers

    ranks = 1 if key == "serial" else 3
    results = launch(run, ranks, LocalWorld())
    for result in results[1:]:
        assert all(np.array_equal(result[name], results[0][name]) for name in result)


# Mutants


def own_arrays_are_not_saved(monkeypatch):
    monkeypatch.setattr(state, "key", lambda rank, size: f"rank {size - 1 - rank} of {size}/")


def steps_forgotten(monkeypatch):
    load = Pipeline.load_optimizer
    monkeypatch.setattr(
        Pipeline, "load_optimizer", lambda self, saved: load(self, saved | {"steps": np.array(1)})
    )


@pytest.mark.parametrize(
    ("key", "mutant"),
    [
        ("compression/top_k", own_arrays_are_not_saved),
        ("gossip/ring", own_arrays_are_not_saved),
        ("easgd/sync", own_arrays_are_not_saved),
        ("pipeline/1f1b", steps_forgotten),
    ],
)
def test_a_wrong_state_is_rejected(key, mutant, monkeypatch):
    def straight(first, last, saved=None):
        return trained(key, Setting(optimizer=lambda: Adam(1e-2)), first, last, saved)[0]

    whole, saved = straight(0, 6)[0], straight(0, 3)[1]
    assert straight(3, 6, saved)[0] == whole[3:]
    mutant(monkeypatch)
    assert straight(3, 6, saved)[0] != whole[3:]


def evaluates_what_workers_pulled_last(monkeypatch):
    from contextlib import nullcontext

    from minidist.parallel.server import served_model

    monkeypatch.setattr(served_model, "with_values", lambda data, values: nullcontext())


def test_evaluating_old_parameters_is_rejected(monkeypatch):
    evaluates_what_workers_pulled_last(monkeypatch)
    with pytest.raises(AssertionError):
        test_evaluate_looks_at_the_model_that_parameters_gives("easgd/sync")


def test_a_method_without_a_step_says_so():
    class Empty(Method):
        pass

    with pytest.raises(TypeError, match="Empty does not define train_on"):
        launch(lambda comm: build_empty(Empty, comm).train_on(None), 1)


def build_empty(kind, comm):
    return kind(mlp((4, 2)), CrossEntropy(), SGD(0.1), comm)


@pytest.mark.parametrize(
    ("method", "options", "error"),
    [
        (DataParallel, {"microbatches": 1.5}, "DataParallel needs a whole number .* not 1.5"),
        (DataParallel, {"clip": "1"}, "DataParallel: the norm to clip to .* not '1'"),
        (DataParallel, {"algorithm": "ring", "sync": Buckets}, "DataParallel: algorithm='ring'"),
        (Overlapped, {"bucket_mb": -1}, "Buckets: bucket_mb=-1 and last_mb=1.0 are sizes"),
        (Overlapped, {"last_mb": -1}, "Buckets: bucket_mb=25.0 and last_mb=-1 are sizes"),
    ],
)
def test_an_option_that_would_be_ignored_or_misread_is_refused(method, options, error):
    def run(comm):
        method(mlp((12, 5)), CrossEntropy(), SGD(0.1), comm, **options)

    with pytest.raises(ValueError, match=error):
        launch(run, 2, LocalWorld())
