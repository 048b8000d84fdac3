"""A part brings gradients together in data parallelism and between the replicas of a pipeline."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch
from minidist.collectives import all_reduce, ring
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.inspect.meter import measure_saved
from minidist.nn import CrossEntropy, Flatten, Linear, ReLU, Sequential
from minidist.optim import LAMB, SGD, Adam, AdamW
from minidist.parallel import (
    AllReduce,
    AllReducePerParameter,
    Buckets,
    CompressedSum,
    DataParallel,
    GradientSync,
    Pipeline,
    ReduceScatter,
    ReduceScatterSlots,
    ReduceScatterUnits,
    Serial,
    SymmetricMemory,
)
from minidist.parallel.gradient_compression import (
    BFloat16,
    Float16,
    PowerSGD,
    RandomK,
    Sign,
    TopK,
)
from minidist.parallel.pipeline.executor import Executor
from minidist.parallel.zero.stage1 import OverlappedShards
from tests.pairs import pairs
from tests.parallel.pipeline.test_pipeline import (
    BOTH_ENDS_ON_STAGE_0,
    MODELS,
    SLOW_NET,
    SYNCHRONOUS,
    assert_equal,
    train,
)

TINY = 60 * 8 / (1 << 20)  # buckets of 60 float64 parameters
EXACT = {
    "all_reduce": AllReduce,
    "halving_doubling": partial(AllReduce, "halving_doubling"),
    "a function": partial(AllReduce, lambda comm, array, op: ring.all_reduce(comm, array, op)),
    "per_parameter": AllReducePerParameter,
    "symmetric": SymmetricMemory,
    "buckets": partial(Buckets, TINY, 0),
    "zero 1": ReduceScatter,
    "zero 2": ReduceScatterUnits,
    "top_k of everything": partial(CompressedSum, partial(TopK, 1.0)),
    "random_k of everything": partial(CompressedSum, partial(RandomK, 1.0)),
    "power_sgd of full rank": partial(CompressedSum, partial(PowerSGD, 99)),
}
OPTIMIZERS = {
    "sgd": lambda: SGD(0.1, momentum=0.9),
    "adam": lambda: Adam(1e-2),
    "lamb": lambda: LAMB(1e-2),
    "adamw": lambda: AdamW(1e-2, weight_decay=0.1, exclude=("*bias",)),
}


def pipeline(comm, model, optimizer="sgd", **options):
    return Pipeline(model(), CrossEntropy(), OPTIMIZERS[optimizer](), comm, 2, **options)


def data_parallel(comm, model, optimizer="sgd", **options):
    return DataParallel(model(), CrossEntropy(), OPTIMIZERS[optimizer](), comm, 2, **options)


def serial(comm, model, optimizer="sgd", **options):
    alone = comm.split(comm.rank)
    return Serial(model(), CrossEntropy(), OPTIMIZERS[optimizer](), alone, 2, **options)


def check_equal(method, expected, dataset, batch, steps=3, bound=1e-12):
    got = train(method, dataset, batch, steps)
    assert_equal(got, train(expected, dataset, batch, steps), bound)
    return got


@pytest.mark.parametrize(
    ("sync", "name", "batch", "optimizer"), pairs(EXACT, ["mlp", "gpt"], [13, 3], ["sgd", "adam"])
)
def test_two_stages_with_two_replicas_equal_serial(sync, name, batch, optimizer):
    """With GPT's embedding tied between the two stages, and dropout; uneven shards; one empty."""
    if "power" in sync and optimizer == "adam":
        pytest.skip("it rounds gradients that are 0, and Adam makes a whole step of any gradient")
    model, dataset = MODELS[name]

    def run(comm):
        with defaults(dtype="float64"):
            method = pipeline(comm, model, optimizer, microbatches=3, replicas=2, sync=EXACT[sync])
            bound = 1e-10 if optimizer == "adam" and name == "gpt" else 1e-12
            return check_equal(method, serial(comm, model, optimizer), dataset, batch, 3, bound)

    first, *others = launch(run, 4, LocalWorld(SLOW_NET))
    for other in others:
        assert_equal(other, first)  # all replicas and all copies, in every bit


@pytest.mark.parametrize("schedule", SYNCHRONOUS)
@pytest.mark.parametrize("sync", ["all_reduce", "buckets", "zero 1", "zero 2"])
def test_every_schedule(sync, schedule):
    model, dataset = MODELS["gpt"]

    def run(comm):
        with defaults(dtype="float64"):
            options = {"schedule": schedule, "microbatches": 3, "recompute": schedule == "naive"}
            method = pipeline(comm, model, replicas=2, sync=EXACT[sync], **options)
            check_equal(method, serial(comm, model), dataset, 13)

    launch(run, 4, LocalWorld(SLOW_NET))


