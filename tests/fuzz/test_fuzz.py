"""A short fuzz run every day (``make long`` has the whole), and that the fuzzer finds mistakes."""

import re
from dataclasses import replace

import pytest

from minidist import Tensor, nn, ops
from tests.fuzz import graphs
from tests.fuzz.frame import attempt, fuzz
from tests.fuzz.graphs import check_graph
from tests.fuzz.layers import check_layers
from tests.fuzz.training import check


@pytest.mark.parametrize(
    ("kind", "check", "count"),
    [("graphs", check_graph, 80), ("layers", check_layers, 40), ("training", check, 20)],
)
def test_random_programs_equal_the_reference(kind, check, count):
    for failure in fuzz(kind, check, count, size=8):
        pytest.fail(str(failure))


def half_the_slope(x):
    y = x.xp.tanh(x.data)
    return Tensor.of(y, (x,), lambda grad: (grad * (1 - y),))


def last_use_only(x, y):
    """A product whose gradient is not summed over broadcast axes."""
    a, b = x.data, y.data
    return Tensor.of(a * b, (x, y), lambda grad: (grad * b, grad * a))


def one_use_too_many(x):
    return Tensor.of(-x.data, (x, x), lambda grad: (-grad, -grad))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("tanh", half_the_slope), ("multiply", last_use_only), ("negative", one_use_too_many)],
)
def test_a_wrong_op_is_found_made_small_and_reported_in_one_line(name, wrong, monkeypatch):
    mutants = [replace(op, ours=wrong) if op.name == name else op for op in graphs.OPS]
    monkeypatch.setattr(graphs, "OPS", mutants)
    failure = next(fuzz("graphs", check_graph, 500))
    line = str(failure).partition("\n")[0]
    found = re.fullmatch(r"python -m tests\.fuzz graphs --seed (\d+) --size (\d+)", line)
    seed, size = map(int, found.groups())
    assert attempt(check_graph, seed, size)
    monkeypatch.undo()
    assert attempt(check_graph, seed, size) is None


def test_a_wrong_layer_is_found(monkeypatch):
    def wrong(self, x):
        return ops.conv2d(
            x, self.weight, self.bias, self.stride, self.padding[::-1], self.groups, self.dilation
        )

    monkeypatch.setattr(nn.Conv2d, "forward", wrong)
    assert next(fuzz("layers", check_layers, 500))
