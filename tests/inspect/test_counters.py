"""Counted FLOPs and bytes are what the ops must do and move, worked out by hand."""

import numpy as np
import pytest
from rich.console import Console

from minidist import models, nn, ops
from minidist.engine.tensor import Tensor, defer_weight_gradients, no_grad
from minidist.inspect.anomalies import detect_anomaly
from minidist.inspect.counters import Count, count_operations
from minidist.inspect.summaries import training_flops


def leaf(*shape):
    return Tensor(np.ones(shape), requires_grad=True)


def test_bytes_of_an_elementwise_op():
    x, y = leaf(5), leaf(5)
    with count_operations() as counted:
        (x * y).backward(np.ones(5))
    n = 5 * 8
    assert counted.forward == {"multiply": Count(1, 0, 3 * n)}, "two read, one written"
    # The gradient arrives, both factors were saved, two gradients are made.
    assert counted.backward == {"multiply": Count(1, 0, 5 * n)}
    assert (counted.flops, counted.nbytes) == (0, 8 * n)


def test_changes_of_shape_move_nothing():
    x = leaf(2, 6)
    with count_operations() as counted:
        x.reshape(3, 4).reshape(12).backward(np.ones(12))
        x.T.backward(np.ones((6, 2)))
    assert counted.nbytes == 0 and counted.forward["transpose"].calls == 1
    with count_operations() as counted:
        x.reshape(3, 4).T.backward(np.ones((4, 3)))
    assert counted.nbytes == 2 * 12 * 8, "NumPy must copy a transposed gradient to reshape it"


def test_a_linear_layer():
    x, w, b = leaf(3, 4), leaf(4, 5), leaf(5)
    with count_operations() as counted:
        y = ops.linear(x, w, b)
        forward = counted.flops
        y.backward(np.ones((3, 5)))
    assert forward == 2 * 3 * 4 * 5 and counted.flops == 3 * forward
    read, out = (12 + 20 + 5) * 8, 15 * 8
    assert counted.forward["linear"].nbytes == read + out
    # out's gradient, the saved rows and weights; gradients of x, w and b.
    assert counted.backward["linear"].nbytes == out + (12 + 20) * 8 + read


MODELS = {
    "mlp": (lambda: models.mlp((12, 8, 5)), np.ones((4, 12), np.float32)),
    "cnn": (lambda: models.cnn(2, size=8), np.ones((4, 8, 8), np.float32)),
    "gpt": (lambda: models.gpt(7, 6, 8, 2, 2), np.arange(12).reshape(2, 6) % 7),
}


@pytest.mark.parametrize("defer", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_counted_equals_predicted(name, defer):
    make, x = MODELS[name]
    model, labels = make().init(0), np.zeros(x.shape if name == "gpt" else len(x), np.int64)
    plain = make().init(0)
    plain.zero_grad()
    nn.CrossEntropy()(plain(x), labels).backward()
    model.zero_grad()
    with count_operations() as counted, defer_weight_gradients() as queue:
        loss = nn.CrossEntropy()(model(x), labels)
        if defer:
            loss.backward()
            queue.run()
    if not defer:
        with count_operations() as more:
            loss.backward()
        assert counted.flops + more.flops == training_flops(model, x.shape)
        assert not more.forward and not counted.backward
    else:
        assert counted.flops == training_flops(model, x.shape)
    np.testing.assert_array_equal(model.flat.grad, plain.flat.grad, "counting changes nothing")


def test_counts_without_a_tape_and_beside_other_watchers():
    x = leaf(3, 4)
    with count_operations() as outer, detect_anomaly():
        with count_operations() as inner, no_grad():
            ops.matmul(x, leaf(4, 2))
        ops.matmul(x, leaf(4, 2)).sum().backward()
    assert inner.flops == 2 * 3 * 4 * 2 and not inner.backward
    assert outer.flops == 4 * inner.flops
    ops.matmul(x, leaf(4, 2))
    assert outer.flops == 4 * inner.flops, "only what runs inside"


def test_the_table():
    with count_operations() as counted:
        ops.linear(leaf(3, 4), leaf(4, 5)).relu().sum().backward()
    console = Console(width=140, record=True)
    console.print(counted.table())
    lines = console.export_text().splitlines()
    names = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert names == ["linear", "relu", "sum", "all"]
    assert [cell.strip() for cell in lines[-2].split("│")][2:4] == ["3", "120"]


def test_losses_are_counted_under_their_own_names():
    logits = leaf(2, 3)
    with count_operations() as counted:
        for options in ({}, {"reduction": "none"}, {"weight": np.ones(3)}):
            ops.cross_entropy(logits, np.array([0, 2]), **options)
        ops.cross_entropy(logits, np.full((2, 3), 1 / 3))
        ops.huber(logits, np.zeros((2, 3)), reduction="none")
    assert {name: count.calls for name, count in counted.forward.items()} == {
        "cross_entropy": 4,
        "huber": 1,
    }
