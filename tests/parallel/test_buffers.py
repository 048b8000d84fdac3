"""Buffers have one value on all ranks, and a model is read as it is, in every method."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.engine.tensor import no_grad
from minidist.models import mlp
from minidist.nn import BatchNorm, CrossEntropy, Flatten, Linear, ReLU, Sequential
from minidist.nn.module import UninitialisedError
from minidist.optim import SGD
from minidist.parallel import METHODS, Pipeline, Zero3, buffers, method, saving
from minidist.parallel.evaluation import evaluate
from minidist.parallel.state import own_buffers
from tests.parallel.checks import images, is_exact

DATA = images(60)
SGD_TENTH = lambda: SGD(0.1)
WHOLE = [key for key in METHODS if key.startswith(("data_parallel", "compression", "zero"))]


def normed(norm=BatchNorm):
    return Sequential(
        Flatten(), Linear(12, 8), norm(8), ReLU(), Linear(8, 6), norm(6), Linear(6, 5),
        input_shape=(3, 4),
    )  # fmt: skip


def make(key, comm, model=normed, **options):
    return METHODS[key](model(), CrossEntropy(), SGD(0.1, momentum=0.9), comm, 3, **options)


def check_buffers(key, ranks):
    def run(comm):
        with defaults(dtype="float64"):
            way = make(key, comm)
            for step in range(2):
                way.step(Batches(DATA, 15, 3)[step])
            works = getattr(way, "works", True)
            own = own_buffers(way.model) if works else {}
            got = way.buffers()
            loss = way.evaluate(DATA, chunk=17)
            after = own_buffers(way.model) if works else {}
            assert all(np.array_equal(values, after[n]) for n, values in own.items())
            alone, whole = comm.split(comm.rank), way.parameters() | got
            model = normed().init(0).load(whole)
            expected = evaluate(model, CrossEntropy(), DATA, alone, chunk=60, model=model)
            assert loss == pytest.approx(expected, rel=1e-11), f"{key}: of other buffers"
            again = make(key, comm)
            again.load(way.state())
            assert again.evaluate(DATA) == pytest.approx(expected, rel=1e-11)
            loaded = again.buffers()
            assert all(np.array_equal(values, loaded[n]) for n, values in got.items()), "loaded"
            again.step(Batches(DATA, 15, 3)[2])
            return own, got, way.exact, way.why_inexact

    results = launch(run, ranks, LocalWorld())
    for _, got, *_ in results:
        assert list(got) == ["2.mean", "2.variance", "5.mean", "5.variance"]
        for name, values in got.items():
            assert np.array_equal(values, results[0][1][name]), f"{key}: differs by rank"
            kept = [one[0][name] for one in results if name in one[0]]
            np.testing.assert_allclose(values, np.mean(kept, axis=0), rtol=1e-12, atol=1e-15)
            assert np.abs(values).max() > 1e-3, "no samples seen"
    return results


@pytest.mark.parametrize("key", METHODS)
def test_buffers_are_the_mean_of_those_who_saw_samples(key):
    check_buffers(key, 1 if key == "serial" else 3)


def test_copies_of_a_pipeline_are_averaged_too(monkeypatch):
    monkeypatch.setitem(METHODS, "copies", lambda *a: Pipeline(*a, replicas=2, microbatches=2))
    check_buffers("copies", 4)


@pytest.mark.parametrize("key", METHODS)
def test_batch_norm_of_parts_makes_a_method_inexact_and_says_why(key):
    def run(comm):
        way, without = make(key, comm), make(key, comm, lambda: mlp((12, 8, 7, 5)))
        return way.exact, way.why_inexact, without.exact, without.why_inexact

    ranks = 1 if key == "serial" else 3
    for exact, why, without, nothing in launch(run, ranks, LocalWorld()):
        assert (without, nothing) == (is_exact(key), "")
        if key in ("serial", "pipeline/naive", "tensor/parallel"):  # the batch stays whole
            assert (exact, why) == (True, "")
        else:
            assert not exact
            parts = 2 if "server" in key or "easgd" in key else 3
            if "colocated" in key:
                parts = 3
            parts = 4 if key.startswith("pipeline") else parts
            parts = 6 if key.startswith("mesh") else parts  # three copies, two microbatches
            if "sharded" not in key:
                assert why.startswith(f"BatchNorm '2' normalises each of {parts} parts"), why


@pytest.mark.parametrize(
    ("synchronised", "copies", "microbatches", "parts"),
    [(0, 1, 1, 0), (0, 4, 1, 4), (0, 4, 2, 8), (4, 4, 1, 0), (4, 4, 2, 2), (3, 4, 1, 4)],
)
def test_synchronised_over_these_ranks_is_exact_but_for_microbatches(
    synchronised, copies, microbatches, parts
):
    class Comm:
        size = synchronised

    model = normed()
    for block in model.blocks.values():
        if isinstance(block, BatchNorm) and synchronised:
            block.comm = Comm()
    why = buffers.why_inexact(model, copies, microbatches)
    assert why == "" if not parts else f"each of {parts} parts" in why


@pytest.mark.parametrize("key", ["serial", *WHOLE])
def test_a_model_is_read_as_parameters_gives_it_or_refused(key):
    """Before a step, after one, and after whatever else gathers parameters."""
    x = DATA.inputs[:4]

    def reads(comm, way):
        expected = mlp((12, 8, 7, 6, 5)).init(0).load(way.parameters())(x).data
        if isinstance(way, Zero3):
            with pytest.raises(UninitialisedError, match=r"1\.weight is not here.*evaluate"):
                way.model(x)
            with pytest.raises(UninitialisedError, match="not here"):
                evaluate(way.model, CrossEntropy(), DATA, comm, model=way.model)
        else:
            with no_grad():
                assert np.array_equal(way.model(x).data, expected)

    def run(comm):
        with defaults(dtype="float64"):
            way = make(key, comm, lambda: mlp((12, 8, 7, 6, 5)))
            reads(comm, way)
            for step in range(2):
                way.step(Batches(DATA, 13, 3)[step])
                reads(comm, way)
            way.evaluate(DATA)
            reads(comm, way)
            way.load(way.state())
            reads(comm, way)
            way.step(Batches(DATA, 13, 3)[2])

    launch(run, 1 if key == "serial" else 3, LocalWorld())


def test_a_block_whose_memory_another_has_taken_cannot_be_read():
    """Also while a forward of the user's own is over, and no step has begun."""

    def run(comm):
        way = make("zero/3", comm, lambda: mlp((12, 8, 7, 6, 5)))
        with no_grad():
            way.forward(DATA.inputs[:4].astype(np.float32))
        named = way.model.named_parameters()
        with pytest.raises(UninitialisedError, match="not here"):
            named["1.weight"].data  # noqa: B018
        whole = way.parameters()
        for name in ("1.weight", "7.weight"):
            with pytest.raises(UninitialisedError, match="not here"):
                named[name].data  # noqa: B018
            assert whole[name].size

    launch(run, 2, LocalWorld())