@pytest.mark.parametrize("sync", ["buckets", "zero 2"])
def test_tied_stages_stay_equal_in_every_bit_with_three_replicas(sync):
    model, dataset = MODELS["gpt"]

    def run(comm):
        method = pipeline(comm, model, "adam", microbatches=2, replicas=3, sync=EXACT[sync])
        train(method, dataset, 13, 4)
        (name,) = method.layout.tied
        return method.model.named_parameters()[name].data.copy()

    tables = launch(run, 6, LocalWorld())
    assert all(np.array_equal(table, tables[0]) for table in tables)


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
@pytest.mark.parametrize("sync", ["buckets", "zero 1", "zero 2"])
def test_rules_that_know_their_parameters(sync, optimizer):
    """Norms of whole parameters, of which each replica has a shard; biases without decay."""
    model, dataset = MODELS["mlp"]

    def run(comm):
        with defaults(dtype="float64"):
            method = pipeline(comm, model, optimizer, replicas=2, sync=EXACT[sync])
            check_equal(method, serial(comm, model, optimizer), dataset, 13)

    launch(run, 4, LocalWorld())


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", ["mlp", "gpt"])
@pytest.mark.parametrize("sync", ["all_reduce", "buckets", "zero 1", "zero 2"])
def test_clipped_by_the_norm_of_all_stages(sync, name, replicas):
    """Each number counted once: the tied embedding too, and each replica's shard."""
    model, dataset = MODELS[name]

    def run(comm):
        with defaults(dtype="float64"):
            options = {"sync": EXACT[sync]} if replicas > 1 else {}
            method = pipeline(comm, model, microbatches=3, replicas=replicas, clip=0.05, **options)
            got = check_equal(method, serial(comm, model, clip=0.05), dataset, 13)
            free = train(serial(comm, model), dataset, 13, 3)
            assert got[1][0] != pytest.approx(free[1][0], rel=1e-6), "nothing was clipped"
            check_cost(comm, method, dataset)

    launch(run, 2 * replicas, LocalWorld(SLOW_NET))


@pytest.mark.parametrize("kind", [Float16, BFloat16, Sign])
def test_compressed_replicas_equal_compressed_data_parallelism(kind):
    """These treat each parameter alone, so it makes no difference on which stage it lies."""
    model, dataset = MODELS["mlp"]

    def run(comm):
        compressed = partial(CompressedSum, kind)
        options = {"microbatches": 3, "sync": compressed}
        got = train(pipeline(comm, model, replicas=2, **options), dataset, 13, 4)
        pair = comm.split(comm.rank % 2)
        expected = train(data_parallel(pair, model, **options), dataset, 13, 4)
        alone = train(serial(comm, model), dataset, 13, 4)
        assert_equal(got, expected, bound=1e-6)
        for (_, mine), (_, same) in zip(got, expected, strict=True):
            assert all(np.array_equal(mine[name], same[name]) for name in same)
        last, exact = got[-1][1], alone[-1][1]
        assert any(np.abs(last[n] - exact[n]).max() > 1e-5 for n in exact), "nothing was lost"

    launch(run, 4, LocalWorld())


def test_compressed_replicas_of_tied_stages_stay_equal():
    """Each stage compresses its own use's gradient; the table takes the sum on both."""
    model, dataset = MODELS["gpt"]

    def run(comm):
        sync = partial(CompressedSum, partial(TopK, 0.1))
        method = pipeline(comm, model, "adam", microbatches=2, replicas=2, sync=sync)
        train(method, dataset, 13, 4)
        (name,) = method.layout.tied
        return method.model.named_parameters()[name].data.copy()

    tables = launch(run, 4, LocalWorld())
    assert all(np.array_equal(table, tables[0]) for table in tables)


def check_cost(comm, method, dataset, batch=13, steps=2):
    """Messages, bytes and memory equal the formulas; the time, where one is known."""
    batches = Batches(dataset, batch, seed=1)
    for step in range(steps):
        comm.barrier()
        sent, start = comm.trace.sent, comm.time()
        before, busy = (sent.messages, sent.nbytes), comm.trace.busy
        kept = [array for kind in method.arrays().values() for array in kind]
        owners = [array if array.base is None else array.base for array in kept]
        with measure_saved(exclude=owners) as meter:
            method.step(batches[step])
        seconds = np.array([comm.time() - start])
        got = sent.messages - before[0], sent.nbytes - before[1]
        comm.trace.computed(comm.time())
        cost = method.cost(batches[step], comm.machine)
        worked = comm.trace.busy - busy
        assert abs(worked - cost.busy[comm.rank]) <= 1e-9 * max(cost.busy), (worked, cost.busy)
        assert got == (cost.messages[comm.rank], cost.nbytes[comm.rank])
        held = {kind: sum(a.nbytes for a in some) for kind, some in method.arrays().items()}
        held["activations"] = meter.peak
        assert held == {kind: by_rank[comm.rank] for kind, by_rank in cost.peak_bytes.items()}
        all_reduce(comm, seconds, "max")
        if cost.seconds is not None:
            assert abs(seconds[0] - cost.seconds) <= 1e-9 * cost.seconds, (seconds, cost.seconds)
    return cost


