"""Maps of what a model looks at: against formulas, and with random weights."""

from __future__ import annotations

from functools import cache, partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import strict

from minidist.compress import fit
from minidist.data import Batches, fashion_mnist
from minidist.engine import array as arrays
from minidist.engine.array import defaults
from minidist.explain import (
    Score,
    attention,
    attention_maps,
    attention_rollout,
    cascade,
    completeness_gap,
    gradient,
    gradient_times_input,
    integrated_gradients,
    occlude,
    occlusion,
    randomised,
    rank_correlation,
)
from minidist.models import cnn, gpt, mlp
from minidist.nn import CausalSelfAttention, Conv2d, Flatten, Linear, Sequential, Tanh
from minidist.nn.parameter import UninitialisedError
from minidist.plots.maps import draw_attention, draw_map, draw_text_map

RANDOM = np.random.default_rng(4)
X = RANDOM.standard_normal((3, 28, 28))
TOKENS = RANDOM.integers(0, 11, (2, 6))


def made(model, seed=1):
    with defaults(dtype="float64"):
        return model.init(seed)


@cache
def trained():
    """An MLP that tells clothes apart, and 100 images that it has not seen."""
    train, test = fashion_mnist()
    model = fit(mlp((784, 128, 64, 10)).init(0), Batches(train, 100), 150, lr=3e-3)
    return model.eval(), test.batch(np.arange(100)).inputs


def small_gpt():
    return made(gpt(11, context=8, width=12, layers=2, heads=3, dropout=0.5))


# A linear model: all maps are known


LINEAR = made(Sequential(Flatten(), Linear(784, 4), input_shape=(28, 28)))
WEIGHT = LINEAR.blocks["1"].weight.data


@pytest.mark.parametrize("target", [2, [2, 0, 1]], ids=str)
def test_of_a_linear_model_all_maps_are_its_weights_times_the_change(target):
    w = WEIGHT[:, np.broadcast_to(target, 3)].T.reshape(3, 28, 28)
    base = RANDOM.standard_normal((28, 28))
    close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    close(gradient(LINEAR, X, target), w)
    close(gradient_times_input(LINEAR, X, target), w * X)
    close(integrated_gradients(LINEAR, X, target, baseline=base, steps=3), w * (X - base))
    close(occlude(LINEAR, X, target, patch=1, fill=base), w * (X - base))
    patches = (w * X).reshape(3, 7, 4, 7, 4).sum(axis=(2, 4))
    close(occlude(LINEAR, X, target, patch=4), patches.repeat(4, 1).repeat(4, 2))


def test_without_a_target_each_input_is_explained_for_its_likeliest_class():
    likeliest = LINEAR(X).data.argmax(1)
    assert len(set(likeliest)) > 1
    np.testing.assert_array_equal(gradient(LINEAR, X), gradient(LINEAR, X, likeliest))
    np.testing.assert_array_equal(gradient(LINEAR, X[:1], 3), gradient(LINEAR, X, 3)[:1])


# Others: numeric derivatives, completeness


def numeric(model, x, target, index, position=-1):
    up, down = x.copy(), x.copy()
    up[index] += 1e-5
    down[index] -= 1e-5
    score = Score(model, x, target, position)
    return ((score(up) - score(down)) / 2e-5)[index[0]]


@pytest.mark.parametrize("model", [made(mlp((784, 9, 10))), made(cnn(2, hidden=8))])
def test_the_gradient_is_the_numeric_one(model):
    found = gradient(model, X, [1, 7, 3])
    for index in [(0, 3, 4), (1, 14, 15), (2, 20, 9)]:
        assert found[index] == pytest.approx(numeric(model, X, [1, 7, 3], index), abs=1e-8)


def test_of_tokens_the_embeddings_are_explained():
    model, target = small_gpt(), [3, 5]
    for position in (-1, 2):
        score = Score(model, TOKENS, target, position)
        assert score.x.shape == (2, 6, 12)
        whole = model.eval()(TOKENS).data[np.arange(2), position, target]
        np.testing.assert_allclose(score(score.x), whole, rtol=1e-12)
        slope = score.gradient(score.x)
        for index in [(0, 1, 4), (1, 2, 0)]:
            up, down = score.x.copy(), score.x.copy()
            up[index] += 1e-5
            down[index] -= 1e-5
            expected = ((score(up) - score(down)) / 2e-5)[index[0]]
            assert slope[index] == pytest.approx(expected, abs=1e-8)
        found = gradient_times_input(model, TOKENS, target, position)
        np.testing.assert_allclose(found, (slope * score.x).sum(-1), rtol=1e-12)
        lengths = gradient(model, TOKENS, target, position)
        np.testing.assert_allclose(lengths, np.sqrt((slope**2).sum(-1)), rtol=1e-12)
    found = gradient_times_input(model, TOKENS, target, position=2)
    assert (found[:, 3:] == 0).all() and (found[:, :3] != 0).all(), "later tokens do not count"
    covered = occlude(model, TOKENS, target, fill=0.0)
    without = score.x.copy()
    without[:, 4] = 0
    last = Score(model, TOKENS, target)
    np.testing.assert_allclose(covered[:, 4], last(last.x) - last(without), rtol=1e-9)


