"""Data parallelism: buckets, accumulation, clipping, what some ranks do not use, evaluation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.collectives import ring
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.inspect.metrics import accuracy, mean_loss
from minidist.models import mlp
from minidist.nn import CrossEntropy, Linear, ReLU, Sequential
from minidist.nn.layers import Flatten
from minidist.nn.module import Parameter
from minidist.optim import SGD
from minidist.parallel import METHODS, DataParallel, Overlapped, PerParameter, Serial, simulate
from minidist.parallel.data_parallel.buckets import Buckets, cut_buckets
from minidist.parallel.evaluation import evaluate
from tests.parallel.checks import (
    Setting,
    check_equals_serial,
    check_predictions,
    images,
    make,
    serial,
    train,
)
from tests.parallel.data_parallel.overlap import check_overlap

RANKS = [1, 2, 3, 4]
TINY = 60 * 8 / (1 << 20)  # buckets of 60 float64 parameters: four of them
SLOW_NET = Machine(latency=1e-5, bandwidth=1e8, reduce_bandwidth=3e8, flops=1e8)

VARIANTS = {
    "tiny_buckets": partial(Overlapped, bucket_mb=TINY, last_mb=0),
    "tiny_buckets_accumulated": partial(Overlapped, bucket_mb=TINY, last_mb=0, microbatches=3),
    "accumulated": partial(DataParallel, microbatches=4),
    "per_parameter_accumulated": partial(PerParameter, microbatches=2),
}


@pytest.fixture(autouse=True)
def variants(monkeypatch):
    for key, factory in VARIANTS.items():
        monkeypatch.setitem(METHODS, key, factory)


@pytest.mark.parametrize("batch", [13, 3])
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("key", VARIANTS)
def test_equals_serial_and_its_formula(key, ranks, batch):
    def checks(comm):
        check_equals_serial(comm, key, Setting(batch=batch))
        check_predictions(comm, key, Setting(batch=batch, steps=3))

    launch(checks, ranks, LocalWorld(SLOW_NET))


FAMILY = [
    *("data_parallel/per_parameter", "data_parallel/ring", "tiny_buckets"),
    *("zero/1", "zero/2", "zero/3"),
]


@pytest.mark.parametrize("batch", [13, 12])
@pytest.mark.parametrize("key", FAMILY)
def test_two_ranks_are_serial_with_two_microbatches_bitwise(key, batch):
    """T0: a + b is b + a, in every bit; three ranks would add in another order."""
    launch(lambda comm: check_two_ranks_bitwise(comm, key, batch), 2, LocalWorld())


def check_two_ranks_bitwise(comm, key, batch):
    setting = Setting(batch=batch, dtype="float32")
    with defaults(dtype="float32"):
        _, expected = serial(comm, setting, microbatches=2)
        _, states = train(make(key, comm, setting), setting)
    for step, (got_state, expected_state) in enumerate(zip(states, expected, strict=True)):
        for name, values in expected_state.items():
            assert np.array_equal(got_state[name], values), f"{key}: {name} after step {step}"


def test_buckets_cover_everything_once_in_reverse_order():
    slices = {"a": slice(0, 10), "b": slice(10, 12), "c": slice(12, 40), "d": slice(40, 45)}
    for size, last, expected in [
        (1, 0, [(40, 46), (12, 40), (10, 12), (0, 10)]),
        (6, 0, [(12, 46), (10, 12), (0, 10)]),
        (6, 12, [(12, 46), (0, 12)]),
        (99, 0, [(10, 46), (0, 10)]),
        (99, 99, [(0, 46)]),
    ]:
        buckets = cut_buckets(slices, size, last)
        got = [(bucket.part.start, bucket.part.stop) for bucket in buckets]
        assert got == expected, f"size {size}, last {last}: {got}, expected {expected}"
        assert sorted(name for bucket in buckets for name in bucket.names) == list(slices)


def test_overlap_saves_what_is_foretold():
    """Flat takes its closed formula; overlapped what one rank takes that stands for all, with the
    closed formula of each bucket's ring."""
    machine = Machine(latency=1e-7, bandwidth=1e8, reduce_bandwidth=1e9, flops=1e9)
    setting = Setting(batch=64, widths=(12, 60, 60, 60, 5))
    batches = Batches(setting.dataset, 60, 0)

    def measured(key):
        def run(comm):
            method = make(key, comm, setting)
            comm.barrier()
            start = comm.time()
            method.step(batches[0])
            return comm.time() - start, method.cost(batches[0], machine).seconds

        results = launch(run, 4, LocalWorld(machine))
        return max(seconds for seconds, _ in results), results[0][1]

    flat, formula = measured("data_parallel/ring")
    overlapped, unknown = measured("tiny_buckets")
    found = simulate(
        lambda comm: make("tiny_buckets", comm, setting), batches, 4, machine, fold={"dp": 4}
    )
    assert flat == pytest.approx(formula, rel=1e-9)
    assert unknown is None
    assert overlapped == pytest.approx(found.step_seconds, rel=1e-9)
    assert overlapped < 0.8 * flat, f"{overlapped} is not faster than {flat}"


