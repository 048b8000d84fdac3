"""Every kind of target, in every method: numbers, probabilities, class weights, padding.

The loss alone knows what counts. A shard whose targets are all ignored, and shards of unequal
weight, must still add up to serial training.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from minidist import LocalWorld, launch, nn
from minidist.data import Batch, Batches, Dataset
from minidist.engine.array import defaults
from minidist.engine.tensor import Tensor
from minidist.inspect import metrics
from minidist.models import mlp
from minidist.nn.module import LayerCost, Module
from minidist.optim import SGD
from minidist.parallel import METHODS, ElasticAveraging
from minidist.parallel.evaluation import evaluate
from tests.parallel.checks import is_exact

RANDOM = np.random.default_rng(5)
COUNT, BATCH = 26, 13
X = RANDOM.standard_normal((COUNT, 6))
NUMBERS = RANDOM.standard_normal((COUNT, 3)) * [1, 3, 0.2] + 0.4
CHANCES = np.abs(NUMBERS) / np.abs(NUMBERS).sum(1, keepdims=True)
CLASSES = RANDOM.integers(0, 3, COUNT)
PADDED = np.where(RANDOM.random(COUNT) < 0.4, -1, CLASSES)


class LogSoftmax(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log_softmax()

    def cost(self, shape, itemsize=4):
        return LayerCost(shape, saves_output=True)


def model(*last):
    blocks = mlp((6, 8, 7, 5, 3)).blocks.values()
    return nn.Sequential(*blocks, *last, input_shape=(6,))


TASKS = {  # targets, loss, what the model ends in
    "numbers": (NUMBERS, nn.MeanSquaredError, ()),
    "outliers": (NUMBERS, partial(nn.Huber, 0.5), ()),
    "yes or no": (NUMBERS > 0.4, nn.BinaryCrossEntropy, ()),
    "probabilities": (CHANCES, nn.CrossEntropy, ()),
    "distributions": (CHANCES, nn.KLDivergence, (LogSoftmax,)),
    "weights": (CLASSES, partial(nn.CrossEntropy, weight=[5.0, 0.3, 1.0]), ()),
    "padding": (PADDED, partial(nn.CrossEntropy, -1), ()),
    "padding and weights": (PADDED, partial(nn.CrossEntropy, -1, 0.1, 0.02, [2, 0.3, 1]), ()),
}


class OneRankIgnores(Batches):
    """The first shard of the batch has no target that counts."""

    def __getitem__(self, step):
        first = super().__getitem__(step)
        order = np.argsort(self.dataset.targets[first.indices] >= 0, kind="stable")
        return self.dataset.batch(first.indices[order])


def trained(key, comm, task, steps=3):
    targets, loss, last = TASKS[task]
    data = Dataset("mine", X, targets)
    kind = OneRankIgnores if "padding" in task else Batches
    with defaults(dtype="float64"):
        method = METHODS[key](
            model(*(block() for block in last)), loss(), SGD(0.1, momentum=0.9), comm, 3
        )
        batches = kind(data, BATCH, seed=3)
        losses = [method.step(batches[step]) for step in range(steps)]
        parameters = method.parameters()
        evaluated = method.evaluate(data, chunk=10)
        whole = model(*(block() for block in last)).init(0).load(parameters)
        alone = evaluate(whole, loss(), data, comm.split(comm.rank), chunk=26)
        by_hand = metrics.mean_loss(whole, loss(), data), metrics.accuracy(whole, data, 7, loss())
    return losses, parameters, evaluated, alone, by_hand


def check(key, task):
    """Losses, parameters and evaluation equal serial's; an inexact method learns and evaluates."""

    def run(comm):
        got = trained(key, comm, task)
        expected = trained("serial", comm.split(comm.rank), task)
        assert np.isfinite(got[0]).all(), got[0]
        for other in got[3:]:  # NaN equals NaN: there are no classes to guess
            np.testing.assert_allclose(got[2], other, rtol=1e-11, err_msg=f"{key}, {task}")
        if is_exact(key):
            np.testing.assert_allclose(got[0], expected[0], rtol=1e-11, err_msg=f"{key}, {task}")
            for name, values in expected[1].items():
                np.testing.assert_allclose(got[1][name], values, 1e-10, 1e-12, err_msg=name)
        else:  # the loss before the first update is serial's, whatever happens then
            assert got[0][0] == pytest.approx(expected[0][0], rel=1e-11) or key in LATE

    launch(run, 1 if key == "serial" else 4, LocalWorld())


