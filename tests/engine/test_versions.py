"""What a backward needs and somebody has written meanwhile is an error, never a wrong gradient."""

import weakref
from functools import partial

import numpy as np
import pytest

from minidist import Tensor, nn, ops
from minidist.engine import checkpoint
from minidist.engine.versions import ChangedError, owner_of
from minidist.models import gpt, mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam, MixedPrecision

X, Y = np.ones((3, 4), np.float32), np.array([0, 1, 1])


def two_layers():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).init(0)


def step(optimizer):
    return lambda model: optimizer.step(model.flat.data, model.flat.grad)


WRITES = {
    "an optimizer's step": step(SGD(0.1)),
    "a step of Adam": step(Adam(0.1)),
    "a step in mixed precision": step(MixedPrecision(SGD(0.1))),
    "a step on a slice": lambda m: SGD(0.1).step(m.flat.data[3:9], m.flat.grad[3:9]),
    "a load": lambda m: m.load(m.state()),
    "a partial load": lambda m: m.load({"2.bias": np.zeros(2)}, partial=True),
    "an assignment to a parameter": lambda m: setattr(
        m.blocks["2"].weight, "data", np.ones((5, 2), np.float32)
    ),
    "an operation in place": lambda m: setattr(
        m.blocks["2"].weight, "data", m.blocks["2"].weight.data.__imul__(2)
    ),
    "an assignment to the flat array": lambda m: setattr(m.flat, "data", m.flat.data * 2),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_between_forward_and_backward_is_an_error(write):
    model = two_layers()
    model.zero_grad()
    loss = model(X).sum()
    write(model)
    with pytest.raises(ChangedError, match=r"linear.*changed after the forward"):
        loss.backward()
    model.zero_grad()
    model(X).sum().backward()  # a new forward is all that it takes


KEEPERS = {  # ops that keep parameters for their backward, also by way of a view
    "linear": lambda w, x: ops.linear(x, w),
    "matmul": lambda w, x: x @ w,
    "multiply": lambda w, x: x * w[0],
    "divide": lambda w, x: x / w[0],
    "a transposed view": lambda w, x: x @ w.T,
    "a view of a view": lambda w, x: x @ w.reshape(16).reshape(4, 4).swapaxes(0, 1),
    "einsum": lambda w, x: ops.einsum("ij,jk->ik", x, w),
    "maximum": lambda w, x: ops.maximum(x, w[:3]),
    "layer_norm": lambda w, x: ops.layer_norm(x, w[0], w[1]),
    "rms_norm": lambda w, x: ops.rms_norm(x, w[0]),
    "batch_norm": lambda w, x: ops.batch_norm(x, w[0], w[1])[0],
    "a user's op": lambda w, x: Tensor.of(x.data * w.data[0], (x, w), own(w.data)),
    "one with a default": lambda w, x: Tensor.of(
        x.data * w.data[0], (x, w), lambda grad, kept=w.data: (grad * kept[0], None)
    ),
    "a partial": lambda w, x: Tensor.of(
        x.data * w.data[0], (x, w), partial(lambda kept, grad: (grad * kept[0], None), w.data)
    ),
    "a view of no dimensions": lambda w, x: x * w[0, 0, ...],
    "a tensor made of its memory": lambda w, x: x * Tensor(w.data[0]),
    "recomputation": lambda w, x: checkpoint(lambda a: a @ w, x),
    "conv2d": lambda w, x: ops.conv2d(x.reshape(3, 1, 2, 2), w.reshape(4, 1, 2, 2)),
}


def own(weight):
    return lambda grad: (grad * weight[0], None)


class One(nn.Module):
    def __init__(self):
        self.weight = nn.Parameter((4, 4), lambda random, shape: random.standard_normal(shape))


@pytest.mark.parametrize("op", KEEPERS.values(), ids=KEEPERS)
def test_every_op_that_keeps_a_parameter_is_watched(op):
    model = One().init(0)
    x = Tensor(np.arange(12, dtype=np.float32).reshape(3, 4), requires_grad=True)
    y = op(model.weight, x).sum()
    model.load(model.state())
    with pytest.raises(ChangedError):
        y.backward()


def test_a_layer_that_is_computed_again_is_watched():
    """The layer is in the backward's closure, its memory is not."""
    model = two_layers()
    y = checkpoint(model, Tensor(X, requires_grad=True)).sum()
    model.load(model.state())
    with pytest.raises(ChangedError, match="checkpoint"):
        y.backward()


def test_an_op_that_keeps_no_values_or_copies_stays_right_after_a_write():
    model = One().init(0)
    number = model.weight.data[0, 0]
    x = Tensor(np.ones((4, 4), np.float32), requires_grad=True)
    y = (x + model.weight).sum() + (x * model.weight[0, 0]).sum()  # one number: NumPy copies it
    model.load({"weight": np.zeros((4, 4))})
    y.backward()
    np.testing.assert_array_equal(x.grad, 1 + number)
    expected = np.ones((4, 4))
    expected[0, 0] += 16
    np.testing.assert_array_equal(model.weight.grad, expected)


def test_tied_tables_are_watched_through_every_use():
    model = gpt(vocabulary=7, context=4, width=8, heads=2, layers=1).init(0)
    tokens = np.array([[0, 1, 2, 3]])
    loss = CrossEntropy()(model(tokens), tokens)
    model.load(model.state())
    with pytest.raises(ChangedError):
        loss.backward()


def test_a_step_of_one_model_does_not_disturb_another():
    one, other = two_layers(), two_layers()
    loss = one(X).sum()
    other.load({name: value + 1 for name, value in other.state().items()})
    loss.backward()
    alone = two_layers()
    alone(X).sum().backward()
    np.testing.assert_array_equal(one.flat.grad, alone.flat.grad)


@pytest.mark.parametrize(
    "read",
    [
        lambda x, index: ops.embedding(index, x),
        lambda x, index: x[index],
        lambda x, index: x[index, index],
        lambda x, index: x[:, index],
        lambda x, index: x[index.tolist()] if False else x[(index,)],
        lambda x, index: ops.where(index > 0, x[:3, 0], 0.0),
    ],
)
def test_an_index_may_be_filled_again_after_the_forward(read):
    table = np.arange(9.0).reshape(3, 3)
    grads = []
    for refill in (False, True):
        index = np.array([0, 2, 2])
        x = Tensor(table, requires_grad=True)
        y = (read(x, index) * np.arange(1.0, 4.0)).sum()
        if refill:
            index.fill(1)
        y.backward()
        grads.append(x.grad)
    np.testing.assert_array_equal(*grads)


def test_a_list_or_a_mask_may_be_filled_again_after_the_forward():
    for index in ([0, 2], [[0, 1], [2, 2]], np.array([True, False, True])):
        x = Tensor(np.zeros(3), requires_grad=True)
        y = x[index].sum()
        expected = np.zeros(3)
        np.add.at(expected, np.array(index), 1)
        if isinstance(index, list):
            index[0] = index[1]
        else:
            index[:] = False
        y.backward()
        np.testing.assert_array_equal(x.grad, expected)
    mask = np.array([True, False, True])
    x = Tensor(np.zeros(3), requires_grad=True)
    y = ops.where(mask, x, 1.0).sum()
    mask[:] = True
    y.backward()
    np.testing.assert_array_equal(x.grad, [1, 0, 1])


def test_training_on_mlp_steps_as_before():
    """No false alarm: forward, backward, step, again and again."""
    model, optimizer, losses = mlp((4, 5, 2)).init(0), SGD(0.1), []
    for _ in range(3):
        model.zero_grad()
        loss = CrossEntropy()(model(X), Y)
        loss.backward()
        optimizer.step(model.flat.data, model.flat.grad)
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def test_a_result_that_is_kept_after_the_backward_keeps_no_models_memory():
    model = One().init(0)
    y = Tensor(np.ones((4, 4), np.float32)) + model.weight
    y.sum().backward()
    memory = weakref.ref(owner_of(model.flat.data))
    del model
    assert y.requires_grad and memory() is None