def test_accumulation_sends_not_a_byte_more():
    def sent(key):
        def run(comm):
            train(make(key, comm, Setting(steps=1)), Setting(steps=1))
            return comm.trace.sent.messages, comm.trace.sent.nbytes

        return launch(run, 3, LocalWorld())

    assert sent("accumulated") == sent("data_parallel/ring")
    assert sent("tiny_buckets_accumulated") == sent("tiny_buckets")


@pytest.mark.parametrize("kind", [PerParameter, DataParallel, Overlapped])
def test_clipping_by_the_norm_of_the_global_gradient(kind):
    setting = Setting(optimizer=lambda: SGD(0.5, momentum=0.9))

    def run(comm):
        def build(factory, comm):
            model = mlp(setting.widths)
            return factory(model, CrossEntropy(), setting.optimizer(), comm, clip=0.02)

        with defaults(dtype="float64"):
            alone = comm.split(comm.rank)
            expected = train(build(Serial, alone), setting)
            free = train(Serial(mlp(setting.widths), CrossEntropy(), SGD(0.5), alone), setting)
            return train(build(kind, comm), setting), expected, free

    for (losses, states), (expected_losses, expected_states), (free, _) in launch(run, 3):
        assert losses == pytest.approx(expected_losses, rel=1e-12)
        assert losses != pytest.approx(free, rel=1e-6), "nothing was clipped"
        for name, values in expected_states[-1].items():
            assert states[-1][name] == pytest.approx(values, rel=1e-11, abs=1e-14)


