"""Checkpointing gives the same result and gradients, bitwise, and keeps less."""

import numpy as np
import pytest

from minidist import nn
from minidist.engine import recompute
from minidist.engine.recompute import checkpoint
from minidist.engine.seeds import draws
from minidist.engine.tape import run_backward
from minidist.engine.tensor import Tensor, defer_weight_gradients, no_grad
from minidist.inspect.meter import measure_saved


def block():
    return nn.Residual(
        nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.3), nn.Linear(32, 8)
    )


def run(model, through):
    x = Tensor(np.random.default_rng(1).standard_normal((5, 8)), requires_grad=True)
    model.zero_grad()
    with measure_saved(exclude=[model.flat.data_and_loss]) as meter:
        with draws(seed=3, step=7):  # and not any more during the backward
            y = x
            for piece in model.blocks.values():
                y = through(piece, y)
            kept = meter.bytes
        (y * y).sum().backward()
    return y.data, x.grad, model.flat.grad.copy(), kept


def test_the_same_numbers_for_less_memory():
    model = nn.Sequential(*[block() for _ in range(4)]).init(0, dtype="float64")
    *plain, plain_kept = run(model, lambda piece, x: piece(x))
    *again, again_kept = run(model, checkpoint)
    for got, expected in zip(again, plain, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert again_kept == 4 * 5 * 8 * 8, "the input of each of four blocks, in float64"
    assert plain_kept > 4 * again_kept


def net(through, twice=True):
    """A layer that is used twice, inside a recomputed block, and once more outside."""
    layer = nn.Linear(4, 4)

    class Net(nn.Module):
        def __init__(self):
            self.first, self.layer = nn.Linear(3, 4), layer
            self.block = nn.Sequential(layer, nn.GELU(), layer)

        def forward(self, x):
            x = through(self.block, self.first(x))
            x = through(self.block, x) if twice else x
            return self.layer(x)

    return Net()


def directly(block, x):
    return block(x)


def grads_and_calls(through, deferred=False, hooked=False, twice=True):
    """Gradients; each parameter's calls of ``on_ready``, and whether its gradient was complete."""
    model = net(through, twice).init(0, dtype="float64")
    named, calls, heard = model.named_parameters(), [], []
    for name, parameter in named.items():
        parameter.on_ready.append(lambda p, name=name: calls.append((name, p.grad.copy())))
    if hooked:
        named["layer.weight"].register_hook(lambda grad: heard.append(1) or 3 * grad)
    model.zero_grad()
    x = np.random.default_rng(0).standard_normal((5, 3))
    loss = (model(x) * model(x)).sum()
    if deferred:
        with defer_weight_gradients() as queue:
            loss.backward()
        queue.run()
    else:
        loss.backward()
    assert len(heard) == hooked, "a hook sees the whole gradient, once a backward"
    early = [n for n, grad in calls if not np.array_equal(grad, named[n].grad)]
    assert not early, f"{early} were ready before their last use"
    assert sorted(n for n, _ in calls) == sorted(named), "each is ready once a backward"
    return model.flat.grad.copy()


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_a_parameter_is_ready_once_after_its_last_use(deferred, hooked, twice):
    """Uses inside recomputed blocks, several of them, and outside count together."""
    got = grads_and_calls(checkpoint, deferred, hooked, twice)
    expected = grads_and_calls(directly, deferred, hooked, twice)
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_inside_each_other():
    got = grads_and_calls(lambda block, x: checkpoint(lambda x: checkpoint(block, x), x))
    np.testing.assert_allclose(got, grads_and_calls(directly), rtol=1e-13)


def test_where_nothing_is_recorded_it_is_the_function_itself():
    model = net(checkpoint).init(0)
    with no_grad():
        y = model(np.ones((2, 3), np.float32))
    assert y.node is None
    assert np.array_equal(y.data, model(np.ones((2, 3), np.float32)).data)


def test_an_input_need_not_require_gradients():
    """The parameters inside are found all the same: a first block can be recomputed."""
    linear, x = nn.Linear(2, 2).init(0), np.ones((1, 2), np.float32)
    linear.zero_grad()
    checkpoint(linear, x).sum().backward()
    got = linear.flat.grad.copy()
    linear.zero_grad()
    linear(x).sum().backward()
    assert np.array_equal(got, linear.flat.grad)


def test_a_tensor_computed_outside_must_be_an_input():
    linear, x = nn.Linear(2, 2).init(0), Tensor(np.ones((1, 2), np.float32), requires_grad=True)
    scale = x * 2
    with pytest.raises(ValueError, match=r"uses the result of mul.*\(1, 2\).*pass it as an input"):
        checkpoint(lambda x: linear(x) * scale, x)
    checkpoint(lambda x, scale: linear(x) * scale, x, scale).sum().backward()
    assert x.grad is not None


def test_another_parameter_the_second_time_is_an_error():
    one, two = nn.Linear(2, 2).init(0), nn.Linear(2, 2).init(1)
    turns = iter([one, two])
    with defer_weight_gradients():
        y = checkpoint(
            lambda x: next(turns)(x), Tensor(np.ones((1, 2), np.float32), requires_grad=True)
        )
        with pytest.raises(RuntimeError, match=r"(weight|bias) the second time only"):
            y.sum().backward()


def test_inner_backwards_that_announce_gradients_are_rejected(monkeypatch):
    """On real ranks, what is announced too early is sent too early."""
    monkeypatch.setattr(recompute, "backward_within", lambda *given: run_backward(*given) or {})
    with pytest.raises(AssertionError):
        test_a_parameter_is_ready_once_after_its_last_use(False, False, True)


def test_a_use_that_the_tape_does_not_see_is_rejected(monkeypatch):
    monkeypatch.setattr(recompute.Used, "after_forward", lambda *args: None)
    with pytest.raises((AssertionError, RuntimeError)):
        test_a_parameter_is_ready_once_after_its_last_use(False, False, False)
