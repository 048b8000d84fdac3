"""The tape: order, accumulation, release, depth, hooks, modes and errors."""

import contextvars
import gc
import weakref

import numpy as np
import pytest

from minidist import nn, ops
from minidist.engine.tensor import (
    Tensor,
    defer_weight_gradients,
    no_grad,
)
from minidist.inspect.anomalies import AnomalyError, detect_anomaly
from minidist.inspect.graph import to_dot
from minidist.inspect.meter import measure_saved


def leaf(*values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


def test_a_value_used_twice_gets_both_gradients():
    a = leaf(3.0)
    (a + a).sum().backward()
    assert a.grad.tolist() == [2.0]


def test_a_node_waits_for_all_of_its_uses():
    a = leaf(3.0)
    b = a + a
    c = b + b
    c.sum().backward()
    assert a.grad.tolist() == [4.0]


def test_uses_of_very_different_depth():
    a = leaf(2.0)
    b = a * a
    far = b
    for _ in range(10):
        far = far * 1.0
    (far * b + b).sum().backward()  # a⁴ + a²: slope 4a³ + 2a
    assert a.grad.tolist() == [36.0]


def test_gradients_shared_by_an_op_are_not_written_into():
    a, b = leaf(1.0), leaf(1.0)
    s, t = a * 1.0, b * 1.0
    total = s + t  # add hands one array to both of its parents
    (total + s).sum().backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([2.0], [1.0])


def test_backward_accumulates_into_leaves():
    a = leaf(3.0)
    for expected in (6.0, 12.0):
        (a * a).sum().backward()
        assert a.grad.tolist() == [expected]


@pytest.mark.slow
def test_a_long_chain_forward_backward_and_garbage():
    a = leaf(1.0)
    y = a
    for _ in range(100_000):
        y = y + 1.0
    y.sum().backward()
    assert a.grad.tolist() == [1.0]
    for _ in range(100_000):  # and one that no backward takes apart
        y = y * 1.0
    a = leaf(1.0)
    y = a
    for _ in range(100_000):
        y = y * 1.0
    del y
    gc.collect()


def test_backward_releases_what_the_tape_saved():
    a = leaf(*range(100))
    with measure_saved() as meter:
        y = (a * a).tanh().sum()
        assert meter.bytes > 0
        y.backward()
        assert meter.bytes == 0

    class Array(np.ndarray):
        """One that can be watched."""

    kept = np.arange(3.0).view(Array)
    watch = weakref.ref(kept)
    y = ops.multiply(leaf(1.0, 2.0, 3.0), Tensor(kept)).sum()
    del kept
    assert watch() is not None
    y.backward()
    gc.collect()
    assert watch() is None


def test_a_second_backward_is_an_error():
    y = (leaf(2.0) * 3.0).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_no_grad_records_nothing_in_its_own_context_only():
    a = leaf(1.0)
    with no_grad():
        assert not (a * 2.0).requires_grad
        elsewhere = contextvars.Context()  # another rank
        assert elsewhere.run(lambda: (a * 2.0).requires_grad)
    assert (a * 2.0).requires_grad


def test_errors_of_backward():
    with pytest.raises(RuntimeError, match="does not require gradients"):
        Tensor([1.0]).backward()
    with pytest.raises(RuntimeError, match=r"scalar.*\(2,\)"):
        (leaf(1.0, 2.0) * 1.0).backward()
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        (leaf(1.0, 2.0) * 1.0).backward(np.ones(3))
    wrong = Tensor.of(np.ones(2), (leaf(1.0, 2.0),), lambda grad: (grad, grad))
    with pytest.raises(RuntimeError, match="2 gradients for 1 parents"):
        wrong.backward(np.ones(2))


class Twice(nn.Module):
    """One weight used twice, and one not at all."""

    def __init__(self):
        self.used = nn.Parameter((3, 3), lambda generator, shape: generator.normal(size=shape))
        self.idle = nn.Parameter((2,), lambda generator, shape: np.ones(shape))

    def forward(self, x):
        return ops.linear(ops.linear(x, self.used), self.used)


def test_on_ready_fires_once_after_the_last_use():
    model = Twice().init(0, dtype="float64")
    whole = model.flat.grad.copy()
    events = []
    model.used.on_ready.append(lambda p: events.append(p.grad.copy()))
    model.idle.on_ready.append(lambda p: events.append("idle"))
    x = np.random.default_rng(0).standard_normal((4, 3))
    model.zero_grad()
    model(x).sum().backward()
    whole = model.used.grad
    assert len(events) == 1
    np.testing.assert_array_equal(events[0], whole)


def test_the_first_gradient_after_zero_grad_is_written_and_the_next_added():
    model = Twice().init(0, dtype="float64")
    x = np.random.default_rng(0).standard_normal((4, 3))
    model.flat.grad[...] = np.nan  # zero_grad must clear this, also for the parameter not used
    model.zero_grad()
    model(x).sum().backward()
    once = model.flat.grad.copy()
    assert np.isfinite(once).all()
    assert (model.idle.grad == 0).all()
    model(x).sum().backward()
    np.testing.assert_allclose(model.flat.grad, 2 * once, rtol=1e-14)
    model.zero_grad()
    assert (model.flat.grad == 0).all()


def test_deferred_weight_gradients_equal_immediate_ones():
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 2))
    model.init(0, dtype="float64")
    values = np.random.default_rng(0).standard_normal((3, 4))

    def run(defer):
        fired = []
        for parameter in model.parameters():
            parameter.on_ready = [lambda p: fired.append(p.name)]
        model.zero_grad()
        x = Tensor(values, requires_grad=True)
        loss = model(x).sum()
        if not defer:
            loss.backward()
            return x.grad, model.flat.grad.copy(), sorted(fired)
        with defer_weight_gradients() as queue:
            loss.backward()
        assert x.grad is not None
        assert len(queue) == 6 and not fired and not model.flat.grad.any()
        queue.run()
        return x.grad, model.flat.grad.copy(), sorted(fired)

    for now, later in zip(run(False), run(True), strict=True):
        np.testing.assert_array_equal(now, later)


