"""Metrics by hand-counted cases."""

import numpy as np
import pytest

from minidist import nn
from minidist.data import Dataset
from minidist.engine.tensor import Tensor
from minidist.inspect import metrics

#            guessed: 0  1  2
CONFUSION = np.array([[8, 1, 1], [0, 5, 5], [0, 0, 0]])


def test_confusion_matrix_counts_pairs():
    targets = np.repeat([0, 1], 10)
    guesses = np.array([0] * 8 + [1, 2] + [1] * 5 + [2] * 5)
    np.testing.assert_array_equal(metrics.confusion_matrix(targets, guesses, 3), CONFUSION)
    with pytest.raises(ValueError, match=r"guesses must lie in \[0, 2\)"):
        metrics.confusion_matrix(targets, guesses, 2)
    with pytest.raises(ValueError, match="20 targets but 19 guesses"):
        metrics.confusion_matrix(targets, guesses[1:], 3)


def test_precision_recall_f1():
    np.testing.assert_allclose(metrics.precision(CONFUSION, None), [1, 5 / 6, 0])
    np.testing.assert_allclose(metrics.recall(CONFUSION, None), [0.8, 0.5, 0])
    np.testing.assert_allclose(metrics.f1(CONFUSION, None), [16 / 18, 10 / 16, 0])
    assert metrics.precision(CONFUSION) == pytest.approx((1 + 5 / 6) / 3)
    assert metrics.recall(CONFUSION, "macro") == pytest.approx(1.3 / 3)
    for figure in (metrics.precision, metrics.recall, metrics.f1):
        assert figure(CONFUSION, "micro") == pytest.approx(13 / 20)
    with pytest.raises(ValueError, match="macro"):
        metrics.f1(CONFUSION, "mean")


def parrot(classes):
    """A model whose logits favour the token it is given, whatever the shape."""
    return lambda x: Tensor(np.eye(classes)[x] * 3.0)


def test_accuracy_mean_loss_and_confusion_of_a_model():
    tokens = np.array([[0, 1], [2, 0], [1, 1], [2, 2], [0, 0]])
    targets = np.array([[0, 1], [2, 1], [1, 1], [0, 2], [0, 0]])
    data = Dataset("tokens", tokens, targets, 3)
    model = parrot(3)
    for chunk in (1, 2, 100):
        assert metrics.accuracy(model, data, chunk) == 0.8
        np.testing.assert_array_equal(
            metrics.confusion(model, data, chunk), [[3, 0, 1], [1, 3, 0], [0, 0, 2]]
        )
        right, wrong = -np.log(np.exp([3, 0]) / (np.exp(3) + 2))
        got = metrics.mean_loss(model, nn.CrossEntropy(), data, chunk)
        assert got == pytest.approx(0.8 * right + 0.2 * wrong)


def test_perplexity_of_a_guess_among_n_is_n():
    assert metrics.perplexity(np.log(63)) == pytest.approx(63)


def test_confusion_plot_shows_percent():
    from matplotlib.figure import Figure

    from minidist.plots import plot_confusion

    axes = Figure().subplots()
    plot_confusion(axes, CONFUSION, ["a", "b", "c"])
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "80", (1, 0): "10", (2, 0): "10", (1, 1): "50", (2, 1): "50"}