# Their losses are those of workers that have moved within the step, or of those that came in time.
LATE = {key for key in METHODS if "ssp" in key or "async" in key or "backup" in key}
LATE |= {"pipeline/pipedream", "parameter_server/look_ahead"}
# A pair of each row with each kind of task in turn, and the two hardest with every row.
EVERY = ["padding and weights", "numbers"]
KEYS = list(METHODS)
OTHERS = [task for task in TASKS if task not in EVERY]
CASES = [(key, task) for key in KEYS for task in EVERY]
CASES += [(key, OTHERS[index % len(OTHERS)]) for index, key in enumerate(KEYS)]


@pytest.mark.parametrize(("key", "task"), CASES)
def test_every_method_trains_and_evaluates_on_every_kind_of_target(key, task):
    check(key, task)


def test_the_loss_that_serial_takes_is_pytorchs_mean():
    """Of what is not ignored, weighted by class: written out."""

    def run(comm):
        method = METHODS["serial"](
            model(), nn.CrossEntropy(-1, weight=[5, 0.3, 1]), SGD(0.1), comm, 3
        )
        batch = Dataset("mine", X, PADDED).batch(np.arange(13))
        whole = model().init(3)
        p = whole(batch.inputs).softmax().data
        kept = np.flatnonzero(PADDED[:13] >= 0)
        weight = np.array([5, 0.3, 1])[PADDED[kept]]
        return method.step(batch), -(weight * np.log(p[kept, PADDED[kept]])).sum() / weight.sum()

    with defaults(dtype="float64"):
        ((got, expected),) = launch(run, 1)
    assert got == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("key", ["serial", "data_parallel/ring", "parameter_server/async"])
def test_a_batch_without_targets_that_count_is_refused_on_every_rank(key):
    def run(comm):
        method = METHODS[key](model(), nn.CrossEntropy(-1), SGD(0.1), comm)
        data = Dataset("mine", X, np.where(np.arange(COUNT) < 5, -1, CLASSES))
        with pytest.raises(ValueError, match=r"all 5 targets of 5 samples 0, 1.* are ignored"):
            method.step(data.batch(np.arange(5)))
        return method.step(data.batch(np.arange(6)))  # one counts

    losses = launch(run, 1 if key == "serial" else 4, LocalWorld())
    assert all(np.isfinite(losses)) and len(set(losses)) == 1


def test_elastic_workers_step_on_the_mean_of_what_counts_in_their_shard():
    """One worker, whose shard is the batch; two, one of which has nothing that counts."""

    def run(comm):
        data = Dataset("mine", X, np.where(np.arange(COUNT) < 6, -1, CLASSES))
        with defaults(dtype="float64"):
            method = ElasticAveraging(model(), nn.CrossEntropy(-1), SGD(0.1), comm, 3, every=9)
            method.step(data.batch(np.arange(10)))
            alone = METHODS["serial"](
                model(), nn.CrossEntropy(-1), SGD(0.1), comm.split(comm.rank), 3
            )
            alone.step(data.batch(np.arange(5, 10)))
            if comm.rank == 1:
                assert method.optimizer.steps == 0
            if comm.rank == 2:
                got, expected = method.model.flat.data, alone.model.flat.data
                np.testing.assert_allclose(got, expected, rtol=1e-13)

    launch(run, 3, LocalWorld())