@pytest.mark.parametrize("ranks", [4, 6])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zero_bubble_h1"])
@pytest.mark.parametrize("sync", sorted(EXACT.keys() - {"a function"}))
def test_messages_bytes_and_memory_of_a_pipeline_equal_the_formula(sync, schedule, ranks):
    model, dataset = MODELS["mlp"]

    def run(comm):
        options = {"schedule": schedule, "microbatches": 3, "replicas": ranks // 2}
        method = pipeline(comm, model, "adam", sync=EXACT[sync], **options)
        check_cost(comm, method, dataset)

    launch(run, ranks, LocalWorld(SLOW_NET))


@pytest.mark.parametrize("optimizer", ["adam", "lamb"])
def test_zero_2_in_a_pipeline_divides_the_optimizer_by_the_replicas(optimizer):
    model, dataset = MODELS["mlp"]

    def run(comm, sync):
        method = pipeline(comm, model, optimizer, replicas=4, sync=sync)
        check_cost(comm, method, dataset)
        return sum(array.nbytes for array in method.arrays()["optimizer"])

    shards = launch(partial(run, sync=ReduceScatterUnits), 8, LocalWorld())
    whole = launch(partial(run, sync=AllReduce), 8, LocalWorld())
    assert sum(shards) == sum(whole) / 4


def test_buckets_leave_while_the_last_backward_runs():
    """The first bucket of a stage is sent before the stage's backward is over."""
    model, dataset = MODELS["mlp"]

    def run(comm):
        method = pipeline(comm, model, replicas=2, sync=partial(Buckets, TINY, 0))
        sent = []
        launch, ready = method.sync.launch, method.sync.ready

        def note(names):
            launch(names)
            sent.append(method.sync.order.sent)

        method.sync.launch = note
        method.sync.ready = lambda part: (sent.append("complete"), ready(part))
        method.step(Batches(dataset, 13, seed=1)[0])
        return sent[: sent.index("complete")], len(method.sync.buckets)

    for before, buckets in launch(run, 4, LocalWorld()):
        assert buckets > 1
        assert max(before) == buckets, f"{before} of {buckets} buckets were sent by then"


def check_that_nothing_is_sent_before_it_is_complete(method):
    """Gradients do not change between the launch of their sum and the sum."""
    sync, spawn = method.sync, method.sync.comm.spawn

    def watched(function, *args):
        # A bucket is given by its place, a unit by itself.
        array = sync.model.flat.grad_and_loss[args[0]] if args else function.args[0].buffer
        at_launch = array.copy()

        def run(stream, *args):
            assert np.array_equal(array, at_launch), "sent before it was complete"
            function(stream, *args)

        return spawn(run, *args)

    sync.comm.spawn = watched


@pytest.mark.parametrize("schedule", SYNCHRONOUS)
@pytest.mark.parametrize("sync", ["all_reduce", "buckets", "zero 2"])
def test_nothing_is_sent_before_it_is_complete(sync, schedule):
    """With GPT's table at both ends of one stage: the only one, or the one with both chunks."""
    model, dataset = MODELS["gpt"]

    def run(comm):
        options = {"schedule": schedule, "microbatches": 3, "replicas": 2}
        if schedule == "zero_bubble_v":
            options["bounds"] = BOTH_ENDS_ON_STAGE_0
        with defaults(dtype="float64"):
            method = pipeline(comm, model, sync=EXACT[sync], **options)
            check_that_nothing_is_sent_before_it_is_complete(method)
            check_equal(method, serial(comm, model), dataset, 13)

    launch(run, 8 if schedule == "zero_bubble_v" else 2, LocalWorld(SLOW_NET))


def one_weight_in_three_blocks():
    first, second, third = (Linear(8, 8, bias=False) for _ in range(3))
    first.weight.shared_name = "weight"
    second.weight = third.weight = first.weight
    ends = Flatten(), Linear(64, 8), Linear(8, 5)
    return Sequential(*ends[:2], first, ReLU(), second, ReLU(), third, ends[2], input_shape=(8, 8))


@pytest.mark.parametrize("sync", EXACT)
def test_a_weight_that_one_stage_uses_twice_and_the_other_once(sync):
    _, dataset = MODELS["mlp"]
    model = one_weight_in_three_blocks

    def run(comm):
        with defaults(dtype="float64"):
            options = {"microbatches": 3, "replicas": 2, "bounds": [(0, 6), (6, 8)]}
            method = pipeline(comm, model, sync=EXACT[sync], clip=0.05, **options)
            assert method.layout.tied == ("weight",)
            assert len(method.separated) == (method.stage == 0)
            check_equal(method, serial(comm, model, clip=0.05), dataset, 13)
            check_cost(comm, method, dataset)

    if sync == "a function":
        pytest.skip("no formula is known for it")
    launch(run, 4, LocalWorld(SLOW_NET))


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("sync", [*EXACT, "slots"])
def test_data_parallelism_takes_any_of_them(sync, microbatches):
    model, dataset = MODELS["cnn"]
    if sync == "slots" and microbatches > 1:
        pytest.skip("two blocks' memory is not enough to accumulate in")

    def run(comm):
        with defaults(dtype="float64"):
            part = ReduceScatterSlots if sync == "slots" else EXACT[sync]
            method = data_parallel(comm, model, microbatches=microbatches, sync=part, clip=0.05)
            check_equal(method, serial(comm, model, clip=0.05), dataset, 13, bound=1e-11)

    launch(run, 3, LocalWorld())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sync": Buckets()}, ValueError, "pass replicas=2"),
        ({"sync": "buckets", "replicas": 2}, TypeError, "is a GradientSync.*not 'buckets'"),
        ({"sync": ReduceScatterSlots, "replicas": 2}, ValueError, "use ReduceScatterUnits"),
        ({"sync": ReduceScatter, "replicas": 3}, ValueError, "stages.*would differ"),
    ],
)
def test_what_a_pipeline_cannot_take_is_refused_with_the_reason(options, error, message):
    ranks = 2 * options.get("replicas", 1)
    with pytest.raises(error, match=message):
        launch(lambda comm: pipeline(comm, MODELS["gpt"][0], **options), ranks, LocalWorld())


