"""Modules: flat arrays, names, modes, buffers, state, and the layers' own behaviour."""

import numpy as np
import pytest
import strict

from minidist import nn, ops
from minidist.engine import array as arrays
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor, no_grad


def values(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def test_a_part_built_alone_has_the_numbers_of_the_whole():
    def build():
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    whole, part = build().init(5), build()[2:].init(5)
    np.testing.assert_array_equal(part.state()["2.weight"], whole.state()["2.weight"])


def test_an_uninitialised_layer_says_so():
    with pytest.raises(nn.UninitialisedError, match=r"\(3, 4\).*model.init\(seed\)"):
        nn.Linear(3, 4)(np.ones((1, 3), np.float32))


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(4), nn.RMSNorm(4), nn.GELU(), nn.ReLU(), nn.Residual(nn.Tanh())],
    ids=lambda layer: type(layer).__name__,
)
def test_any_layer_may_come_first_and_be_given_an_array(layer):
    x = values(2, 4).astype(np.float32)
    np.testing.assert_array_equal(layer.init(0)(x).data, layer(Tensor(x)).data)


def test_train_and_eval_reach_every_layer():
    model = nn.Sequential(nn.Residual(nn.Dropout(0.5)), nn.BatchNorm(3)).init(0)
    model.eval()
    assert not any(module.training for module in model.named_modules().values())
    x = values(4, 3).astype(np.float32)
    np.testing.assert_array_equal(model(Tensor(x)).data, model(Tensor(x)).data)
    assert model.train().blocks["0"].inner.blocks["0"].training


def test_dropout_is_keyed_by_seed_name_step_and_position():
    layers = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)).init(0)
    first, second = layers.blocks.values()
    x = Tensor(np.ones((6, 11)))

    def mask(layer, seed, step, rows=slice(None)):
        with draws(seed, step, np.arange(6)[rows]):
            return layer(Tensor(x.data[rows])).data

    whole = mask(first, 0, 0)
    assert set(np.unique(whole)) == {0.0, 2.0}
    np.testing.assert_array_equal(mask(first, 0, 0), whole)
    for other in (mask(first, 1, 0), mask(first, 0, 1), mask(second, 0, 0)):
        assert (other != whole).any()
    for rows in (slice(0, 2), slice(2, 6), [5, 0, 1, 4], [3], []):  # shards, and any selection
        np.testing.assert_array_equal(mask(first, 0, 0, rows), whole[rows])
    assert (whole[0] != whole[1]).any(), "rows must differ"
    with pytest.raises(RuntimeError, match=r"0: .*with draws\(seed, step\)"):
        first(x)
    with draws(0, 0, np.arange(3)), pytest.raises(ValueError, match="3 positions for 6 samples"):
        first(x)


def test_dropout_of_part_of_each_sample_is_that_part_of_the_mask():
    x = np.ones((3, 8, 5))
    with draws(0, 0):
        whole = ops.dropout(Tensor(x), 0.5, "name").data
        part = ops.dropout(Tensor(x[:, 2:4]), 0.5, "name", (slice(2, 4),), (8, 5)).data
    np.testing.assert_array_equal(part, whole[:, 2:4])


def test_dropout_keeps_the_mean():
    with draws(0, 0):
        y = ops.dropout(Tensor(np.ones((100, 1000))), 0.3, "name").data
    assert (y == 0).mean() == pytest.approx(0.3, abs=0.005)
    assert y.mean() == pytest.approx(1, abs=0.01)


def test_batch_norm_tracks_statistics_and_uses_them_in_evaluation():
    layer = nn.BatchNorm(3, momentum=0.25).init(0, dtype="float64")
    x = values(8, 3, 2) * 3 + 1
    y = layer(Tensor(x))
    np.testing.assert_allclose(y.data.mean(axis=(0, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(y.data.var(axis=(0, 2)), 1, rtol=1e-4)
    mean, variance = 0.25 * x.mean(axis=(0, 2)), 0.75 + 0.25 * x.var(axis=(0, 2), ddof=1)
    np.testing.assert_allclose(layer.mean.data, mean, rtol=1e-12)
    np.testing.assert_allclose(layer.variance.data, variance, rtol=1e-12)
    layer.eval()
    expected = (x - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5)
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, rtol=1e-12)
    assert set(layer.state()) == {"weight", "bias", "mean", "variance"}
    again = nn.BatchNorm(3).init(1, dtype="float64").load(layer.state()).eval()
    np.testing.assert_array_equal(again(Tensor(x)).data, layer(Tensor(x)).data)


def test_load_refuses_other_names_and_shapes():
    model = nn.Linear(2, 3).init(0)
    with pytest.raises(KeyError, match="bias"):
        model.load({"weight": np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"weight is \(2, 3\).*\(3, 2\)"):
        model.load({"weight": np.ones((3, 2)), "bias": np.ones(3)})


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rotary", [False, True])
def test_attention_with_a_cache_equals_attention_over_the_whole(groups, rotary):
    layer = nn.CausalSelfAttention(16, 4, groups, rotary).init(0, dtype="float64")
    x = values(2, 7, 16)
    with no_grad():
        whole = layer(Tensor(x)).data
        cache = nn.KeyValueCache()
        parts = [layer(Tensor(x[:, a:b]), cache).data for a, b in ((0, 3), (3, 4), (4, 7))]
    assert len(cache) == 7
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-12, atol=1e-14)


def test_attention_reads_nothing_from_later_positions():
    layer = nn.CausalSelfAttention(8, 2).init(0, dtype="float64")
    x = values(1, 150, 8)
    before = layer(Tensor(x)).data
    x[:, 100:] += 1
    after = layer(Tensor(x)).data
    np.testing.assert_array_equal(after[:, :100], before[:, :100])
    assert (after[:, 100:] != before[:, 100:]).all(axis=-1).all()


def test_readable_reprs():
    assert repr(nn.Linear(3, 4)) == "Linear(3, 4)"
    assert repr(nn.Conv2d(4, 6, 3, 2, groups=2)) == "Conv2d(4, 6, kernel=3, stride=2, groups=2)"
    assert repr(nn.CausalSelfAttention(8, 4, 2, True)) == (
        "CausalSelfAttention(8, heads=4, groups=2, rotary)"
    )
    assert repr(nn.Sequential(nn.Dropout(0.1), nn.GELU())) == (
        "Sequential(\n  0: Dropout(0.1)\n  1: GELU()\n)"
    )


def test_layers_train_on_the_strict_device(monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(16, 8), nn.LayerNorm(8), nn.Residual(nn.Linear(8, 8), nn.GELU()),
        nn.RMSNorm(8), nn.Linear(8, 3),
    )  # fmt: skip
    x, targets, loss = values(2, 1, 4, 4), np.array([0, 2]), nn.CrossEntropy(ignore_index=1)
    grads = []
    for device in ("cpu", "strict"):
        model.init(0, dtype="float64", device=device).zero_grad()
        with draws(0, 0):
            out = model(Tensor(arrays.to_device(x, device)))
        loss(out, arrays.to_device(targets, device)).backward()
        grads.append(arrays.to_host(model.flat.grad).copy())
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-10, atol=1e-12)
    assert np.abs(grads[0]).max() > 0


def test_a_shared_parameter_appears_once_under_its_first_name():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert list(model.named_parameters()) == ["0.weight", "0.bias", "1.bias"]
    assert model.init(0).flat.size == 9 + 3 + 3
