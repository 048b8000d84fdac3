"""LoRA: a few added weights are trained, the rest is frozen, on one rank and on several."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minidist import LocalWorld, Tensor, launch, nn
from minidist.collectives import ring
from minidist.compress import (
    LoRA,
    adapt,
    adapted_names,
    load,
    merge,
    quantize_weights,
    save,
)
from minidist.data import Batches, characters
from minidist.engine.array import defaults
from minidist.engine.gradcheck import gradcheck
from minidist.models import gpt
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam
from minidist.parallel import DataParallel, Serial, Zero1, Zero2, Zero3
from tests.compress.test_pruning import shifted

TEXT = "to be or not to be that is the question whether tis nobler in the mind " * 4
ALPHA = 6.0


def data():
    return characters(TEXT, 8)[0]


def small():
    return gpt(data().classes, 8, 12, 2, 2)


def trained():
    """Parameters that stand for those of a trained model."""
    return shifted(small().init(5)).state()


def test_the_formula_and_its_gradient():
    layer = LoRA(nn.Linear(4, 3), 2, alpha=ALPHA).init(0, dtype="float64")
    random = np.random.default_rng(0)
    for parameter in layer.parameters():
        parameter.data[...] = random.standard_normal(parameter.declared)
    x = random.standard_normal((5, 4))
    W, b = layer.inner.weight.data, layer.inner.bias.data
    expected = x @ W + b + ALPHA / 2 * (x @ layer.A.data) @ layer.B.data
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-12)
    gradcheck(layer, x)
    y = Tensor(x, requires_grad=True)
    layer(y).sum().backward()
    np.testing.assert_allclose(
        y.grad, np.ones((5, 3)) @ (W + ALPHA / 2 * layer.A.data @ layer.B.data).T, rtol=1e-12
    )


def test_an_adapted_model_begins_as_the_trained_one_and_trains_only_what_was_added():
    plain, base = small().init(0).load(trained()), trained()
    model = adapt(small(), rank=2, alpha=ALPHA)
    model.init(1)
    model.load(model.state() | adapted_names(model, base))
    tokens = data().batch(np.arange(3)).inputs
    np.testing.assert_array_equal(model(tokens).data, plain(tokens).data)
    inside = [layer for layer in plain.named_modules().values() if isinstance(layer, nn.Linear)]
    added = sum(2 * sum(layer.weight.declared) for layer in inside)
    assert model.flat.size == added == sum(p.size for p in model.parameters() if p.requires_grad)


def train(comm, method, steps=4, optimizer=lambda: SGD(0.5), seed=1):
    """Adapt by a method; returns its parameters, losses, and bytes sent in one step."""
    model = adapt(small(), rank=2, alpha=ALPHA)
    trainer = method(model, CrossEntropy(), optimizer(), comm, seed)
    trainer.load_parameters(trainer.parameters() | adapted_names(model, trained()))
    batches, losses, sent = Batches(data(), 7), [], []
    for step in range(steps):
        before = comm.trace.sent.nbytes
        losses.append(trainer.step(batches[step]))
        sent.append(comm.trace.sent.nbytes - before)
        cost = trainer.cost(batches[step], comm.machine)
        assert sent[-1] == cost.nbytes[comm.rank]
    return trainer.parameters(), losses, sent


@pytest.mark.parametrize("method", [DataParallel, Zero1, Zero2, Zero3])
def test_adapting_on_two_ranks_equals_serial_and_freezes_the_rest(method):
    with defaults(dtype="float64"):
        ((expected, losses, _),) = launch(lambda comm: train(comm, Serial), 1)
        base = trained()
        for found, also, _ in launch(lambda comm: train(comm, method), 2):
            np.testing.assert_allclose(also, losses, rtol=1e-12)
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-10, atol=1e-13)
            for name, values in adapted_names(adapt(small(), 2), base).items():
                assert found[name].tobytes() == values.tobytes(), f"{name} is frozen"
        assert losses[-1] < losses[0]


def test_data_parallelism_sends_the_bytes_of_what_is_trained():
    model = adapt(small(), rank=2)
    added = sum(p.size for p in model.parameters() if p.requires_grad)
    for _, _, sent in launch(lambda comm: train(comm, DataParallel), 2):
        assert set(sent) == {sum_of_ring(added + 1, 2)}  # one more, for the loss


def sum_of_ring(length, size):
    return ring.all_reduce_cost(length, 4, 0, size, LocalWorld().machine).nbytes


def test_a_merged_model_computes_what_the_adapted_one_does(tmp_path):
    ((adapted, _, _),) = launch(lambda comm: train(comm, Serial, optimizer=lambda: Adam(0.05)), 1)
    model = adapt(small(), rank=2, alpha=ALPHA).init(0).load(adapted)
    merged = merge(small(), adapted, ALPHA)
    tokens = data().batch(np.arange(3)).inputs
    np.testing.assert_allclose(merged(tokens).data, model(tokens).data, atol=1e-4)
    assert np.abs(merged(tokens).data - small().init(0).load(trained())(tokens).data).max() > 0.05
    again = load(save(tmp_path / "adapted", model), small())
    assert again(tokens).data.tobytes() == model(tokens).data.tobytes()
    assert {n for n, p in again.named_parameters().items() if p.requires_grad} == {
        n for n, p in model.named_parameters().items() if p.requires_grad
    }


def test_what_cannot_be_done_is_refused():
    for call, words in (
        (lambda: adapt(small(), rank=0), "at least 1 and at most"),
        (lambda: adapt(small(), rank=13), "12 × 36, not 13"),
        (lambda: adapt(small(), rank=1.5), "12 × 36, not 1.5"),
        (lambda: adapt(small(), alpha=0), "alpha must be above 0"),
        (lambda: merge(small(), small().init(0).state()), "no parameters of a model that adapt"),
        (lambda: merge(small(), adapt(small()).init(0).state(), math.nan), "finite, not nan"),
        (lambda: merge(small(), coded().state()), "merge first, then quantize"),
        (lambda: adapt(small(), where=lambda path: False), "no linear layer was selected"),
        (lambda: adapt(small().init(0)), "initialised already"),
        (lambda: adapt(adapt(small())), "adapted already"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def coded():
    """Adapted, and its frozen weights quantized."""
    return quantize_weights(adapt(small()).init(0), 8, 3)


def test_an_adapted_model_is_quantized_and_saved(tmp_path):
    model, tokens = coded(), np.arange(6)[None]
    again = load(save(tmp_path / "m", model), small())
    assert again(tokens).data.tobytes() == model(tokens).data.tobytes()
    assert set(again.trained()) == set(model.trained()) == set(adapt(small()).trained())