def test_hooks_see_and_may_change_the_whole_gradient():
    a = leaf(3.0)
    b = a * 2.0
    seen = []
    b.register_hook(lambda grad: seen.append(grad.tolist()))
    b.register_hook(lambda grad: grad * 10)
    a.register_hook(lambda grad: seen.append(grad.tolist()))
    (b + b * 4.0).sum().backward()
    assert seen == [[5.0], [100.0]]  # all uses of b at once; of a, after b's second hook
    assert a.grad.tolist() == [100.0]
    with pytest.raises(RuntimeError, match="requires_grad=False"):
        Tensor([1.0]).register_hook(print)


def test_retain_grad_keeps_the_gradient_of_a_result():
    a = leaf(3.0)
    b = a * 2.0
    b.retain_grad()
    a.retain_grad()
    (b * b).sum().backward()
    assert b.grad.tolist() == [12.0]
    assert a.grad.tolist() == [24.0]


def test_detect_anomaly_names_the_op_and_the_shapes():
    a = leaf(0.0, 1.0)
    with np.errstate(all="ignore"), detect_anomaly():
        with pytest.raises(AnomalyError, match=r"forward of log.*\(2,\).*1 infinite of 2"):
            ops.log(a)
        y = ops.sqrt(a).sum()
        with pytest.raises(AnomalyError, match=r"backward of sqrt.*input 0 of \(2,\).*1 infinite"):
            y.backward()
        wrong = Tensor.of(a.data * 2, (a * 1.0,), lambda grad: (grad[:1],)).sum()
        with pytest.raises(AnomalyError, match=r"shape \(1,\), the input \(2,\)"):
            wrong.backward()
    with np.errstate(all="ignore"):
        ops.log(a)  # and outside nothing is checked


def test_the_drawing_of_a_graph():
    model = nn.Linear(2, 2).init(0)
    text = to_dot(ops.relu(model(np.ones((1, 2), np.float32))).sum())
    for label in ("sum\\n()", "relu\\n(1, 2)", "linear\\n(1, 2)", "weight\\n(2, 2)"):
        assert f'label="{label}"' in text, f"{label} not in\n{text}"
    assert text.count("->") == 4
    with pytest.raises(RuntimeError, match="no tape"):
        to_dot(Tensor([1.0]))
