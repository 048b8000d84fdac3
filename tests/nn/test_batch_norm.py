"""Batch norm's running averages count training steps and nothing else; and over ranks."""

import numpy as np
import pytest

from minidist import LocalWorld, Tensor, launch, nn
from minidist.data import Batches, Dataset
from minidist.engine import checkpoint
from minidist.engine.array import defaults
from minidist.engine.gradcheck import gradcheck
from minidist.inspect import layer_summary, summary
from minidist.nn import BatchNorm, CrossEntropy, SyncBatchNorm
from minidist.optim import SGD
from minidist.parallel import DataParallel, Pipeline, Serial

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
DOUBLE = X.astype(np.float64)


def model_with(norm):
    return nn.Sequential(nn.Linear(4, 3), norm, nn.Tanh(), nn.Linear(3, 2), input_shape=(4,))


def buffers(model):
    return {name: buffer.data.copy() for name, buffer in model.named_buffers().items()}


def test_recomputation_updates_the_running_averages_once():
    plain, again = (model_with(BatchNorm(3)).init(0) for _ in range(2))
    for model in (plain, again):
        model.zero_grad()
    plain(X).sum().backward()
    checkpoint(again, Tensor(X, requires_grad=True)).sum().backward()
    np.testing.assert_array_equal(plain.flat.grad, again.flat.grad)
    for name, value in buffers(plain).items():
        np.testing.assert_array_equal(value, buffers(again)[name])


def test_a_pipeline_that_recomputes_updates_them_once():
    data = Dataset("noise", X, np.arange(6) % 2, 2)

    def run(comm, recompute):
        method = Pipeline(
            model_with(BatchNorm(3)), CrossEntropy(), SGD(0.1), comm, microbatches=2,
            recompute=recompute,
        )  # fmt: skip
        method.step(Batches(data, 6)[0])
        return method.buffers()

    one, other = (
        launch(lambda comm, r=recompute: run(comm, r), 2, LocalWorld())[0]
        for recompute in (False, True)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    "look",
    [
        lambda model: layer_summary(model, DOUBLE),
        lambda model: summary(model, X.shape),
        lambda model: gradcheck(lambda x: model(x), DOUBLE),
        lambda model: model(DOUBLE[:0]),
        lambda model: model.eval()(DOUBLE),
    ],
    ids=["layer_summary", "summary", "gradcheck", "an empty batch", "evaluation"],
)
def test_looking_changes_no_buffer(look):
    model = model_with(BatchNorm(3)).init(0, "float64")
    model(DOUBLE)
    before = buffers(model)
    look(model)
    for name, value in buffers(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_an_empty_part_poisons_nothing():
    model = model_with(BatchNorm(3)).init(0)
    model.zero_grad()
    y = model(Tensor(X[:0], requires_grad=True))
    assert y.shape == (0, 2)
    y.sum().backward()
    assert not model.flat.grad.any()
    assert all(np.isfinite(value).all() for value in buffers(model).values())


def test_an_empty_shard_poisons_no_rank():
    data = Dataset("noise", X[:2], np.arange(2), 2)

    def run(comm):
        method = DataParallel(model_with(SyncBatchNorm(3, comm)), CrossEntropy(), SGD(0.1), comm)
        loss = method.step(Batches(data, 2)[0])  # two samples for three ranks
        return loss, method.buffers()

    for loss, values in launch(run, 3, LocalWorld()):
        assert np.isfinite(loss) and all(np.isfinite(value).all() for value in values.values())


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_synchronised_batch_norm_equals_serial(ranks):
    """Uneven shards, and images: losses, parameters and buffers of serial training."""
    random = np.random.default_rng(1)
    images = random.standard_normal((13, 2, 4, 4)) * 3 + 50
    data = Dataset("noise", images, random.integers(0, 3, 13), 3)

    def model(norm):
        return nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))

    def run(comm):
        with defaults(dtype="float64"):
            results = []
            for method in (
                DataParallel(model(SyncBatchNorm(3, comm)), CrossEntropy(), SGD(0.1), comm),
                Serial(model(BatchNorm(3)), CrossEntropy(), SGD(0.1), comm.split(comm.rank)),
            ):
                batches = Batches(data, 13, 0)
                losses = [method.step(batches[step]) for step in range(3)]
                results.append((losses, method.parameters() | method.buffers(), method.model))
            (got, values, own), (losses, expected, _) = results
            np.testing.assert_allclose(got, losses, rtol=1e-10)
            for name in expected:
                np.testing.assert_allclose(
                    values[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name
                )
            here = buffers(own)  # the same on every rank, not only on the first
            for name, value in here.items():
                np.testing.assert_allclose(value, expected[name], rtol=1e-9, err_msg=name)

    launch(run, ranks, LocalWorld())


def test_synchronised_statistics_do_not_cancel():
    """Far from 0, E[x²] - E[x]² is off by more than the variance; a constant channel gives 0."""
    x = np.random.default_rng(0).standard_normal((8, 2)) + 1e8
    x[:, 1] = 1e8 + 0.1

    def run(comm):
        with defaults(dtype="float64"):
            layer, alone = SyncBatchNorm(2, comm).init(0), BatchNorm(2).init(0)
            got = layer(x[comm.rank * 3 : comm.rank * 3 + 3]).data
            expected = alone(x).data[comm.rank * 3 : comm.rank * 3 + 3]
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(layer.variance.data, alone.variance.data, rtol=1e-6)

    launch(run, 3, LocalWorld())


def test_the_unsynchronised_one_does_not():
    """The reason for the other: each part is normalized by itself."""
    data = Dataset("noise", X, np.arange(6) % 2, 2)

    def run(comm, norm):
        method = DataParallel(model_with(norm(comm)), CrossEntropy(), SGD(0.1), comm)
        return method.step(Batches(data, 6)[0])

    alone = launch(lambda comm: run(comm, lambda c: BatchNorm(3)), 1, LocalWorld())[0]
    apart = launch(lambda comm: run(comm, lambda c: BatchNorm(3)), 2, LocalWorld())[0]
    together = launch(lambda comm: run(comm, lambda c: SyncBatchNorm(3, c)), 2, LocalWorld())[0]
    assert abs(apart - alone) > 1e-3 > 1e-5 > abs(together - alone)


def test_it_costs_three_small_all_reduces():
    def run(comm):
        model = model_with(SyncBatchNorm(3, comm)).init(0)
        model.zero_grad()
        before = comm.trace.sent.nbytes
        y = model(X)
        middle = comm.trace.sent.nbytes
        y.sum().backward()
        return middle - before, comm.trace.sent.nbytes - middle

    sent = launch(run, 2, LocalWorld())
    assert [sum(part) for part in zip(*sent, strict=True)] == [2 * (24 * 3 + 8), 2 * 16 * 3]
