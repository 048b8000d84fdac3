"""Pipelines of every schedule and model, bit for bit equal to serial training, and as predicted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.collectives import all_reduce
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults
from minidist.engine.mode import current_mode
from minidist.inspect.meter import measure_saved
from minidist.models import cnn, gpt, mlp
from minidist.nn import CrossEntropy, Embedding, Linear, Sequential
from minidist.optim import SGD, Adam
from minidist.parallel import Pipeline, Serial, simulate
from minidist.parallel.model_costs import parameter_count
from minidist.parallel.pipeline.executor import Executor
from minidist.parallel.pipeline.pricing import price_units
from minidist.parallel.pipeline.schedules import SCHEDULES, Backward, Forward, Schedule
from minidist.parallel.pipeline.stages import block_seconds
from tests.pairs import pairs

SYNCHRONOUS = [name for name in SCHEDULES if name != "pipedream"]
RANDOM = np.random.default_rng(5)
TOKENS = Dataset("tokens", RANDOM.integers(0, 9, (40, 5)), RANDOM.integers(0, 9, (40, 5)), 9)
IMAGES = Dataset("images", RANDOM.standard_normal((40, 8, 8)), RANDOM.integers(0, 5, 40), 5)
MODELS = {
    "mlp": (partial(mlp, (64, 9, 8, 7, 5)), IMAGES),
    "cnn": (partial(cnn, channels=2, classes=5, size=8), IMAGES),
    "gpt": (partial(gpt, 9, context=5, width=8, layers=4, heads=2, dropout=0.2), TOKENS),
}
BOTH_ENDS_ON_STAGE_0 = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 5), (5, 5), (5, 6)]
SLOW_NET = Machine(latency=1e-5, bandwidth=1e8, reduce_bandwidth=3e8, flops=1e8)


def sgd():
    return SGD(0.1, momentum=0.9)


def adam():
    return Adam(1e-2)


def train(method, dataset, batch=10, steps=2):
    batches = Batches(dataset, batch, seed=1)
    found = []
    for step in range(steps):
        found.append((method.step(batches[step]), method.parameters()))
    return found


def serial(comm, model, dataset, microbatches, optimizer=sgd, **options):
    alone = comm.split(comm.rank)
    method = Serial(model(), CrossEntropy(), optimizer(), alone, 2, microbatches=microbatches)
    return train(method, dataset, **options)


def pipeline(comm, model, optimizer=sgd, **options):
    return Pipeline(model(), CrossEntropy(), optimizer(), comm, 2, **options)


def assert_equal(got, expected, bound=0.0):
    for (loss, state), (expected_loss, expected_state) in zip(got, expected, strict=True):
        assert abs(loss - expected_loss) <= bound * abs(expected_loss), (loss, expected_loss)
        assert list(state) == list(expected_state)
        for name, values in expected_state.items():
            gap = np.abs(state[name] - values).max() / np.abs(values).max()
            assert gap <= bound, f"{name} differs by {gap}"


@pytest.mark.parametrize(
    ("name", "schedule", "ranks", "microbatches"),
    pairs(["cnn", "gpt"], SYNCHRONOUS, [1, 2, 3, 4], [1, 3, 6, 9]),
)
def test_bitwise_equal_to_serial_with_the_same_microbatches(name, schedule, ranks, microbatches):
    """With dropout, and with GPT's embedding shared by the first stage and the last."""
    model, dataset = MODELS[name]

    def run(comm):
        method = pipeline(comm, model, adam, schedule=schedule, microbatches=microbatches)
        assert_equal(train(method, dataset), serial(comm, model, dataset, microbatches, adam))

    launch(run, ranks, LocalWorld())


@pytest.mark.parametrize("schedule", SYNCHRONOUS)
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_plain_serial(name, schedule):
    model, dataset = MODELS[name]

    def run(comm):
        with defaults(dtype="float64"):
            got = train(pipeline(comm, model, schedule=schedule), dataset)
            assert_equal(got, serial(comm, model, dataset, 1), bound=1e-12)

    launch(run, 3, LocalWorld())


