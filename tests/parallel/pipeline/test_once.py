"""What all ranks of a pipeline work out alike is worked out once a world."""

from itertools import combinations

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.models import mlp
from minidist.nn import CrossEntropy, Linear, ReLU, Sequential
from minidist.nn.signature import signature
from minidist.optim import SGD
from minidist.parallel import Pipeline
from minidist.parallel.pipeline import pipeline, stages


def test_a_layout_is_made_once_for_all_ranks_that_declare_the_same(monkeypatch):
    made = []
    real = pipeline.make_layout
    monkeypatch.setattr(
        pipeline, "make_layout", lambda *how, **more: made.append(how) or real(*how, **more)
    )

    def run(comm, widths, **how):
        return Pipeline(mlp(widths), CrossEntropy(), SGD(0.1), comm, **how).layout.bounds

    def both(comm):
        first = run(comm, (8, 7, 6, 5))
        again = run(comm, (8, 7, 6, 5))
        other = run(comm, (8, 7, 7, 5), schedule="1f1b")
        by_hand = run(comm, (8, 7, 6, 5), bounds=[(0, 1), (1, 2), (2, len(mlp((8, 7, 6, 5))))])
        return first, again, other, by_hand

    found = launch(both, 3, LocalWorld())
    assert len(made) == 3  # of 12
    assert found[0] == found[1] == found[2]
    launch(lambda comm: run(comm, (8, 7, 6, 5)), 3, LocalWorld())
    assert len(made) == 4  # in each world anew


def test_each_rank_trains_its_own_blocks():
    methods = launch(
        lambda comm: Pipeline(mlp((8, 7, 6, 5)), CrossEntropy(), SGD(0.1), comm), 2, LocalWorld()
    )
    for rank, method in enumerate(methods):
        declared = method.whole.parameters()
        for parameter in method.layout.parts[rank].parameters():
            assert any(parameter is one for one in declared)
            assert parameter.grad is not None  # initialised


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (Sequential(Linear(3, 4), ReLU()), Sequential(Linear(3, 4), ReLU()), True),
        (Sequential(Linear(3, 4)), Sequential(Linear(4, 3)), False),
        (Sequential(Linear(3, 4)), Sequential(Linear(3, 4, bias=False)), False),
        (Sequential(ReLU()), Sequential(ReLU(), input_shape=(3,)), False),
        ([1, 2], [1, 2.0], False),
        (object(), object(), False),
    ],
)
def test_signatures_tell_models_apart(one, other, equal):
    assert (signature(one) == signature(other)) == equal
    assert signature(one) == signature(one)


def test_a_signature_knows_shared_parameters():
    layer = Linear(3, 3)
    assert signature(Sequential(layer, layer)) != signature(Sequential(layer, Linear(3, 3)))


@pytest.mark.parametrize("case", range(20))
def test_a_cut_is_the_most_even_of_all(case):
    draw = np.random.default_rng(case)
    costs = draw.integers(0, 4, draw.integers(1, 9)).tolist()
    parts = int(draw.integers(1, len(costs) + 1))

    def order(ends):
        lengths = [sum(costs[a:b]) for a, b in zip((0, *ends), (*ends, len(costs)), strict=True)]
        return sum(n * n for n in lengths), [-end for end in ends]

    best = min(combinations(range(1, len(costs)), parts - 1), key=order)
    assert [stop for _, stop in stages.cut(costs, parts)] == [*best, len(costs)]
