"""Every method against its oracle and its own formula, in the local world."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.engine.array import defaults
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam
from minidist.parallel import METHODS, DataParallel, ParameterServer, Pipeline, Serial
from minidist.parallel.pipeline.schedules import SCHEDULES
from tests.pairs import pairs
from tests.parallel.checks import (
    Setting,
    check_equals_serial,
    check_predictions,
    is_exact,
    make,
    serial,
    train,
)

PARALLEL = [key for key in METHODS if key != "serial"]
EXACT = [key for key in PARALLEL if is_exact(key)]
RANKS = [1, 2, 3, 4]
SYNCHRONOUS = [name for name in SCHEDULES if name != "pipedream"]


@pytest.mark.parametrize(
    ("key", "dtype", "ranks", "batch"), pairs(EXACT, ["float64", "float32"], RANKS, [13, 3, 16])
)
def test_equals_serial(key, dtype, ranks, batch):
    setting = Setting(batch=batch, dtype=dtype)
    launch(lambda comm: check_equals_serial(comm, key, setting), ranks, LocalWorld())


@pytest.mark.parametrize("key", EXACT)
def test_equals_serial_with_adam(key):
    setting = Setting(optimizer=lambda: Adam(1e-2))
    launch(lambda comm: check_equals_serial(comm, key, setting), 3, LocalWorld())


@pytest.mark.parametrize(("key", "ranks", "batch"), pairs(PARALLEL, RANKS, [13, 3, 16]))
def test_measured_equals_formula(key, ranks, batch):
    setting = Setting(batch=batch)
    slow_net = Machine(latency=1e-5, bandwidth=1e8, reduce_bandwidth=3e8, flops=1e8)
    launch(lambda comm: check_predictions(comm, key, setting), ranks, LocalWorld(slow_net))


@pytest.mark.parametrize("key", PARALLEL)
def test_measured_equals_formula_with_a_straggler(key):
    machine = Machine("rank 1 is slow", 1e-5, 1e8, 3e8, 1e8, slowdown={1: 2.5})
    setting = Setting(steps=3)
    launch(lambda comm: check_predictions(comm, key, setting), 3, LocalWorld(machine))


@pytest.mark.parametrize("key", EXACT)
def test_one_rank_is_serial_bitwise(key):
    setting = Setting()

    def run(comm):
        with defaults(dtype="float32"):
            method = make(key, comm, setting)
            parts = getattr(method, "microbatches", 1)
            return train(method, setting), serial(comm, setting, parts)

    (got, expected), *_ = launch(run, 1, LocalWorld())
    assert got[0] == expected[0]
    for got_state, expected_state in zip(got[1], expected[1], strict=True):
        for name in expected_state:
            assert np.array_equal(got_state[name], expected_state[name]), name


@pytest.mark.parametrize(
    ("schedule", "ranks", "microbatches"), pairs(SYNCHRONOUS, RANKS, [1, 2, 4, 5, 9])
)
def test_pipeline_is_serial_with_the_same_microbatches_bitwise(schedule, ranks, microbatches):
    setting = Setting(steps=3)

    def run(comm):
        with defaults(dtype="float32"):
            pipeline = Pipeline(
                mlp(setting.widths),
                CrossEntropy(),
                setting.optimizer(),
                comm,
                setting.seed,
                schedule=schedule,
                microbatches=microbatches,
            )
            return train(pipeline, setting), serial(comm, setting, microbatches)

    for (losses, states), (expected_losses, expected_states) in launch(run, ranks, LocalWorld()):
        assert losses == expected_losses
        for state, expected in zip(states, expected_states, strict=True):
            for name in expected:
                assert np.array_equal(state[name], expected[name]), name


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("key", PARALLEL)
def test_replicas_agree_and_a_repeated_run_is_the_same_run(key, ranks):
    setting = Setting()

    def run(comm):
        return train(make(key, comm, setting), setting)

    first, second = launch(run, ranks, LocalWorld()), launch(run, ranks, LocalWorld())
    for losses, states in [*first, *second]:
        assert losses == first[0][0]
        for state, reference in zip(states, first[0][1], strict=True):
            assert all(np.array_equal(state[name], reference[name]) for name in reference)


def test_each_rank_of_a_pipeline_holds_its_stage_alone():
    def run(comm):
        method = make("pipeline/gpipe", comm, Setting())
        return method.model.named_parameters().keys(), method.model.flat.size

    results = launch(run, 4, LocalWorld())
    names = [name for held, _ in results for name in held]
    assert names == list(mlp(Setting().widths).named_parameters())
    assert sum(size for _, size in results) == sum(
        p.size for p in mlp(Setting().widths).parameters()
    )


def build(kind, comm, **options):
    return kind(mlp((12, 8, 5)), CrossEntropy(), SGD(0.1), comm, 0, **options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DataParallel, {"algorithm": "carrier pigeon"}, "carrier pigeon.*central.*ring"),
        (Pipeline, {"schedule": "magic"}, "magic.*naive.*gpipe"),
        (Pipeline, {"microbatches": 0}, "at least one microbatch, not 0"),
        (Pipeline, {"bounds": [(0, 1), (2, 4)]}, "consecutive"),
        (Serial, {}, "one rank, not 2"),
    ],
)
def test_bad_input_is_refused_with_the_reason(kind, options, message):
    def run(comm):
        method = build(kind, comm, **options)
        train(method, Setting(steps=1))

    with pytest.raises(ValueError, match=message):
        launch(run, 2, LocalWorld())


def test_more_stages_than_blocks():
    with pytest.raises(ValueError, match="5 stages need as many blocks, and the model has 4"):
        launch(lambda comm: build(Pipeline, comm), 5, LocalWorld())


@pytest.mark.parametrize("kind", [DataParallel, ParameterServer, Pipeline])
def test_what_ranks_share_by_mistake_is_refused(kind):
    """In the local world a model made outside the function would be every rank's at once."""
    model, optimizer = mlp((12, 8, 5)), SGD(0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"initialised already.*built by each rank"):
        launch(lambda comm: kind(model.init(0), CrossEntropy(), SGD(0.1), comm), 2, LocalWorld())

    def shared_optimizer(comm):
        for _ in range(2):
            method = kind(mlp((12, 8, 5)), CrossEntropy(), optimizer, comm)
            train(method, Setting(steps=1))

    with pytest.raises(ValueError, match="each rank must make its own"):
        launch(shared_optimizer, 1, LocalWorld())