@pytest.mark.parametrize("schedule", SYNCHRONOUS)
def test_uneven_stages_cut_by_hand(schedule):
    model, dataset = MODELS["mlp"]
    bounds = [(0, 1), (1, 6), (6, 6), (6, 7), (7, 7), (7, 8)]
    bounds = bounds if SCHEDULES[schedule].chunks == 2 else [(0, 1), (1, 7), (7, 8)]

    def run(comm):
        method = pipeline(comm, model, schedule=schedule, bounds=bounds)
        assert_equal(train(method, dataset), serial(comm, model, dataset, 4))

    launch(run, 3, LocalWorld())


def test_both_ends_of_a_tied_model_on_one_stage():
    model, dataset = MODELS["gpt"]

    def run(comm):
        method = pipeline(comm, model, schedule="zero_bubble_v", bounds=BOTH_ENDS_ON_STAGE_0)
        assert bool(method.separated) == (comm.rank == 0) and not method.layout.tied
        assert_equal(train(method, dataset), serial(comm, model, dataset, 4))

    launch(run, 4, LocalWorld())


def test_stages_cut_by_measured_cost():
    model, dataset = MODELS["mlp"]

    def run(comm):
        batch = Batches(dataset, 10, seed=1)[0]
        costs = block_seconds(model(), batch, comm)
        assert len(costs) == len(model()) and min(costs) > 0
        method = pipeline(comm, model, costs=costs)
        assert_equal(train(method, dataset), serial(comm, model, dataset, 4))
        return costs, method.layout.bounds

    assert len({repr(result) for result in launch(run, 3, LocalWorld())}) == 1, "all ranks agree"


def equal_stages(chunks, width=16):
    """A linear layer for every chunk, behind a table that costs nothing to look up in."""
    layers = [Linear(width, width) for _ in range(chunks)]
    return Sequential(Embedding(width, width), *layers, input_shape=())


WORDS = Dataset("words", RANDOM.integers(0, 16, 64), RANDOM.integers(0, 16, 64), 16)


@pytest.mark.parametrize("m", [4, 8])
@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_a_real_run_idles_as_the_formula_says(name, p, m):
    """Measured, not priced: stages of equal cost, messages that take no time."""
    free = Machine(latency=0.0, bandwidth=float("inf"), flops=1e9)

    def run(comm):
        method = pipeline(
            comm,
            partial(equal_stages, 8),
            schedule=name,
            microbatches=m,
            bounds=even(p * SCHEDULES[name].chunks),
        )
        comm.barrier()
        start, busy = comm.time(), comm.trace.busy
        messages = comm.trace.sent.messages
        method.step(Batches(WORDS, 32, seed=1)[0])
        seconds = np.array([comm.time() - start])
        comm.trace.computed(comm.time())
        busy = comm.trace.busy - busy
        messages = comm.trace.sent.messages - messages
        all_reduce(comm, seconds, "max")
        return busy, seconds[0], messages

    results = launch(run, p, LocalWorld(free))
    idle = 1 - sum(busy for busy, _, _ in results) / (p * results[0][1])
    units = price_units(SCHEDULES[name], p, m)
    expected = {
        "naive": (p - 1) / p,
        "gpipe": (p - 1) / (m + p - 1),
        "1f1b": (p - 1) / (m + p - 1),
        "interleaved": (p - 1) / (2 * m + p - 1),
        "zero_bubble_h1": (p - 1) / (3 * m + p - 1),
        "zero_bubble_v": (p - 1) / (6 * m + p - 1),
    }[name]
    if m >= 2 * p or name != "zero_bubble_v":
        assert idle == pytest.approx(expected, abs=1e-9)
    assert idle == pytest.approx(units.idle_fraction, abs=1e-9)
    assert [messages for _, _, messages in results] == units.messages


def even(parts):
    """The 9 blocks of ``equal_stages(8)`` in equal parts, the table with the first."""
    each = 8 // parts
    return [(part * each + (part > 0), (part + 1) * each + 1) for part in range(parts)]


def check_prediction(comm, method, dataset, batch=13, steps=2):
    """Messages, bytes and memory of a step equal the formulas."""
    batches = Batches(dataset, batch, seed=1)
    for step in range(steps):
        comm.barrier()
        sent = comm.trace.sent
        before = sent.messages, sent.nbytes
        held = [array for kind in method.arrays().values() for array in kind]
        owners = [array if array.base is None else array.base for array in held]
        with measure_saved(exclude=owners) as meter:
            method.step(batches[step])
        cost = method.cost(batches[step], comm.machine)
        got = sent.messages - before[0], sent.nbytes - before[1]
        assert got == (cost.messages[comm.rank], cost.nbytes[comm.rank])
        assert meter.peak == cost.peak_bytes["activations"][comm.rank]
        assert meter.bytes == 0
        gradients = sum(array.nbytes for array in method.arrays()["gradients"])
        assert gradients == cost.peak_bytes["gradients"][comm.rank]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("schedule", SYNCHRONOUS)