def test_integrated_gradients_are_complete_on_100_images():
    """The sum is the difference of outputs to 1e-3."""
    model, images = trained()
    maps = integrated_gradients(model, images, steps=512)
    gap = completeness_gap(maps, model, images)
    print(f"completeness gap: median {np.median(gap):.1e}, largest {gap.max():.1e}")
    assert gap.max() < 1e-3
    assert maps.shape == images.shape


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(made(cnn(2, hidden=8)), X[:1]), (small_gpt(), TOKENS)],
    ids=["cnn", "gpt"],
)
def test_integrated_gradients_of_other_models_are_complete(model, inputs):
    check_complete_too(model, inputs)


def check_complete_too(model, inputs):
    found = integrated_gradients(model, inputs, steps=32 if inputs is TOKENS else 1000)
    assert completeness_gap(found, model, inputs).max() < 1e-3
    few = integrated_gradients(model, inputs, steps=2)
    assert completeness_gap(few, model, inputs).max() > 1e-3, "and with few steps they are not"


def test_nothing_is_zero_or_the_mean_embedding_in_each_position():
    assert (Score(MLP, X).baseline() == 0).all()
    model = small_gpt()
    table, places = model.blocks["0"].weight.data, model.blocks["0"].position.data
    expected = np.broadcast_to(table.mean(0) + places[:6], (2, 6, 12))
    np.testing.assert_allclose(Score(model, TOKENS).baseline(), expected, rtol=1e-12)


# Occlusion


def test_overlapping_patches_are_averaged_and_reach_the_edge():
    found = occlude(LINEAR, X, 1, patch=5, stride=3)
    w = (WEIGHT[:, 1].reshape(28, 28) * X)[0]
    starts = [*range(0, 24, 3), 23]
    covering = [r for r in starts if r <= 27 < r + 5], [c for c in starts if c <= 9 < c + 5]
    means = np.mean([w[r : r + 5, c : c + 5].sum() for r in covering[0] for c in covering[1]])
    assert found[0, 27, 9] == pytest.approx(means)


def test_channels_are_covered_together():
    model = made(Sequential(Conv2d(3, 2, 3, padding=1), Tanh(), Flatten(), Linear(72, 4)))
    images = RANDOM.standard_normal((2, 3, 6, 6))
    found = occlude(model, images, 1, patch=2)
    covered = images.copy()
    covered[:, :, 2:4, 4:6] = 0
    score = Score(model, images, 1)
    assert found.shape == images.shape
    np.testing.assert_allclose(found[:, :, 3, 5].sum(1), score(images) - score(covered))


# Attention