class Sometimes(Linear):
    """Uses a second weight only if the first input is positive: on some ranks, in some steps."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.extra = Parameter((inputs, outputs), lambda random, shape: np.full(shape, 0.1))
        self.never = Parameter((3,), lambda random, shape: np.ones(shape))

    def forward(self, x):
        y = super().forward(x)
        return y + x @ self.extra if x.data[:1].sum() > 2 else y


@pytest.mark.parametrize("kind", [DataParallel, partial(Overlapped, bucket_mb=TINY, last_mb=0)])
def test_parameters_that_some_ranks_do_not_use(kind):
    used = np.array(launch(lambda comm: check_unused(comm, kind), 3, LocalWorld()))
    assert (used.any(axis=0) & ~used.all(axis=0)).any(), f"the ranks all did the same: {used}"


def check_unused(comm, kind):
    """The sum of what the ranks computed, each alone; no rank waits for another's bucket.

    Returns in which steps this rank has used the parameter.
    """
    dataset = images()

    def model():
        return Sequential(Flatten(), Linear(12, 9), ReLU(), Sometimes(9, 6), ReLU(), Linear(6, 5))

    with defaults(dtype="float64"):
        method = kind(model(), CrossEntropy(), SGD(0.1), comm)
        used = []
        for step in range(4):
            batch = Batches(dataset, 12)[step]
            alone = model().init(0)
            alone.load(method.parameters())
            alone.zero_grad()
            shard = batch.shard(comm.rank, comm.size)
            CrossEntropy()(
                alone(shard.inputs), shard.targets, shard.count(CrossEntropy())
            ).backward()
            used.append(bool(np.abs(alone.flat.grad[alone.flat.slices["3.extra"]]).sum()))
            expected = alone.flat.grad.copy()
            ring.all_reduce(comm, expected)
            method.step(batch)
            got = method.model.flat.grad
            assert np.abs(got - expected).max() < 1e-14, f"step {step}: {got} {expected}"
        return used


@pytest.mark.parametrize("ranks", RANKS)
def test_sharded_evaluation_equals_evaluation(ranks):
    dataset = images(31)

    def run(comm):
        model = mlp(Setting().widths).init(1)
        expected = mean_loss(model, CrossEntropy(), dataset), accuracy(model, dataset)
        return evaluate(model, CrossEntropy(), dataset, comm, chunk=7), expected

    for got, expected in launch(run, ranks):
        assert got == pytest.approx(expected, rel=1e-6)


def test_sharded_evaluation_does_not_count_padding():
    dataset = images(31)
    padded = replace(dataset, targets=np.where(np.arange(31) % 3, dataset.targets, 2))
    kept = np.flatnonzero(padded.targets != 2)
    short = replace(dataset, inputs=dataset.inputs[kept], targets=padded.targets[kept])

    def run(comm):
        model = mlp(Setting().widths).init(1)
        expected = mean_loss(model, CrossEntropy(), short), accuracy(model, short)
        return evaluate(model, CrossEntropy(ignore_index=2), padded, comm, chunk=7), expected

    for got, expected in launch(run, 3, LocalWorld()):
        assert got == pytest.approx(expected, rel=1e-6)


def check_hiding(comm, key):
    """What hides behind the backward is what the rule of buckets says."""
    setting = Setting()
    with defaults(dtype=setting.dtype):
        method = make(key, comm, setting)
        check_overlap(comm, method, Batches(setting.dataset, setting.batch)[0], SLOW_NET)


@pytest.mark.parametrize("key", ["tiny_buckets", "tiny_buckets_accumulated"])
def test_a_bucket_goes_when_it_is_full_and_the_one_before_is_through(key):
    launch(lambda comm: check_hiding(comm, key), 3, LocalWorld(SLOW_NET))


def launches_too_early(monkeypatch):
    """A bucket goes when its first gradient is there, not its last."""

    def eager(self, name, parameter):
        if name in self.last:
            self.launch(next(names for names in self.order.groups if name in names))

    monkeypatch.setattr(Buckets, "parameter_ready", eager)


def launches_at_the_end(monkeypatch):
    monkeypatch.setattr(Buckets, "parameter_ready", lambda self, name, parameter: None)


def sends_in_every_microbatch(monkeypatch):
    forward_backward = Overlapped.forward_backward

    def impatient(self, batch, before_backward=None):
        loss = forward_backward(self, batch, before_backward)
        if before_backward is None:
            ring.all_reduce(self.comm, self.model.flat.grad)
        return loss

    monkeypatch.setattr(Overlapped, "forward_backward", impatient)


def does_not_wait(monkeypatch):
    update = Buckets.update

    def hasty(self, limit):
        grad = self.model.flat.grad
        grad *= 1.0 if self.comm.rank else 1.001
        update(self, limit)

    monkeypatch.setattr(Buckets, "update", hasty)


@pytest.mark.parametrize(
    "mutant",
    [launches_too_early, launches_at_the_end, sends_in_every_microbatch, does_not_wait],
)
def test_mutant_is_rejected(mutant, monkeypatch):
    mutant(monkeypatch)

    def checks(comm):
        key = "tiny_buckets_accumulated"
        check_equals_serial(comm, key, Setting())
        check_predictions(comm, key, Setting())
        check_hiding(comm, key)

    with pytest.raises(AssertionError) as rejection:
        launch(checks, 3, LocalWorld(SLOW_NET))
    print(f"{mutant.__name__}: {rejection.value}")


def test_zero_microbatches_are_refused():
    with pytest.raises(ValueError, match="at least one microbatch, not 0"):
        launch(
            lambda comm: DataParallel(mlp((4, 2)), CrossEntropy(), SGD(0.1), comm, microbatches=0),
            2,
            LocalWorld(),
        )


def test_one_rank_with_microbatches_is_serial_bitwise():
    def run(comm):
        with defaults(dtype="float32"):
            return (
                train(make("tiny_buckets_accumulated", comm, Setting()), Setting()),
                serial(comm, Setting(), microbatches=3),
            )

    ((losses, states), (expected_losses, expected_states)), *_ = launch(run, 1)
    assert losses == pytest.approx(expected_losses, rel=1e-7)  # serial adds losses in float64
    for name, values in expected_states[-1].items():
        assert np.array_equal(states[-1][name], values), name