@pytest.mark.parametrize("name", MODELS)
def test_recomputation_changes_no_bit_and_costs_what_it_should(name, schedule, ranks):
    model, dataset = MODELS[name]

    def run(comm):
        method = pipeline(comm, model, schedule=schedule, microbatches=3, recompute=True)
        assert_equal(train(method, dataset), serial(comm, model, dataset, 3))
        if name != "gpt" or "zero_bubble" not in schedule:
            check_prediction(comm, method, dataset)

    launch(run, ranks, LocalWorld(SLOW_NET))


def test_recomputation_saves_memory():
    model, dataset = MODELS["gpt"]

    def run(comm):
        batch = Batches(dataset, 12, seed=1)[0]
        kept, again = (
            pipeline(comm, model, recompute=recompute).cost(batch, SLOW_NET)
            for recompute in (False, True)
        )
        return kept.peak_bytes["activations"], again.peak_bytes["activations"]

    kept, again = launch(run, 2, LocalWorld())[0]
    assert all(2 * few < many for few, many in zip(again, kept, strict=True)), (kept, again)


@pytest.mark.parametrize(("ranks", "replicas"), [(2, 2), (4, 2), (6, 3)])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero_bubble_v"])
@pytest.mark.parametrize("name", MODELS)
def test_data_parallel_pipelines_equal_serial(name, schedule, ranks, replicas):
    model, dataset = MODELS[name]

    def run(comm):
        with defaults(dtype="float64"):
            method = pipeline(comm, model, schedule=schedule, microbatches=3, replicas=replicas)
            got = train(method, dataset, batch=13)
            assert_equal(got, serial(comm, model, dataset, 1, batch=13), bound=1e-12)
            if name != "gpt" or "zero_bubble" not in schedule:
                check_prediction(comm, method, dataset)
        return got

    results = launch(run, ranks, LocalWorld(SLOW_NET))
    for got in results[1:]:
        assert_equal(got, results[0])


