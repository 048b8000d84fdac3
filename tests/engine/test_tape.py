"""The tape checks what backwards return, and leaves nothing to the garbage collector."""

import gc
import weakref

import numpy as np
import pytest

from minidist import Tensor, nn, ops
from minidist.engine import checkpoint, defer_weight_gradients
from minidist.engine.gradcheck import gradcheck
from minidist.engine.tape import GradientShapeError, Into


def wrong(x, part):
    """An op of a user, with a mistake in its backward."""

    def scaled(data):
        return Tensor.of(data * 2, (x,), lambda grad: (part(grad),))

    return scaled(x.data)


WRONG = {
    "a sum": lambda grad: grad.sum(),
    "one row": lambda grad: grad[:1],
    "an axis too many": lambda grad: grad[None],
    "an axis too few": lambda grad: grad[0],
    "a callable": lambda grad: lambda: grad[:1],
    "an Into": lambda grad: Into(lambda out: grad[:1]),
}


@pytest.mark.parametrize("part", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("above", ["a leaf", "a result", "a leaf with a hook", "a parameter"])
def test_a_gradient_of_the_wrong_shape_is_an_error_that_names_the_op(part, above):
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    if above == "a leaf with a hook":
        x.register_hook(lambda grad: None)
    if above == "a result":
        x = x * 1.0
    if above == "a parameter":
        model = nn.Linear(2, 3).init(0, "float64")
        model.zero_grad()
        x = model.weight
    with pytest.raises(GradientShapeError, match=r"backward of wrong: .*\(2, 3\)"):
        wrong(x, part).sum().backward()


def test_gradcheck_and_hooks_refuse_it_too():
    with pytest.raises(GradientShapeError, match="wrong"):
        gradcheck(lambda x: wrong(x, lambda grad: grad[:1]), np.ones((2, 3)))
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    x.register_hook(lambda grad: grad.sum())
    with pytest.raises(GradientShapeError, match="hook"):
        (x * 2.0).sum().backward()


def test_a_deferred_gradient_of_the_wrong_shape_is_an_error():
    model = nn.Linear(2, 3).init(0)
    with defer_weight_gradients() as later:
        wrong(model.weight, lambda grad: Into(lambda out: grad[:1])).sum().backward()
    with pytest.raises(GradientShapeError, match="wrong"):
        later.run()


def leaf():
    x = Tensor(np.zeros(1000), requires_grad=True)
    return weakref.ref(x), x


def op():
    x = Tensor(np.zeros(1000), requires_grad=True)
    y = (x * 2.0).sum()
    y.backward()
    return weakref.ref(x), y


def forward_alone():
    x = Tensor(np.zeros(1000), requires_grad=True)
    return weakref.ref(x), (x * 2.0).sum()


def hooks():
    x = Tensor(np.zeros(1000), requires_grad=True)
    y = x * 2.0
    y.retain_grad()
    y.register_hook(lambda grad: grad * 2)
    x.register_hook(lambda grad: None)
    y.sum().backward()
    assert y.grad is not None
    return weakref.ref(y), x


def a_hook_that_refers_to_its_tensor():
    """A circle of the user's, which ends with the backward."""
    x = Tensor(np.zeros(1000), requires_grad=True)
    y = x * 2.0
    y.register_hook(lambda grad: grad + y.data)
    y.sum().backward()
    return weakref.ref(y), x


def retained_without_backward():
    x = Tensor(np.zeros(1000), requires_grad=True)
    y = x * 2.0
    y.retain_grad()
    return weakref.ref(y), x


def parameters():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).init(0)
    model.zero_grad()
    model(np.ones((2, 4), np.float32)).sum().backward()
    return weakref.ref(model.blocks["0"].weight), None


def recomputed():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).init(0)
    model.zero_grad()
    x = Tensor(np.ones((2, 4), np.float32), requires_grad=True)
    checkpoint(model, x).sum().backward()
    return weakref.ref(x), None


def deferred():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).init(0)
    model.zero_grad()
    with defer_weight_gradients() as later:
        model(np.ones((2, 4), np.float32)).sum().backward()
    later.run()
    return weakref.ref(model.blocks["0"].weight), None


MAKERS = [leaf, op, forward_alone, hooks, a_hook_that_refers_to_its_tensor,
          retained_without_backward, parameters, recomputed, deferred]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_memory_is_freed_without_the_garbage_collector(make):
    """Leaves that were circles kept 794 MB where 80 were in use, until the collector came."""
    make()  # what is cached once
    gc.collect()
    gc.disable()
    try:
        found, kept = make()
        del kept
        assert found() is None
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_leaf_that_is_gone_stops_no_backward():
    kept = Tensor(np.ones(3), requires_grad=True)
    seen = []

    def forward():
        gone = Tensor(np.full(3, 2.0), requires_grad=True)
        gone.register_hook(seen.append)
        return ops.sum(gone * kept)

    forward().backward()
    np.testing.assert_array_equal(kept.grad, [2, 2, 2])
    np.testing.assert_array_equal(seen[0], [1, 1, 1])
