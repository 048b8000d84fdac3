"""Losses: as PyTorch defines them, each target alone or divided by a count."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import ops
from minidist.engine.gradcheck import gradcheck
from minidist.engine.seeds import generator
from minidist.engine.tensor import Tensor
from minidist.ops.selection import kept


def normal(*shape):
    return generator(0, "losses", *shape).standard_normal(shape)


LOGITS = normal(4, 3, 5)
CLASSES = generator(1, "classes").integers(0, 5, (4, 3))
CLASSES[0, 1] = CLASSES[2, 2] = -100
WEIGHT = np.array([0.5, 2.0, 0.0, 1.0, 3.0])
SOFT = np.exp(normal(5, 4, 3)).T.reshape(4, 3, 5)
SOFT[0, 0] = [0, 1, 0, 0, 0]
SOFT /= SOFT.sum(-1, keepdims=True)
OUTPUT, NUMBERS = normal(3, 4), normal(4, 3).T
CHANCES = np.clip(normal(4, 3).T ** 2 / 4, 0, 1)
CHANCES[0] = [0, 1, 0.5, 0]


def cases(torch):
    """By name: an input, the loss here and in PyTorch, of (x, reduction)."""
    of, tensor = torch.nn.functional, torch.tensor

    def classes(smoothing, weight, soft):
        targets, there = (SOFT, tensor(SOFT).movedim(-1, 1)) if soft else (CLASSES, tensor(CLASSES))
        ignored = None if soft else -100
        by = None if weight is None else tensor(weight)
        return (
            LOGITS,
            lambda x, how: ops.cross_entropy(x, targets, None, ignored, smoothing, weight, how),
            lambda x, how: of.cross_entropy(
                x.movedim(-1, 1), there, by, label_smoothing=smoothing, reduction=how
            ),
        )

    found = {
        f"cross_entropy {smoothing} {'weights' if weight is not None else ''} {soft}": classes(
            smoothing, weight, soft
        )
        for smoothing in (0.0, 0.1)
        for weight in (None, WEIGHT)
        for soft in (False, True)
    }
    found["mean_squared_error"] = (
        OUTPUT,
        lambda x, how: ops.mean_squared_error(x, NUMBERS, reduction=how),
        lambda x, how: of.mse_loss(x, tensor(NUMBERS), reduction=how),
    )
    for delta in (0.3, 1.0):
        found[f"huber {delta}"] = (
            OUTPUT,
            lambda x, how, delta=delta: ops.huber(x, NUMBERS, None, delta, how),
            lambda x, how, delta=delta: of.huber_loss(
                x, tensor(NUMBERS), reduction=how, delta=delta
            ),
        )
    found["binary_cross_entropy"] = (
        OUTPUT,
        lambda x, how: ops.binary_cross_entropy(x, CHANCES, reduction=how),
        lambda x, how: of.binary_cross_entropy_with_logits(x, tensor(CHANCES), reduction=how),
    )
    for log in (False, True):
        targets = NUMBERS if log else CHANCES
        found[f"kl_divergence {log}"] = (
            OUTPUT,
            lambda x, how, t=targets, log=log: ops.kl_divergence(x, t, None, log, how),
            lambda x, how, t=targets, log=log: of.kl_div(
                x, tensor(t), reduction="batchmean" if how == "mean" else how, log_target=log
            ),
        )
    return found


@pytest.mark.parametrize("how", ["mean", "none"])
def test_loss_and_gradient_are_those_of_pytorch(how):
    torch = pytest.importorskip("torch")
    for name, (x, here, there) in cases(torch).items():
        got_x, expected_x = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        got, expected = here(got_x, how), there(expected_x, how)
        upstream = np.arange(1.0, got.data.size + 1).reshape(got.shape)
        got.backward(upstream)
        expected.backward(torch.tensor(upstream))
        np.testing.assert_allclose(got.data, expected.detach(), 1e-12, 1e-13, err_msg=name)
        np.testing.assert_allclose(got_x.grad, expected_x.grad, 1e-12, 1e-13, err_msg=name)


def by_hand(z, weight=None):
    """-log p of each class, times its weight: (n, c)."""
    nll = np.log(np.exp(z).sum(-1, keepdims=True)) - z
    return nll if weight is None else nll * weight


def test_weights_probabilities_and_smoothing_by_their_definitions():
    z, y = LOGITS[:, 0], np.array([1, 0, 4, 3])
    rows = np.arange(4)
    got = ops.cross_entropy(Tensor(z), y, weight=WEIGHT)
    assert got.item() == pytest.approx(by_hand(z, WEIGHT)[rows, y].sum() / WEIGHT[y].sum())
    got = ops.cross_entropy(Tensor(z), y, 2.0, weight=WEIGHT, label_smoothing=0.2)
    expected = 0.8 * by_hand(z, WEIGHT)[rows, y].sum() + 0.04 * by_hand(z, WEIGHT).sum()
    assert got.item() == pytest.approx(expected / 2)
    got = ops.cross_entropy(Tensor(z), SOFT[:, 0], weight=WEIGHT)
    assert got.item() == pytest.approx((SOFT[:, 0] * by_hand(z, WEIGHT)).sum() / 4)
    one_hot = np.eye(5)[y]
    assert ops.cross_entropy(Tensor(z), one_hot).item() == pytest.approx(
        ops.cross_entropy(Tensor(z), y).item(), rel=1e-14
    )


GRADIENTS = {
    "probabilities": lambda x: ops.cross_entropy(x, SOFT),
    "weights": lambda x: ops.cross_entropy(x, CLASSES, None, -100, weight=WEIGHT),
    "weights, smoothed, each": lambda x: ops.cross_entropy(
        x, CLASSES, None, -100, 0.1, WEIGHT, "none"
    ),
    "each": lambda x: ops.cross_entropy(x, CLASSES, None, -100, 0.1, reduction="none"),
    "huber": lambda x: ops.huber(x, x[::-1] * 0.3, 7, 0.5),
    "huber, each": lambda x: ops.huber(x, LOGITS * 2, reduction="none"),
    "squares, each": lambda x: ops.mean_squared_error(x, x[::-1] * x, reduction="none"),
    "binary, each": lambda x: ops.binary_cross_entropy(x, SOFT, reduction="none"),
    "divergence": lambda x: ops.kl_divergence(ops.log_softmax(x), SOFT),
    "divergence, logs": lambda x: ops.kl_divergence(x, np.log(SOFT + 0.1), None, True, "none"),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    gradcheck(GRADIENTS[name], LOGITS)


def test_each_target_alone_adds_up_to_the_sum():
    for one in (
        lambda **more: ops.cross_entropy(Tensor(LOGITS), CLASSES, ignore_index=-100, **more),
        lambda **more: ops.mean_squared_error(Tensor(OUTPUT), NUMBERS, **more),
        lambda **more: ops.huber(Tensor(OUTPUT), NUMBERS, **more),
        lambda **more: ops.kl_divergence(Tensor(OUTPUT), CHANCES, **more),
    ):
        each = one(reduction="none")
        assert each.data.sum() == pytest.approx(one(count=1).item(), rel=1e-13)
    assert (ops.cross_entropy(Tensor(LOGITS), CLASSES, None, -100, reduction="none").data == 0)[
        CLASSES == -100
    ].all()


def test_what_does_not_count_is_selected_not_multiplied():
    """0 · inf is NaN: an ignored row, a probability of 0, a divergence to an impossible class."""
    z = np.array([[1.0, 2.0], [np.nan, np.inf], [0.0, -np.inf]])
    y = np.array([0, -1, 0])
    for weight in (None, [1.0, 2.0]):
        for smoothing in (0.0, 0.1):
            x = Tensor(z[:2], requires_grad=True)
            loss = ops.cross_entropy(x, y[:2], None, -1, smoothing, weight, "none")
            with np.errstate(invalid="ignore"):
                loss.backward(np.array([1.0, np.inf]))
            assert np.isfinite(loss.data).all(), (weight, smoothing, loss)
            assert np.isfinite(x.grad).all(), (weight, smoothing, x.grad)
    assert ops.cross_entropy(Tensor(z[2:]), np.array([[1.0, 0.0]])).item() == 0
    assert ops.kl_divergence(Tensor([[0.0, -np.inf]]), [[1.0, 0.0]]).item() == 0


@pytest.mark.parametrize("name", ["mean_squared_error", "huber", "kl_divergence", "weights"])
def test_half_precision_is_summed_in_single(name):
    """100,000 losses of 1 or more: in float16 the sum is inf, and 1/100,000 loses its digits."""
    ones, targets = np.ones((100_000, 1), np.float16), np.zeros((100_000, 1), np.float16)
    x = Tensor(ones * (-2 if name == "kl_divergence" else 2), requires_grad=True)
    loss = {
        "mean_squared_error": lambda: ops.mean_squared_error(x, targets),
        "huber": lambda: ops.huber(x, targets),
        "kl_divergence": lambda: ops.kl_divergence(x, ones),
        "weights": lambda: ops.cross_entropy(
            ops.concatenate([x, x], 1), np.zeros(100_000, int), weight=[4.0, 1.0]
        ),
    }[name]()
    expected = {"mean_squared_error": 4, "huber": 1.5, "kl_divergence": 2, "weights": np.log(2)}
    assert loss.dtype == np.float16
    assert loss.item() == pytest.approx(expected[name], rel=1e-3)
    loss.backward()
    assert x.grad.dtype == np.float16 and np.isfinite(x.grad).all()


LABELS = np.array([0, 1])
TWO = Tensor(np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: ops.cross_entropy(TWO, LABELS * 1.0), r"class numbers are integers, targets.asty"),
        (lambda: ops.cross_entropy(TWO, LABELS > 0), "class numbers are integers"),
        (lambda: ops.cross_entropy(TWO, np.eye(4, dtype=int)[:2]), r'astype\("float32"\)'),
        (lambda: ops.cross_entropy(TWO, np.zeros((2, 4)), ignore_index=1), "leave it out"),
        (lambda: ops.cross_entropy(TWO, LABELS, weight=[1.0]), "4 classes need as many weights"),
        (lambda: ops.cross_entropy(TWO, LABELS, 1, weight=[1.0] * 4, reduction="sum"), "count=1"),
        (lambda: ops.cross_entropy(TWO, LABELS, 2, reduction="none"), "divides by nothing"),
        (lambda: ops.cross_entropy(TWO, LABELS * 0 - 1, ignore_index=-1), "no mean over no target"),
        (lambda: ops.cross_entropy(TWO, LABELS, weight=[0.0, 0, 1, 1]), "no mean over no targets"),
        (lambda: ops.mean_squared_error(TWO, np.zeros((2, 4)), 0), "the count is 0"),
        (lambda: ops.mean_squared_error(TWO, np.zeros((2, 4)), len), "count is a number"),
        (lambda: ops.mean_squared_error(TWO, np.zeros((2, 1))), "reshape the targets"),
        (lambda: ops.huber(TWO, np.zeros((2, 4)), delta=0), "delta must be positive"),
        (lambda: ops.kl_divergence(TWO, np.zeros((2, 1))), "targets of the same shape"),
        (lambda: ops.kl_divergence(Tensor(1.0), 1.0), "no distribution"),
    ],
)
def test_errors_say_what_to_do(call, error):
    with pytest.raises((ValueError, TypeError), match=error):
        call()


def test_a_selection_may_be_of_another_dtype_than_its_result():
    mask, x = np.array([True, False, True]), np.array([1.5, np.inf, -2.0])
    out = np.empty(3, np.float32)
    np.testing.assert_array_equal(kept(np, x, mask, out=out), [1.5, 0, -2])
    assert out.dtype == np.float32
