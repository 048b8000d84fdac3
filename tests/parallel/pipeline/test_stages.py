"""Blocks are measured as they are: the least time of several, forward and backward together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from minidist import LocalWorld, Tensor, launch
from minidist.data import Batches, Dataset
from minidist.nn import Linear, Sequential
from minidist.nn.module import Module
from minidist.parallel.pipeline import stages


class Clock:
    """What the time module would be if only ``Takes`` took time."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Takes(Module):
    """Passes its input on; the forward and the backward each take the next of the seconds given."""

    def __init__(self, clock, forward, backward):
        super().__init__()
        self.clock, self.seconds = clock, SimpleNamespace(f=iter(forward), b=iter(backward))

    def forward(self, x):
        self.clock.now += next(self.seconds.f)

        def backward(grad):
            self.clock.now += next(self.seconds.b)
            return (grad,)

        return Tensor.of(x.data, (x,), backward)


def test_block_seconds_are_the_least_of_forward_and_backward_together(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stages, "time", clock)
    data = Dataset("d", np.random.default_rng(0).standard_normal((8, 3)), np.arange(8) % 2, 2)

    def run(comm):
        model = Sequential(
            Linear(3, 4),
            # Only rank 0 measures: on the others the clock would run out of seconds to take.
            Takes(clock, [9.0, 5.0, 1.0][: 3 * (comm.rank == 0)], [10.0, 6.0, 20.0]),
            Takes(clock, [4.0, 3.0, 4.0], [0.5, 0.5, 0.25]),
            input_shape=(3,),
        )
        return stages.block_seconds(model, Batches(data, 4, seed=1)[0], comm)

    found = launch(run, 2, LocalWorld())
    assert found == [[0.0, 11.0, 3.5]] * 2


@pytest.mark.parametrize(
    ("costs", "parts", "bounds"),
    [
        ([1, 1, 1, 1], 2, [(0, 2), (2, 4)]),
        ([4, 1, 1, 1, 1], 2, [(0, 1), (1, 5)]),
        ([1, 1, 1, 1, 4], 2, [(0, 4), (4, 5)]),
        ([3, 0, 3, 0], 2, [(0, 2), (2, 4)]),
        ([1, 2, 3], 3, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_cut_is_as_even_as_can_be(costs, parts, bounds):
    assert stages.cut(costs, parts) == bounds