def test_the_reduction_hides_behind_the_cool_down():
    """A chunk's gradients are summed over the copies while other chunks still go backward."""
    wide = partial(mlp, (64, 64, 64, 64, 64, 5))

    def seconds(replicas):
        made = partial(pipeline, model=wide, schedule="interleaved", microbatches=4)
        batches = Batches(IMAGES, 8 * replicas, seed=1)
        make = partial(made, replicas=replicas)
        return simulate(make, batches, 2 * replicas, SLOW_NET).step_seconds

    with_reduction, without = seconds(2), seconds(1)
    half = 4 * parameter_count(wide()) // 2  # bytes of a stage
    whole = 2 * SLOW_NET.message(half // 2) + SLOW_NET.reduce(half // 2)
    assert without < with_reduction < without + whole, "some of it must be hidden"


def test_your_own_schedule_in_ten_lines():
    """Last microbatch first: any order that can run gives serial's result up to rounding."""

    def backwards(stage, stages, microbatches):
        for microbatch in range(microbatches):
            yield Forward(microbatch)
        for microbatch in reversed(range(microbatches)):
            yield Backward(microbatch)

    model, dataset = MODELS["mlp"]

    def run(comm):
        with defaults(dtype="float64"):
            method = pipeline(comm, model, schedule=Schedule(backwards))
            got = train(method, dataset)
            assert_equal(got, serial(comm, model, dataset, 1), bound=1e-12)
            check_prediction(comm, method, dataset)

    launch(run, 3, LocalWorld(SLOW_NET))


def test_buffers_are_reused():
    model, dataset = MODELS["mlp"]

    def run(comm):
        method = pipeline(comm, model, schedule="1f1b", microbatches=8)
        train(method, dataset, batch=16, steps=2)
        return sum(len(buffers) for buffers in method.own.buffers.values())

    # 8 activations and 8 gradients a step need no more buffers than are under way at once.
    assert max(launch(run, 3, LocalWorld())) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 2}, "3 ranks cannot be 2 equal pipelines"),
        ({"schedule": "zero_bubble_v", "bounds": [(0, 4), (4, 8)]}, "2 for each of 3 stages"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        launch(lambda comm: pipeline(comm, MODELS["mlp"][0], **options), 3, LocalWorld())


def skip_reduction(monkeypatch, what, last_stage_only=False):
    """Some ranks do not add up what they must."""
    reduce = Executor.reduce

    def forgetful(self, which, chunk):
        last = self.stage.index == self.layout.stages - 1
        if which != what or (last_stage_only and not last):
            reduce(self, which, chunk)

    monkeypatch.setattr(Executor, "reduce", forgetful)


def missing_last_stage_reduction(monkeypatch):
    skip_reduction(monkeypatch, "replicas", last_stage_only=True)


def tied_gradients_not_summed(monkeypatch):
    skip_reduction(monkeypatch, "tied")


def later_uses_forgotten(monkeypatch):
    monkeypatch.setattr(Executor, "add_separated", lambda self, part: None)


def dropout_drawn_anew_in_the_recomputation(monkeypatch):
    """The second forward draws other masks than the first."""
    draws_of = Pipeline.draws_of

    def other(self, part):
        first = part.first + 1 if current_mode().recording else part.first
        return draws_of(self, replace(part, first=first))

    monkeypatch.setattr(Pipeline, "draws_of", other)


@pytest.mark.parametrize(
    ("mutant", "options"),
    [
        (missing_last_stage_reduction, {"replicas": 2}),
        (tied_gradients_not_summed, {}),
        (tied_gradients_not_summed, {"replicas": 2}),
        (
            later_uses_forgotten,
            {"schedule": "zero_bubble_v", "bounds": BOTH_ENDS_ON_STAGE_0},
        ),
        (dropout_drawn_anew_in_the_recomputation, {"recompute": True}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_mutant_is_rejected(mutant, options, monkeypatch):
    mutant(monkeypatch)
    model, dataset = MODELS["gpt"]

    def run(comm):
        with defaults(dtype="float64"):
            method = pipeline(comm, model, **options)
            got = train(method, dataset)
            assert_equal(got, serial(comm, model, dataset, 1), bound=1e-12)

    with pytest.raises(AssertionError) as rejection:
        launch(run, 4, LocalWorld())
    print(f"{mutant.__name__}: {rejection.value}")


def sends_wait_at_once(monkeypatch):
    """Right numbers, but a stage stands still until its message has been received."""
    send = Executor.send

    def waiting(self, what, microbatch, peer, part):
        send(self, what, microbatch, peer, part)
        self.sends.pop((what, microbatch, part)).wait()

    monkeypatch.setattr(Executor, "send", waiting)


def seconds_and_busy(p, m, latency):
    """Of a GPipe step with equal stages; messages take ``latency`` and no bandwidth."""

    def run(comm):
        method = pipeline(
            comm, partial(equal_stages, 8), schedule="gpipe", microbatches=m, bounds=even(p)
        )
        comm.barrier()
        start, busy = comm.time(), comm.trace.busy
        method.step(Batches(WORDS, 32, seed=1)[0])
        comm.trace.computed(comm.time())
        return comm.time() - start, comm.trace.busy - busy

    machine = Machine(latency=latency, bandwidth=float("inf"), flops=1e9)
    results = launch(run, p, LocalWorld(machine))
    return max(seconds for seconds, _ in results), results[0][1]


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8)])
def test_messages_travel_while_stages_compute(p, m):
    """T = (m + p - 1)(f + b) + 2(p - 1)α: only the first way there and the last one back count."""
    without, busy = seconds_and_busy(p, m, 0.0)
    both = busy / m  # f + b, of one microbatch
    assert without == pytest.approx((m + p - 1) * both, rel=1e-12)
    latency = both / 100
    seconds, _ = seconds_and_busy(p, m, latency)
    assert seconds - without == pytest.approx(2 * (p - 1) * latency, rel=1e-6)


def test_sends_that_wait_at_once_are_rejected(monkeypatch):
    """Only the time shows it: the simulation runs the same source, so a formula must."""
    sends_wait_at_once(monkeypatch)
    with pytest.raises(AssertionError):
        test_messages_travel_while_stages_compute(4, 8)
