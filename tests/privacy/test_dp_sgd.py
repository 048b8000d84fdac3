"""DP-SGD: exact limits, noise once, the same on any number of ranks, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches
from minidist.engine.array import defaults
from minidist.models import cnn, gpt, mlp
from minidist.nn import BatchNorm, CrossEntropy, Linear, Sequential
from minidist.optim import SGD, Adam
from minidist.parallel import Serial
from minidist.privacy import BudgetSpent, DPSGD, NotBySample, PoissonBatches
from tests.parallel.checks import images

WIDTHS = (12, 9, 5)


def train(ranks, steps=4, model=lambda: mlp(WIDTHS), data=None, rate=0.2, poisson=True, **options):
    """Losses, parameters and what was sent."""
    data = data or images()
    batches = PoissonBatches(data, rate, seed=3) if poisson else Batches(data, 13, seed=3)

    def run(comm):
        with defaults(dtype="float64"):
            given = {"rate": rate} if poisson else {}
            method = DPSGD(model(), CrossEntropy(), SGD(0.1, 0.9), comm, 3, **given, **options)
            losses = [method.step(batches[step]) for step in range(steps)]
            return losses, method.parameters(), comm.trace.sent.nbytes

    return launch(run, ranks, LocalWorld())


def gap(got, expected):
    return max(np.abs(got[n] - expected[n]).max() / np.abs(expected[n]).max() for n in expected)


def test_one_two_and_four_ranks_give_the_same_parameters():
    alone = train(1)[0]
    assert len({len(PoissonBatches(images(), 0.2, 3)[step]) for step in range(4)}) > 2
    for ranks in (2, 4):
        for losses, parameters, _ in train(ranks, microbatches=ranks):
            assert losses == pytest.approx(alone[0], rel=1e-10)
            assert gap(parameters, alone[1]) < 1e-10


def test_a_batch_without_samples_is_noise_alone():
    batches = PoissonBatches(images(), 0.01, seed=3)
    empty = next(step for step in range(100) if not len(batches[step]))

    def run(comm):
        method = DPSGD(mlp(WIDTHS), CrossEntropy(), SGD(1.0), comm, 3, rate=0.01)
        before = method.parameters()
        assert method.step(batches[empty]) == 0
        return gap(method.parameters(), before)

    assert min(launch(run, 2, LocalWorld())) > 0.1


@pytest.mark.parametrize("ranks", [1, 3])
def test_without_noise_and_clip_it_is_serial_training(ranks):
    def serial(comm):
        with defaults(dtype="float64"):
            method = Serial(mlp(WIDTHS), CrossEntropy(), SGD(0.1, 0.9), comm, 3)
            batches = Batches(images(), 13, seed=3)
            return [method.step(batches[step]) for step in range(4)], method.parameters()

    (expected,) = launch(serial, 1, LocalWorld())
    options = {"noise": 0, "sample_clip": math.inf, "poisson": False}
    for microbatches in (1, 2):
        for losses, parameters, _ in train(ranks, microbatches=microbatches, **options):
            assert losses == pytest.approx(expected[0], rel=1e-12)
            assert gap(parameters, expected[1]) < 1e-12
