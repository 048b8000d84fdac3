"""Data, pipeline and tensor parallelism at once: serial's numbers on every mesh."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, Machine, launch, nn
from minidist.compress import adapt, keep_largest, shrink
from minidist.compress.rebuild import declared
from minidist.engine.array import defaults
from minidist.models import gpt
from minidist.optim import LAMB, SGD
from minidist.parallel import (
    Buckets,
    CompressedSum,
    DataParallel,
    GatheredUnits,
    Mesh,
    MeshParallel,
    Serial,
    TensorParallel,
)
from minidist.parallel.mesh.mesh import describe, parse
from minidist.parallel.pipeline import executor as executors
from minidist.parallel.pipeline import stage_sums
from minidist.parallel.pipeline.layout import Layout
from minidist.parallel.tensor import part as parts
from minidist.parallel.zero import gathered, stage1
from tests.pairs import pairs
from tests.parallel.mesh.combinations import (
    GPT,
    SCHEDULES,
    Combination,
    covering_pairs,
    ranks_of,
)
from tests.parallel.tensor.checks import (
    MLP,
    Task,
    adamw,
    check_equals_serial,
    check_predictions,
    largest_gap,
    serial,
    small_gpt,
    train,
)

WORLD = LocalWorld(Machine(latency=1e-5, bandwidth=1e8, reduce_bandwidth=3e8, flops=1e8))
CUBE = {"dp": 2, "pp": 2, "tp": 2}
ZB_V = {"schedule": "zero_bubble_v", "microbatches": 3}
EVEN = partial(small_gpt, vocabulary=16)
RECOMPUTE = [False, True, "attention"]


@pytest.mark.parametrize("one", covering_pairs(), ids=str)
def test_every_mesh_equals_serial(one):
    """Losses, norms of the gradient, parameters. ``make long`` runs all of the matrix."""
    launch(partial(check_equals_serial, kind=MeshParallel, task=one.task()), one.ranks)


@pytest.mark.parametrize(
    ("dp", "pp", "tp", "zero", "schedule", "sequence", "recompute"),
    pairs([1, 2], [1, 2], [1, 2], [0, 1, 2, 3], SCHEDULES, [0, 1, 2], RECOMPUTE),
)
def test_messages_bytes_and_memory_equal_the_formula(
    dp, pp, tp, zero, schedule, sequence, recompute
):
    one = Combination(dp, pp, tp, zero, schedule, sequence, "adamw")
    task = one.task(recompute=recompute)
    launch(partial(check_predictions, kind=MeshParallel, task=task), one.ranks, WORLD)


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ({"dp": 3, "tp": 2}, {"zero": 2, "sequence": True}),
        ({"dp": 2, "pp": 2, "tp": 2}, {"sync": partial(Buckets, 1e-3, 0), "sequence": True}),
        pytest.param(CUBE, {"recompute": True, "sequence": True}, marks=pytest.mark.long),
        pytest.param({"pp": 2, "tp": 4}, ZB_V, marks=pytest.mark.long),
        ({"tp": 3}, {"microbatches": 2}),
    ],
    ids=str,
)
def test_more_meshes(mesh, options):
    task = Task(model=EVEN, options={"mesh": mesh, "microbatches": 2, **options})

    def run(comm):
        check_equals_serial(comm, MeshParallel, task)
        check_predictions(comm, MeshParallel, task)

    launch(run, ranks_of(mesh), WORLD)


@pytest.mark.parametrize("zero", [0, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2)), 3])
def test_layer_wise_rules_on_a_mesh(zero):
    options = {"mesh": {"dp": 2, "pp": 2, "tp": 2}, "microbatches": 2, "zero": zero}
    task = Task(optimizer=lambda: LAMB(0.02), steps=3, options=options)

    def run(comm):
        check_equals_serial(comm, MeshParallel, task)
        check_predictions(comm, MeshParallel, task)

    launch(run, 8, WORLD)


def test_gathered_units_in_data_parallelism():
    task = Task(options={"sync": GatheredUnits, "microbatches": 2})

    def run(comm):
        check_equals_serial(comm, DataParallel, task)
        check_predictions(comm, DataParallel, task)

    launch(run, 3, WORLD)


@pytest.mark.parametrize(("zero", "sequence"), [(0, True), (1, False), (2, True), (3, False)])
def test_the_norm_of_the_gradient_is_serials(zero, sequence):
    """Before any clipping: what is cut, whole, tied and sharded counts once."""
    task = Task(clip=1e9)

    def run(comm):
        with defaults(dtype="float64"):
            oracle = serial(comm, task)
            oracle.update = lambda: None  # keep the gradient as it is
            oracle.step(task.batches()[0])
            method = MeshParallel(
                task.model(),
                task.loss(),
                task.optimizer(),
                comm,
                task.seed,
                mesh={"dp": 2, "pp": 2, "tp": 2},
                zero=zero,
                sequence=sequence,
                microbatches=3,
                clip=1e9,
            )
            norms = []
            right = executors.Executor.gradient_norm
            method.update = lambda: norms.append(right(method.run))
            method.own = stage_sums.OwnStage(**(vars(method.own) | {"update": method.update}))
            method.step(task.batches()[0])
            expected = float(np.linalg.norm(oracle.model.flat.grad))
            assert norms[0] == pytest.approx(expected, rel=1e-12)
        return norms[0]

    assert len(set(launch(run, 8))) == 1


MESHES = [
    {},
    {"mesh": {"dp": 2, "pp": 2, "tp": 2}, "zero": 1, "sequence": True},
    {"mesh": {"dp": 4}, "zero": 3},
    {"mesh": {"pp": 2, "tp": 2}, "schedule": "interleaved"},
    {"mesh": {"tp": 4}, "sequence": True, "keep": True},
    {"mesh": {"dp": 3, "pp": 2}, "zero": 2, "schedule": "zero_bubble_h1"},
]


def run_on(options, task, saved, first, last):
    """Losses of some steps, and the state after them."""

    def run(comm):
        with defaults(dtype="float64"):
            if not options:
                method = serial(comm, task)
            else:
                model, loss = task.model(), task.loss()
                method = MeshParallel(
                    model, loss, task.optimizer(), comm, task.seed, clip=task.clip,
                    microbatches=2,
                    **options,
                )  # fmt: skip
            if saved is not None:
                method.load(saved)
            losses = [method.step(task.batches()[step]) for step in range(first, last)]
            return losses, method.state()

    return launch(run, ranks_of(options.get("mesh", {})))


@pytest.mark.parametrize("origin", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (0, 2))])
def test_saved_on_one_mesh_loaded_on_five_others(origin):
    """The same curve, also where the rate changes from step to step."""
    task = Task(optimizer=adamw)
    straight, _ = run_on({}, task, None, 0, 6)[0]
    begin = run_on({}, task, None, 0, 0)[0][1]
    results = run_on(MESHES[origin], task, begin, 0, 3)
    saved = results[0][1]
    for _, other in results:
        assert list(other) == list(saved)
        assert all(np.array_equal(other[name], saved[name]) for name in saved)
    for index, options in enumerate(MESHES):
        if index != origin:
            losses, _ = run_on(options, task, saved, 3, 6)[0]
            assert losses == pytest.approx(straight[3:], rel=1e-12), options


def partly_frozen():
    model = GPT()
    for name, parameter in model.named_parameters().items():
        parameter.requires_grad = "up" not in name and "embedding" not in name
    return model


def adapted():
    return adapt(gpt(13, 8, 16, 2, 4), rank=2, alpha=4.0)


def with_fewer_heads():
    """Two heads of four features, of a width that four of them would have."""
    model = GPT().init(0)
    return declared(shrink(model, keep_largest(model, {"1.attention": 2, "2.attention": 2})))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (partly_frozen, {"mesh": {"dp": 2, "tp": 2}, "zero": 2}),
        (partly_frozen, {"mesh": {"pp": 2, "tp": 2}, "schedule": "zero_bubble_h1"}),
        (adapted, {"mesh": {"dp": 2, "tp": 2}, "zero": 3}),
        (with_fewer_heads, {"mesh": {"pp": 2, "tp": 2}}),
    ],
)
def test_models_that_were_changed_train_on_a_mesh(model, options):
    task = Task(model=model, options={"microbatches": 2, **options})

    def run(comm):
        check_equals_serial(comm, MeshParallel, task)
        if model is not adapted:  # memory is counted block by block, as if all of one were trained
            check_predictions(comm, MeshParallel, task)

    launch(run, ranks_of(options["mesh"]), WORLD)


@pytest.mark.parametrize("mesh", [{"dp": 2, "tp": 2}, {"dp": 2, "pp": 2}], ids=str)
def test_batch_norm_over_other_ranks_than_the_replicas_is_refused(mesh):
    """Over all ranks it would count samples twice, or wait for a stage that has no such layer."""

    def run(comm):
        model = nn.Sequential(nn.Linear(6, 5), nn.SyncBatchNorm(5, comm), nn.Linear(5, 3),
                              input_shape=(6,))  # fmt: skip
        MeshParallel(model, Task().loss(), SGD(0.1), comm, mesh=mesh)

    with pytest.raises(
        ValueError, match=r"1 is synchronised over ranks \[0, 1, 2, 3\], but the rep"
    ):
        launch(run, 4)


def test_synchronised_batch_norm_on_a_mesh_is_that_of_the_whole_batch():
    """Given the communicator of the data axis; on the tensor axis it is the same layer twice."""

    def model(norm):
        layers = nn.Flatten(), nn.Linear(12, 7), norm, nn.ReLU(), nn.Linear(7, 5)
        return nn.Sequential(*layers, input_shape=(3, 4))

    task = Task(**MLP)

    def run(comm):
        with defaults(dtype="float64"):
            grid = Mesh(comm, dp=2, tp=2)
            build = task.loss(), task.optimizer()
            alone = Serial(model(nn.BatchNorm(7)), *build, comm.split(comm.rank), task.seed)
            norm = nn.SyncBatchNorm(7, grid["dp"])
            build = task.loss(), task.optimizer()
            method = MeshParallel(model(norm), *build, comm, task.seed, mesh={"dp": 2, "tp": 2})
            for got, expected in zip(train(method, task), train(alone, task), strict=True):
                if isinstance(got, dict):
                    assert largest_gap(got, expected)[0] < 1e-12
            assert largest_gap(method.buffers(), alone.buffers())[0] < 1e-12

    launch(run, 4)


def test_evaluation_on_a_mesh():
    task = Task()

    def run(comm):
        with defaults(dtype="float64"):
            method = MeshParallel(
                task.model(), task.loss(), task.optimizer(), comm, task.seed,
                mesh={"dp": 2, "pp": 2, "tp": 2}, zero=3, sequence=True,
            )  # fmt: skip
            method.step(task.batches()[0])
            alone = serial(comm, task)
            alone.model.load(method.parameters())
            assert method.evaluate(task.data(), 16) == pytest.approx(
                alone.evaluate(task.data()), rel=1e-12
            )
            assert train(method, task)[0]  # and training goes on

    launch(run, 8)


# The mesh itself


def test_ranks_by_reshape_tensor_innermost():
    def run(comm):
        mesh = Mesh(comm, tp=2, dp=2, pp=2)
        assert comm.rank == (mesh.place["dp"] * 2 + mesh.place["pp"]) * 2 + mesh.place["tp"]
        assert [mesh[axis].size for axis in ("dp", "pp", "tp")] == [2, 2, 2]
        assert mesh.rank_of(pp=1) == 2
        return str(mesh), mesh.groups("pp")

    assert launch(run, 8)[3] == (
        "8 ranks, dp=2,pp=2,tp=2\n"
        "dp  data      0 4 | 1 5 | 2 6 | 3 7\n"
        "pp  pipeline  0 2 | 1 3 | 4 6 | 5 7\n"
        "tp  tensor    0 1 | 2 3 | 4 5 | 6 7",
        [[0, 2], [1, 3], [4, 6], [5, 7]],
    )


def test_meshes_are_written_and_read():
    assert parse("dp=2, tp=4") == {"dp": 2, "tp": 4}
    assert describe({"dp": 2, "pp": 1, "tp": 4}) == "dp=2,tp=4"
    for text in ("dp", "dp=x", "dp=2,dp=2", "xy=2", "tp=0"):
        with pytest.raises(ValueError, match="mesh"):
            parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": {"dp": 3}}, "a mesh of dp=3 needs 3 ranks, and there are 4"),
        ({"mesh": {"xp": 4}}, "has the axes dp, pp, tp, not 'xp'"),
        ({"mesh": {"dp": 4}, "zero": 4}, "zero is a stage, 0 to 3, not 4"),
        ({"mesh": {"tp": 4}, "zero": 1}, "zero=1 shards over replicas, and dp is 1"),
        ({"mesh": {"dp": 4}, "zero": 1, "sync": Buckets}, "pass one of the two"),
        ({"mesh": {"dp": 4}, "sequence": True}, "cut over the tensor axis: tp is 1"),
        ({"mesh": {"pp": 4}, "sync": Buckets}, "pass replicas=2"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        launch(lambda comm: MeshParallel(GPT(), Task().loss(), SGD(0.1), comm, **options), 4)


def test_uneven_cuts_and_three_replicas_would_drift_apart():
    def run(comm):
        MeshParallel(GPT(), Task().loss(), SGD(0.1), comm, mesh={"dp": 3, "tp": 2})

    with pytest.raises(ValueError, match=r"cuts unevenly \(embedding.weight\)"):
        launch(run, 6)


def test_a_compressed_sum_runs_on_a_mesh():
    from minidist.parallel.gradient_compression import BFloat16

    def run(comm):
        task = Task(options={})
        method = MeshParallel(
            GPT(), task.loss(), SGD(0.1), comm, mesh={"dp": 2, "tp": 2},
            sync=CompressedSum(BFloat16),
        )  # fmt: skip
        return method.step(task.batches()[0])

    assert len(set(launch(run, 4))) == 1


# Mutants: bugs that large code bases had


def whole_weights_counted_t_times(monkeypatch):
    monkeypatch.setattr(parts.TensorPart, "elsewhere", frozenset())


def clipped_by_the_norm_of_a_slice(monkeypatch):
    monkeypatch.setattr(parts.TensorPart, "square_of_all", lambda self, square: None)


def clipped_by_the_norm_of_a_stage(monkeypatch):
    right = stage_sums.ring.all_reduce

    class Ring:
        @staticmethod
        def all_reduce(comm, array, op="sum"):
            if array.size > 1 or array.dtype != np.float64 or not Ring.norm:
                right(comm, array, op)

        norm = False

    norm = executors.Executor.gradient_norm

    def wrong(self):
        Ring.norm = True
        try:
            return norm(self)
        finally:
            Ring.norm = False

    monkeypatch.setattr(stage_sums, "ring", Ring)
    monkeypatch.setattr(executors.Executor, "gradient_norm", wrong)


def clipped_by_the_norm_of_a_shard(monkeypatch):
    monkeypatch.setattr(stage1.Sharded, "sum_numbers", lambda self, numbers: float(numbers.flat[0]))


def tied_weights_counted_twice(monkeypatch):
    monkeypatch.setattr(Layout, "counted_elsewhere", lambda self, stage: ())


def norms_not_summed_over_the_sequence(monkeypatch):
    monkeypatch.setattr(parts.TensorPart, "complete", lambda self, model, names=None: None)


def summed_over_the_sequence_after_the_replicas(monkeypatch):
    """Shards are at their owners then, and the sum changes only what nobody reads."""
    right = executors.Executor.sum_over_tensor
    monkeypatch.setattr(executors.Executor, "sum_over_tensor", lambda self, part: None)
    update = executors.Executor.update

    def wrong(self):
        self.complete()
        right(self, slice(0, self.stage.model.flat.size))
        update(self)

    monkeypatch.setattr(executors.Executor, "update", wrong)


def tied_gradient_reduced_before_it_is_complete(monkeypatch):
    monkeypatch.setattr(Layout, "apart", lambda self, stage: frozenset())


def recomputed_with_another_dropout(monkeypatch):
    right = executors.Executor.backward

    def wrong(self, microbatch, part):
        from dataclasses import replace

        self.batches[microbatch] = replace(self.batches[microbatch], first=99)
        right(self, microbatch, part)

    monkeypatch.setattr(executors.Executor, "backward", wrong)


def loss_scaled_by_an_axis(monkeypatch):
    monkeypatch.setattr(executors.Executor, "compute", scaled(executors.Executor.compute))


def scaled(right):
    def compute(self, microbatch, part):
        y = right(self, microbatch, part)
        return y * (1 / self.stage.tensor.comm.size) if part == self.last else y

    return compute


def old_parameters_are_used(monkeypatch):
    """Gathered parameters are those of the step before."""
    monkeypatch.setattr(gathered.GatheredUnits, "begin", gathered.ReduceScatterUnits.begin)
    monkeypatch.setattr(
        gathered.GatheredUnits, "update", lambda self, limit=None: self.step_shards()
    )


@pytest.mark.parametrize(
    ("mutant", "options"),
    [
        (whole_weights_counted_t_times, {}),
        (clipped_by_the_norm_of_a_slice, {}),
        (clipped_by_the_norm_of_a_stage, {}),
        (clipped_by_the_norm_of_a_shard, {"zero": 1}),
        (tied_weights_counted_twice, {}),
        (norms_not_summed_over_the_sequence, {"sequence": True, "zero": 1}),
        (summed_over_the_sequence_after_the_replicas, {"sequence": True, "zero": 2}),
        (tied_gradient_reduced_before_it_is_complete, {"zero": 2}),
        (recomputed_with_another_dropout, {"recompute": True}),
        (loss_scaled_by_an_axis, {}),
        (old_parameters_are_used, {"zero": 3, "mesh": {"dp": 2, "tp": 2}}),
    ],
)
def test_mutants_are_rejected(mutant, options, monkeypatch):
    """Each is caught by SGD; Adam would hide the last but one."""
    task = Task(options={"mesh": CUBE, "microbatches": 2, **options})
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match="serial"):
        launch(
            lambda comm: check_equals_serial(comm, MeshParallel, task),
            ranks_of(task.options["mesh"]),
        )


def test_tensor_parallelism_alone_is_a_mesh_of_one_axis():
    """Bit by bit: the mesh adds nothing to what works along its axis."""
    task = Task(steps=3)

    def run(comm):
        build = (task.model, task.loss, task.optimizer)
        one = TensorParallel(*(make() for make in build), comm, 3, sequence=True)
        two = MeshParallel(*(make() for make in build), comm, 3, mesh={"tp": 2}, sequence=True)
        (losses, got), (expected_losses, expected) = train(two, task), train(one, task)
        assert losses == expected_losses
        assert largest_gap(got, expected)[0] == 0

    launch(run, 2)