@pytest.mark.parametrize(
    ("loss", "targets", "error"),
    [
        (nn.MeanSquaredError, CLASSES, "MeanSquaredError takes floating.*int64.*CrossEntropy"),
        (nn.Huber, PADDED, "Huber takes floating numbers"),
        (nn.BinaryCrossEntropy, CLASSES, "BinaryCrossEntropy takes floating numbers"),
        (nn.KLDivergence, CLASSES, "KLDivergence takes floating numbers"),
        (nn.CrossEntropy, NUMBERS[:, 0], r"need integer targets.*class numbers are integers"),
        (nn.CrossEntropy, NUMBERS[:, 0] > 0, r"need integer targets.*class numbers are integers"),
    ],
)
def test_losses_refuse_the_other_kind_of_targets_by_name(loss, targets, error):
    def run(comm):
        method = METHODS["data_parallel/ring"](model(), loss(), SGD(0.1), comm)
        method.step(Dataset("mine", X, targets).batch(np.arange(6)))

    with pytest.raises((TypeError, ValueError), match=error):
        launch(run, 2, LocalWorld())


def test_losses_that_methods_cannot_take_are_refused():
    class Own(Module):
        def forward(self, output, targets, count=None):
            return output.sum()

    for loss, error in (
        (Own(), "the loss is a Own, which does not say.*subclass of minidist.nn.Loss"),
        (nn.CrossEntropy(reduction="none"), 'reduction="none", and a step needs one number'),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^Serial: .*{error}"):
            launch(lambda comm, loss=loss: METHODS["serial"](model(), loss, SGD(0.1), comm), 1)


# Mutants


def counted_in_the_shard(monkeypatch):
    monkeypatch.setattr(Batch, "count", Batch.own_count)


def weights_left_out_of_the_count(monkeypatch):
    def plain(self, targets):
        return int((targets != self.ignore_index).sum())

    monkeypatch.setattr(nn.CrossEntropy, "count", plain)


def ignored_targets_counted(monkeypatch):
    monkeypatch.setattr(nn.CrossEntropy, "counts_values", False)
    monkeypatch.setattr(nn.CrossEntropy, "count", lambda self, targets: targets.size)


def targets_become_integers(monkeypatch):
    monkeypatch.setattr(Batch, "targets", property(lambda self: self.raw_targets.astype(int)))


def accuracy_counts_padding(monkeypatch):
    monkeypatch.setattr(
        nn.CrossEntropy,
        "guesses",
        lambda self, output, targets: (
            int((output.data.argmax(-1) == targets).sum()),
            targets.size,
        ),
    )


def test_accuracy_counts_what_the_loss_counts():
    def run(comm, key):
        _, parameters, (_, accuracy), *_ = trained(key, comm, "padding")
        kept = np.flatnonzero(PADDED >= 0)
        with defaults(dtype="float64"):
            whole = model().init(0).load(parameters)
            right = whole(X[kept]).data.argmax(-1) == PADDED[kept]
        return accuracy, right.mean()

    for key in ("zero/1", "pipeline/gpipe", "parameter_server/bsp"):
        for got, expected in launch(partial(run, key=key), 3, LocalWorld()):
            assert got == pytest.approx(expected), key


@pytest.mark.parametrize(
    ("mutant", "claim"),
    [
        (counted_in_the_shard, partial(check, "data_parallel/ring", "weights")),
        (counted_in_the_shard, partial(check, "pipeline/gpipe", "padding")),
        (weights_left_out_of_the_count, test_the_loss_that_serial_takes_is_pytorchs_mean),
        (ignored_targets_counted, test_the_loss_that_serial_takes_is_pytorchs_mean),
        (targets_become_integers, partial(check, "data_parallel/ring", "numbers")),
        (accuracy_counts_padding, test_accuracy_counts_what_the_loss_counts),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_mutant_is_rejected(mutant, claim, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises((AssertionError, TypeError, ValueError)):
        claim()
