"""Zeros stay zeros, and the smallest weights go; smaller arrays compute the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from minidist import launch, nn, no_grad
from minidist.compress import (
    GradualPruning,
    apply_masks,
    cubic,
    find_units,
    keep_largest,
    magnitude_masks,
    shrink,
    sparsity,
)
from minidist.data import Batches, Dataset
from minidist.engine import work
from minidist.models import cnn, gpt, mlp, sample
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import DataParallel


def images(count=24, pixels=8, classes=10):
    random = np.random.default_rng(5)
    inputs = random.standard_normal((count, pixels, pixels)).astype(np.float32)
    return Dataset("noise", inputs, random.integers(0, classes, count), classes)


def small_cnn():
    return cnn(4, size=8, hidden=12)


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_exactly_the_smallest_weights_are_removed(scope):
    model = small_cnn().init(3)
    masks = magnitude_masks(model, 0.7, scope)
    named = model.named_parameters()
    assert set(masks) == {name for name in named if name.endswith("weight")}
    groups = [list(masks)] if scope == "model" else [[name] for name in masks]
    for names in groups:
        kept = np.concatenate([np.abs(named[n].data[masks[n]]).ravel() for n in names])
        gone = np.concatenate([np.abs(named[n].data[~masks[n]]).ravel() for n in names])
        assert len(gone) == round(0.7 * (len(gone) + len(kept)))
        assert gone.max() <= kept.min()


def test_equal_magnitudes_are_removed_to_the_exact_share():
    model = nn.Linear(10, 10).init(0)
    model.weight.data[...] = 1
    assert magnitude_masks(model, 0.25)["weight"].sum() == 75


def test_zeros_stay_zero_under_adam_and_gradual_pruning_equals_its_formula():
    """Also on ranks: replicas choose the same masks without a message."""
    steps, every = 12, 4

    def main(comm):
        method = DataParallel(small_cnn(), CrossEntropy(), Adam(0.05), comm, seed=1)
        pruning = GradualPruning(0.8, steps=8, every=every)
        batches, shares = Batches(images(), 12), []
        gone = np.zeros(0)
        for step in range(steps):
            method.step(batches[step])
            pruning.after_step(method.model, step)
            weights = np.concatenate(
                [p.data.ravel() for n, p in method.model.named_parameters().items() if n in masks]
            )
            assert (weights[gone.astype(int)] == 0).all()  # what was pruned stays so
            gone = np.flatnonzero(weights == 0)
            shares.append(len(gone) / len(weights))
        return shares, method.parameters()

    masks = magnitude_masks(small_cnn().init(1), 0.5)
    (shares, first), (_, second) = launch(main, 2)
    for step, share in enumerate(shares):
        expected = cubic(min(8, step // every * every), 0.8, 8)
        assert abs(share - expected) < 1e-3, (step, share, expected)
    assert all((first[name] == second[name]).all() for name in first)


def test_the_cubic_schedule_at_points_known_by_hand():
    assert cubic(0, 0.9, 10) == 0
    assert abs(cubic(5, 0.8, 10) - 0.8 * 7 / 8) < 1e-15
    assert cubic(10, 0.9, 10) == cubic(99, 0.9, 10) == 0.9
    assert abs(cubic(7, 0.9, 10, start=2, initial=0.5) - (0.9 - 0.4 / 8)) < 1e-15
    assert cubic(1, 0.9, 10, start=2, initial=0.5) == 0.5


def test_sparsity_counts_zeros_of_all_parameters():
    model = nn.Linear(4, 5).init(0)
    apply_masks(model, {"weight": np.zeros((4, 5), bool)})
    assert sparsity(model) == 20 / 25


def zeroed(model, kept):
    """A copy whose other units are zero, as large as before."""
    model = copy.deepcopy(model)
    named = model.named_parameters() | model.named_buffers()
    for layer, units in find_units(model).items():
        for cut in units.readers:
            gone = np.delete(cut.places, kept[layer], axis=0).ravel()
            np.moveaxis(named[cut.name].data, cut.axis, 0)[gone] = 0
    return model


def shifted(model, seed=0):
    """Biases away from zero, so that a wrong one is seen."""
    random = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * random.standard_normal(parameter.declared)
    return model


MODELS = {
    "cnn": (small_cnn, lambda: images(3).inputs),
    "mlp": (lambda: mlp((9, 8, 6, 4)), lambda: np.ones((2, 9), np.float32)),
    "gpt": (lambda: gpt(11, 8, 12, 2, 4), lambda: np.arange(16).reshape(2, 8) % 11),
    "batch norm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm(4), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2)
        ),
        lambda: np.random.default_rng(1).standard_normal((2, 2, 9, 9)).astype(np.float32),
    ),
    "grouped heads": (
        lambda: nn.Sequential(nn.CausalSelfAttention(16, 4, groups=2, rotary=True)),
        lambda: np.random.default_rng(1).standard_normal((2, 5, 16)).astype(np.float32),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_shrunk_model_computes_what_the_large_one_does_without_those_units(name):
    make, inputs = MODELS[name]
    model, x = shifted(make().init(2)).eval(), inputs()
    for buffer in model.named_buffers().values():
        buffer.data += np.linspace(0.1, 1, buffer.data.size, dtype=np.float32)
    kept = keep_largest(model, 0.5)
    assert kept and all(2 * len(kept[k]) == u.count for k, u in find_units(model).items())
    small = shrink(model, kept)
    with no_grad():
        got, expected = small(x).data, zeroed(model, kept)(x).data
        before = work.flops
        small(x)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    if name != "batch norm":  # its arrays did not all shrink: the last outputs are fixed
        assert small.flat.size < 0.6 * model.flat.size
    assert work.flops - before == small.cost(x.shape).flops


def test_a_shrunk_gpt_samples_through_its_cache():
    model = shifted(gpt(11, 8, 12, 2, 4).init(2))
    small = shrink(model, keep_largest(model, {"1.attention": 3, "2.attention": 1}))
    drawn = sample(small, [1, 2, 3], 4, temperature=0)
    text = [1, 2, 3]
    with no_grad():
        for _ in range(4):
            text.append(int(small(np.array([text])).data[0, -1].argmax()))
    assert drawn.tolist() == text[3:]


def test_the_filters_with_the_largest_sums_are_kept():
    model = small_cnn().init(0)
    model.blocks["1"].weight.data[...] = np.array([3, -4, 1, 2]).reshape(4, 1, 1, 1)
    assert keep_largest(model, {"1": 2})["1"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: keep_largest(m, 0.3), "'1' is 1.2, not a whole number.*{'1': 1}"),
        (lambda m: keep_largest(m, {"1": 0}), "keep at least 1 and at most all"),
        (lambda m: keep_largest(m, {"1": 1.5}), "at most all of them, not 1.5"),
        (lambda m: keep_largest(m, np.nan), "at most 1, or numbers by layer, not nan"),
        (lambda m: keep_largest(m, "half"), "or numbers by layer, not 'half'"),
        (lambda m: keep_largest(poisoned(m), 0.5), "1.weight has NaN"),
        (lambda m: shrink(m, {"nope": np.array([0])}), "no units in 'nope'"),
        (lambda m: shrink(m, {"1": np.array([0, 0])}), "different indices in"),  # read twice
        (lambda m: shrink(m, {"1": np.array([True, False, True, False])}), "flatnonzero"),
        (lambda m: shrink(m, {"1": np.array([0.0, 1.0])}), "different indices in"),
        (lambda m: shrink(m, {"1": np.array([-1])}), "different indices in"),
        (lambda m: shrink(m, {"1": np.array([99])}), "different indices in"),
        (lambda m: shrink(m, {"1": []}), "at least one"),
        (lambda m: keep_largest(m, {"10": 3}), "no units in .'10'."),
        (lambda m: keep_largest(nn.Linear(3, 3).init(0), 0.5), "no units that can be removed"),
        (lambda m: magnitude_masks(m, 1.0), r"\[0, 1\), not 1.0"),
        (lambda m: magnitude_masks(m, 0.5, "whole"), '"model" or "layer"'),
        (lambda m: magnitude_masks(nn.LayerNorm(3).init(0), 0.5), "no linear layers"),
        (lambda m: magnitude_masks(poisoned(m), 0.5), "NaN"),
        (lambda m: apply_masks(m, {"1.weight": np.ones((9, 9), bool)}), "masks of another model"),
        (lambda m: apply_masks(m, {"99.weight": np.ones(1, bool)}), "does not exist"),
        (lambda m: GradualPruning(0.9, 10, every=3), "multiple of every=3"),
        (lambda m: GradualPruning(0.5, 10, initial=0.6), "initial <= final"),
    ],
)
def test_what_cannot_be_done_is_refused(call, words):
    with pytest.raises((ValueError, KeyError), match=words):
        call(small_cnn().init(0))


def poisoned(model):
    model.flat.data[0] = np.nan
    return model
