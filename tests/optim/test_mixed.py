"""Mixed precision: what float16 alone loses, the master copy and the loss scale keep."""

import numpy as np
import pytest

from minidist import nn, optim
from minidist.data import Batches, fashion_mnist, shakespeare
from minidist.engine.tensor import Tensor
from minidist.models import cnn, gpt, mlp
from minidist.optim import MixedPrecision


def test_updates_too_small_for_float16_add_up_in_the_master_copy():
    alone, data = np.ones(1, np.float16), np.ones(1, np.float16)
    mixed = MixedPrecision(optim.GradientDescent(1e-4), scale=1.0)
    plain = optim.GradientDescent(1e-4)
    for _ in range(100):
        plain.step(alone, np.ones(1, np.float16))
        mixed.step(data, np.ones(1, np.float16))
    assert alone[0] == 1.0  # each update was rounded away
    assert data[0] == np.float16(0.99)


def test_the_scale_saves_gradients_too_small_for_float16():
    x = Tensor(np.full(4, 1e-3, np.float16), requires_grad=True)
    mixed = MixedPrecision(optim.SGD(1.0), scale=2.0**16)
    loss = (x * Tensor(np.full(4, 1e-8, np.float32))).sum().astype("float32")
    mixed.backward(loss)
    data = np.zeros(4, np.float16)
    mixed.step(data, x.grad)
    np.testing.assert_allclose(mixed.parts[0].state["master"], -1e-8, rtol=1e-2)


def test_overflow_skips_the_step_halves_the_scale_and_good_steps_double_it():
    mixed = MixedPrecision(optim.Adam(0.1), scale=1024.0, patience=2)
    data = np.ones(3, np.float16)
    mixed.step(data, np.array([1, np.inf, 1], np.float16))
    assert (mixed.scale, mixed.skipped, mixed.steps) == (512.0, 1, 0)
    np.testing.assert_array_equal(data, 1)
    for expected in (512.0, 1024.0):
        mixed.step(data, np.ones(3, np.float16))
        assert mixed.scale == expected
    assert mixed.steps == 2


def test_clipping_is_of_the_gradient_without_its_scale():
    grad = np.array([3.0, 4.0])
    for limit, expected in ((1.0, grad / 5), (10.0, grad)):
        mixed = MixedPrecision(optim.SGD(1.0), scale=64.0, clip=limit)
        mixed.step(np.zeros(2, np.float16), (64 * grad).astype(np.float16))
        np.testing.assert_allclose(mixed.parts[0].state["master"], -expected, rtol=1e-6)
    shard = MixedPrecision(optim.SGD(1.0), scale=64.0, clip=1.0)  # of two ranks, whose other has 12
    others = iter((0.0, 144.0))  # no overflow there, and its sum of squares
    shard.bind({"w": slice(0, 4)}, 0, reduce=lambda sums: np.add(sums, next(others), out=sums))
    shard.step(np.zeros(2, np.float16), (64 * grad).astype(np.float16))
    np.testing.assert_allclose(shard.parts[0].state["master"], -grad / 13, rtol=1e-6)


def test_shards_skip_together():
    mixed = MixedPrecision(optim.SGD(0.1), scale=4.0)
    mixed.bind({"w": slice(0, 4)}, 0, reduce=lambda bad: np.add(bad, 1, out=bad))  # the other's
    data = np.ones(2, np.float16)
    mixed.step(data, np.ones(2, np.float16))
    assert mixed.skipped == 1
    np.testing.assert_array_equal(data, 1)


def test_state_is_master_and_the_inner_slots():
    mixed = MixedPrecision(optim.Adam())
    mixed.step(np.ones(10, np.float16), np.ones(10, np.float16))
    assert mixed.slots == ("master", "mean", "square")
    assert mixed.state_bytes() == 3 * 10 * 4
    with pytest.raises(ValueError, match="master copy of 10"):
        mixed.step(np.ones(11, np.float16), np.ones(11, np.float16))


MODELS = {
    "mlp": (lambda: mlp((784, 32, 10)), fashion_mnist()[0]),
    "cnn": (lambda: cnn(2), fashion_mnist()[0]),
    "gpt": (lambda: gpt(63, 16, 16, 1, 2), shakespeare(16)[0]),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_float16_follows_float32(name):
    make, data = MODELS[name]
    batches, loss = Batches(data, 16), nn.CrossEntropy()
    model32, model16 = make().init(0), make().init(0, dtype="float16")
    plain, mixed = optim.Adam(1e-3), MixedPrecision(optim.Adam(1e-3))
    for step in range(15):
        batch = batches[step]
        model32.zero_grad()
        loss32 = loss(model32(batch.inputs), batch.targets)
        loss32.backward()
        plain.step(model32.flat.data, model32.flat.grad)
        model16.zero_grad()
        floating = batch.inputs.dtype.kind == "f"
        logits = model16(batch.inputs.astype(np.float16) if floating else batch.inputs)
        assert logits.dtype == np.float16  # nothing on the way was silently promoted
        loss16 = loss(logits.astype("float32"), batch.targets)
        mixed.backward(loss16)
        mixed.step(model16.flat.data, model16.flat.grad)
    print(f"float32 {loss32.item():.4f}, mixed {loss16.item():.4f}")
    assert model16.flat.data.dtype == np.float16
    assert loss16.item() == pytest.approx(loss32.item(), rel=0.01)


def test_layer_wise_rules_inside_are_told_where_the_layers_lie():
    """LARS alone and LARS inside, on two layers of different size, take the same step."""
    slices = {"a": slice(0, 3), "b": slice(3, 5)}
    alone, inside = optim.LARS(1.0), MixedPrecision(optim.LARS(1.0), scale=8.0)
    start = np.array([1.0, 2.0, 3.0, 100.0, 200.0], np.float32)
    grad = np.array([4.0, 4.0, 2.0, 1.0, 1.0], np.float32)
    got, expected = start.copy(), start.copy()
    alone.bind(slices)
    inside.bind(slices)
    alone.step(expected, grad)
    inside.step(got, 8 * grad)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert abs(got - start)[:3].max() * 10 < abs(got - start)[3:].min(), "each layer its own rate"