def test_one_object_for_two_methods_is_refused():
    sync = Buckets()

    def run(comm):
        for _ in range(2):
            data_parallel(comm, MODELS["mlp"][0], sync=sync)

    with pytest.raises(ValueError, match="Buckets has a model already"):
        launch(run, 1, LocalWorld())


def sends_before_the_last_microbatch(monkeypatch):
    """Hooks fire in every backward: gradients leave while microbatches are still to come."""
    monkeypatch.setattr(Executor, "do", eager(Executor.do))


def eager(do):
    def wrong(self, instruction):
        self.stage.sync.last_backward(part=slice(0, self.stage.model.flat.size))
        do(self, instruction)

    return wrong


def replicas_never_summed(monkeypatch):
    monkeypatch.setattr(OverlappedShards, "reduce", lambda self, unit: None)


def tied_summed_after_the_shards(monkeypatch):
    """The two stages' shards of the table are not the same parts of it."""
    monkeypatch.setattr(ReduceScatter, "sharded", False)


def every_copy_counts_the_tied_table(monkeypatch):
    from minidist.parallel.pipeline.layout import Layout

    monkeypatch.setattr(Layout, "counted_elsewhere", lambda self, stage: ())


def late_gradients_sent_early(monkeypatch):
    """The tied table goes with its block, before the other stage's part has been added."""
    from minidist.parallel.pipeline.layout import Layout

    monkeypatch.setattr(Layout, "apart", lambda self, stage: frozenset())


@pytest.mark.parametrize(
    ("sync", "mutant"),
    [
        ("buckets", sends_before_the_last_microbatch),
        ("zero 2", sends_before_the_last_microbatch),
        ("zero 2", replicas_never_summed),
        ("zero 1", tied_summed_after_the_shards),
        ("zero 2", late_gradients_sent_early),
        ("zero 2", every_copy_counts_the_tied_table),
        ("all_reduce", every_copy_counts_the_tied_table),
    ],
)
def test_mutant_is_rejected(sync, mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        test_clipped_by_the_norm_of_all_stages(sync, "gpt", 2)


class Central(GradientSync):
    """A way of your own: rank 0 adds, and tells the others."""

    def finish(self):
        total = self.model.flat.grad_and_loss
        total[-1] = self.loss
        all_reduce(self.comm, total, algorithm="central")
        return float(total[-1])


def test_a_way_of_your_own_is_one_class():
    model, dataset = MODELS["mlp"]

    def run(comm):
        with defaults(dtype="float64"):
            method = pipeline(comm, model, replicas=2, sync=Central())
            check_equal(method, serial(comm, model), dataset, 13)
            method = data_parallel(comm, model, sync=Central())
            check_equal(method, serial(comm, model), dataset, 13)

    launch(run, 4, LocalWorld(Machine()))