# Mutants


def evaluated_with_its_own(monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(method, "with_buffers", lambda model, values: nullcontext())


def never_released(monkeypatch):
    monkeypatch.setattr(Zero3, "release", lambda self: None)


def test_buffers_that_differ_by_rank_are_rejected(monkeypatch):
    monkeypatch.setattr(saving, "mean_buffers", lambda comm, model: own_buffers(model))
    with pytest.raises(AssertionError):
        check_buffers("data_parallel/ring", 3)


def test_evaluation_with_other_buffers_is_rejected(monkeypatch):
    evaluated_with_its_own(monkeypatch)
    with pytest.raises(AssertionError):
        check_buffers("zero/1", 3)


def test_parameters_that_stay_readable_are_rejected(monkeypatch):
    never_released(monkeypatch)
    with pytest.raises(pytest.fail.Exception):
        test_a_block_whose_memory_another_has_taken_cannot_be_read()


def test_compare_says_why_a_method_is_not_exact(monkeypatch):
    from minidist.compare import TASKS, Task, compare
    from minidist.compare.report import notes

    monkeypatch.setitem(TASKS, "normed", Task("normed", normed, lambda: (DATA, DATA), SGD_TENTH))
    report, _ = compare(["data_parallel/ring", "zero/1"], model="normed", ranks=2, steps=2, batch=8)
    assert [row["exact"] for row in report["rows"]] == [True, False, False]
    (note,) = notes(report)
    assert note.startswith("data parallel ring, ZeRO stage 1: not exact: BatchNorm '2' normalises")