@pytest.mark.parametrize(("groups", "rotary", "length"), [(4, False, 6), (2, True, 70)])
def test_maps_are_the_weights_that_the_layer_reads_with(groups, rotary, length):
    layer = CausalSelfAttention(16, 4, groups=groups, rotary=rotary)
    model = made(Sequential(layer, Linear(16, 16)))
    x = RANDOM.standard_normal((2, length, 16))
    (weights,) = attention_maps(model, x)
    assert weights.shape == (2, 4, length, length)
    np.testing.assert_allclose(weights.sum(-1), 1)
    assert (weights[..., np.triu_indices(length, 1)[0], np.triu_indices(length, 1)[1]] == 0).all()
    qkv = layer.qkv(x).data
    values = qkv[..., -groups * 4 :].reshape(2, length, groups, 4).repeat(4 // groups, 2)
    read = np.einsum("bhij,bjhd->bihd", weights, values).reshape(2, length, 16)
    np.testing.assert_allclose(read, layer.core(layer.qkv(x)).data, rtol=1e-9)
    if not rotary:
        q, k = (qkv[..., part : part + 16].reshape(2, length, 4, 4) for part in (0, 16))
        scores = np.einsum("bihd,bjhd->bhij", q, k) / 2
        ratio = weights[:, :, 5, 0] / weights[:, :, 5, 3]
        np.testing.assert_allclose(ratio, np.exp(scores[:, :, 5, 0] - scores[:, :, 5, 3]))


def test_rollout_multiplies_the_layers_from_the_first_on():
    maps = attention_maps(small_gpt(), TOKENS)
    assert len(maps) == 2
    first, second = (0.5 * np.eye(6) + 0.5 * weights.mean(1) for weights in maps)
    np.testing.assert_allclose(attention_rollout(maps), second @ first)
    np.testing.assert_allclose(attention_rollout(maps).sum(-1), 1)


# The sanity check


def test_random_weights_destroy_the_maps():
    """And less so where the input itself is a factor of the map."""
    model, images = trained()
    limits = {gradient: 0.1, gradient_times_input: 0.35, occlude: 0.25}
    for explain, limit in limits.items():
        found = cascade(explain, model, images[:50])
        means = {name: values.mean() for name, values in found.items()}
        print(f"{explain.__name__}: {means}")
        assert list(means) == ["5", "3", "1"]
        assert means["1"] < limit and means["5"] < 0.5
    assert found["1"].shape == (50,)


def test_randomised_changes_the_last_blocks_alone():
    model = made(gpt(11, context=8, width=12, layers=2, heads=3))
    before = model.state()
    other = randomised(model, 9, last=2).named_parameters()
    for name, one in other.items():
        if one.data.ndim == 2:  # norms and biases begin at the same numbers
            again = np.array_equal(one.data, before[name])
            assert again == (not name.startswith(("2.", "3.", "embedding"))), name
    every = randomised(model, 9).named_parameters()
    assert not np.array_equal(every["0.position"].data, before["0.position"])
    assert all(np.array_equal(values, before[name]) for name, values in model.state().items())
    with pytest.raises(ValueError, match="the model has 4 blocks with weights, not 5"):
        randomised(model, 9, last=5)


def test_rank_correlation():
    a = np.array([3.0, 1.0, 2.0, 2.0, 9.0])
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    # Ranks 3, 0, 1.5, 1.5, 4 and 0, 1, 2, 3, 4: by hand.
    assert rank_correlation(a, np.arange(5.0)) == pytest.approx(3.5 / np.sqrt(9.5 * 10))
    assert rank_correlation(a, np.ones(5)) == 0
    assert abs(rank_correlation(RANDOM.random(5000), RANDOM.random(5000))) < 0.05


# The model stays as it is; devices; bad input


def test_the_model_is_not_touched():
    model = mlp((12, 8, 5)).init(0)
    model.flat.grad[...] = 3.0
    fired = []
    model.named_parameters()["1.weight"].on_ready.append(fired.append)
    before = model.flat.data.copy()
    x = X[:, :3, :4].astype(np.float32)
    for explain in (gradient, gradient_times_input, integrated_gradients, occlude):
        explain(model, x, 1) if explain is not occlude else explain(model, x, 1, patch=2)
    assert model.training and not fired
    assert (model.flat.grad == 3.0).all() and np.array_equal(model.flat.data, before)
    assert all(one.requires_grad for one in model.parameters())


def test_on_a_device_as_on_the_host(monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)

    few_steps = partial(integrated_gradients, steps=3)

    def maps():
        # Frozen before init: of the stand-in's arrays nobody knows whose memory they are.
        model = gpt(11, context=8, width=12, layers=1, heads=3).freeze().init(0, dtype="float64")
        tokens = model.flat.xp.asarray(TOKENS)
        image = mlp((12, 8, 5)).freeze().init(0, dtype="float64")
        x = image.flat.xp.asarray(X[:, :3, :4])
        return [
            *attention_maps(model, tokens),
            *(way(model, tokens) for way in (gradient, few_steps, occlude)),
            *(way(image, x) for way in (gradient, few_steps)),
            occlude(image, x, patch=2),
        ]

    with defaults(dtype="float64"):
        expected = maps()
        with defaults(device="strict"):
            found = maps()
    for got, wanted in zip(found, expected, strict=True):
        assert type(got) is np.ndarray
        np.testing.assert_allclose(got, wanted, rtol=1e-9)


GPT, MLP = small_gpt(), made(mlp((784, 9, 10)))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: gradient(MLP, X, 10), r"class 10 is not in \[0, 10\)"),
        (lambda: gradient(MLP, X, -1), r"class -1 is not in \[0, 10\)"),
        (lambda: gradient(MLP, X, [1, 2]), r"one for each of 3 inputs, not int64 of shape \(2,\)"),
        (lambda: gradient(MLP, X, 1.5), "the target is a class, .* not float64"),
        (lambda: integrated_gradients(MLP, X, steps=0), "1 or more steps .*, not 0"),
        (lambda: integrated_gradients(MLP, X, steps=2.5), "1 or more steps .*, not 2.5"),
        (
            lambda: integrated_gradients(MLP, X, baseline=X[:, :3]),
            r"baseline of shape \(3, 3, 28\)",
        ),
        (lambda: occlude(MLP, X, patch=29), "a patch of 29 in strides of 29"),
        (lambda: occlude(MLP, X, patch=0), "a patch of 0"),
        (lambda: occlude(MLP, X, patch=2, stride=3), "in strides of 3"),
        (lambda: attention_maps(MLP, X), "no layer of the model attends .*Flatten, Linear, ReLU"),
        (lambda: attention_rollout([]), "no maps"),
        (lambda: gradient(MLP, X.astype(np.uint8)), "begins with Flatten, so it takes numbers"),
        (lambda: gradient(GPT, TOKENS.astype(float)), "begins with Embed, so it takes integers"),
        (lambda: gradient(GPT, TOKENS, 11), r"class 11 is not in \[0, 11\)"),
        (lambda: gradient(GPT, TOKENS, 3, position=6), "outputs .* have no position 6"),
        (lambda: gradient(MLP, X[:0]), "no inputs"),
        (lambda: gradient(mlp((784, 10)), X), "before it was initialised: call model.init"),
        (lambda: gradient(Linear(3, 2).init(0), X), "a Linear is not a Sequential"),
        (lambda: rank_correlation(X, X[:1]), "rank correlation: of"),
        (lambda: draw_map(plt.subplots()[1], X), r"not \(3, 28, 28\): take one image's"),
        (lambda: draw_text_map(plt.subplots()[1], X[0, 0], "abc"), "28 values for 3 characters"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, error):
    with pytest.raises((ValueError, TypeError, UninitialisedError), match=error):
        call()
    plt.close("all")


def test_pictures_are_drawn():
    figure, axes = plt.subplots(1, 3)
    draw_map(axes[0], X[0], X[1], "a map")
    draw_text_map(axes[1], np.array([1.0, -2.0, 0.0]), "a \n")
    draw_attention(axes[2], np.eye(3), list("a \n"))
    figure.canvas.draw()
    assert np.array_equal(axes[0].images[0].get_array(), X[0]) and axes[0].images[0].norm.vmin < 0
    assert [text.get_text() for text in axes[1].texts] == ["a", "␣", "↵"]
    plt.close(figure)


# Mutants


def at_the_end_of_the_way_alone(monkeypatch):
    true = Score.gradient
    monkeypatch.setattr(Score, "gradient", lambda self, x: true(self, self.x))


def no_baseline_in_the_factor(monkeypatch):
    true = Score.baseline
    monkeypatch.setattr(Score, "baseline", lambda self, value=None: true(self, 0.0))


def the_first_ones_class_for_all(monkeypatch):
    true = Score._classes

    def wrong(self, output, target):
        return np.full(len(output), true(self, output, target)[0])

    monkeypatch.setattr(Score, "_classes", wrong)


def drops_of_the_other_sign(monkeypatch):
    true = Score.__call__
    monkeypatch.setattr(Score, "__call__", lambda self, x: -true(self, x))


def patches_not_averaged(monkeypatch):
    monkeypatch.setattr(
        occlusion, "places", lambda sides, patch, stride: [(slice(0, 4), slice(0, 4))]
    )


def scores_without_the_root(monkeypatch):
    true = attention.attention_forward
    monkeypatch.setattr(
        attention, "attention_forward", lambda q, *rest, causal: true(2 * q, *rest, causal)
    )


def check_linear():
    test_of_a_linear_model_all_maps_are_its_weights_times_the_change([2, 0, 1])


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (at_the_end_of_the_way_alone, lambda: check_complete_too(GPT, TOKENS)),
        (no_baseline_in_the_factor, check_linear),
        (the_first_ones_class_for_all, check_linear),
        (drops_of_the_other_sign, check_linear),
        (patches_not_averaged, check_linear),
        (
            scores_without_the_root,
            partial(test_maps_are_the_weights_that_the_layer_reads_with, 4, False, 6),
        ),
    ],
)
def test_mutants_are_rejected(mutant, check, monkeypatch):
    mutant(monkeypatch)
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        check()
