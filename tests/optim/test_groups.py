"""Groups, weight decay of every rule, and settings changed while training."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import optim
from tests.optim.test_optim import SHAPES, SIZE, SLICES, start_and_grads

RULES = {
    "GradientDescent": optim.GradientDescent,
    "SGD": optim.SGD,
    "Momentum": optim.Momentum,
    "Nesterov": optim.Nesterov,
    "AdaGrad": optim.AdaGrad,
    "RMSprop": optim.RMSprop,
    "Adam": optim.Adam,
    "AdamW": optim.AdamW,
    "LARS": optim.LARS,
    "LAMB": optim.LAMB,
}
L2 = [name for name in RULES if name not in ("AdamW", "LARS", "LAMB")]
GROUPS = {"norm*": {"lr": 0.01}, "*bias": {"weight_decay": 0.0}, "1.*": {"lr": 0.3}}


def made(name, **options):
    optimizer = RULES[name](**{"lr": 0.05, "weight_decay": 0.2, "exclude": (), **options})
    optimizer.bind(SLICES)
    return optimizer


@pytest.mark.parametrize("name", L2)
def test_weight_decay_of_these_rules_is_added_to_the_gradient(name):
    data, grads = start_and_grads()
    got, expected = data.copy(), data.copy()
    decaying, plain = made(name), made(name, weight_decay=0.0)
    for grad in grads:
        before = grad.copy()
        decaying.step(got, grad)
        assert np.array_equal(grad, before), "the model's gradient is not the rule's to change"
        plain.step(expected, grad + 0.2 * expected)
    np.testing.assert_allclose(got, expected, rtol=1e-13)
    assert np.abs(got - data).max() > 0.01


@pytest.mark.parametrize("name", RULES)
def test_a_group_is_stepped_as_by_a_rule_with_its_settings(name):
    """A rule for each group, on the arrays of its parameters alone."""
    data, grads = start_and_grads()
    got = data.copy()
    optimizer = made(name, groups=GROUPS)
    for grad in grads:
        optimizer.step(got, grad)
    settings = {"0.weight": {}, "0.bias": {"weight_decay": 0.0}, "norm.gain": {"lr": 0.01}}
    settings |= {"1.weight": {"lr": 0.3}, "1.bias": {"weight_decay": 0.0}}
    for parameter, where in SLICES.items():
        alone, expected = made(name, **settings[parameter]), data[where].copy()
        alone.bind({parameter: slice(0, expected.size)})
        for grad in grads:
            alone.step(expected, grad[where])
        np.testing.assert_allclose(got[where], expected, rtol=1e-13, err_msg=parameter)


@pytest.mark.parametrize("name", RULES)
def test_settings_changed_between_steps_act_on_the_next(name):
    """As a rule that had them from the beginning, from the same state on."""
    data, grads = start_and_grads()
    first, second = made(name, weight_decay=0.0, exclude=("*bias",)), None
    got = data.copy()
    first.step(got, grads[0])
    second = made(name, lr=0.3, weight_decay=0.1, exclude=("*gain",), groups={"1.*": {"lr": 0.7}})
    second.steps = 1
    second.only_part().state = {n: a.copy() for n, a in first.only_part().state.items()}
    expected = got.copy()
    first.lr, first.weight_decay, first.exclude = 0.3, 0.1, ("*gain",)
    first.groups["1.*"] = {"lr": 0.7}
    for grad in grads[1:]:
        first.step(got, grad)
        second.step(expected, grad)
    assert np.array_equal(got, expected)


def test_momentum_may_begin_and_end_between_steps():
    data, grads = start_and_grads()
    optimizer, got, expected, v = optim.SGD(0.1), data.copy(), data.copy(), 0
    for mu, grad in zip((0.0, 0.9, 0.9, 0.0, 0.5), grads, strict=True):
        optimizer.momentum = mu
        optimizer.step(got, grad)
        v = (mu * v + grad) if mu or not np.isscalar(v) else 0
        expected = expected - 0.1 * (v if not np.isscalar(v) else grad)
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_mixed_precision_has_the_settings_of_the_rule_inside():
    def trained(optimizer, change):
        data = np.ones(4, np.float16)
        optimizer.bind({"w": slice(0, 2), "bias": slice(2, 4)})
        change(optimizer)
        optimizer.step(data, np.ones(4, np.float16))
        return data

    def change(optimizer):
        optimizer.lr, optimizer.weight_decay, optimizer.exclude = 0.5, 0.25, ("bias",)
        optimizer.groups = {"w": {"lr": 0.125}}

    mixed = optim.MixedPrecision(optim.SGD(0.1), scale=1.0)
    assert np.array_equal(trained(mixed, change), trained(optim.SGD(0.1), change))
    assert (mixed.lr, mixed.inner.lr, mixed.inner.weight_decay) == (0.5, 0.5, 0.25)


@pytest.mark.parametrize(
    ("groups", "error"),
    [
        ({"*bais": {"lr": 0.1}}, r"no parameter's name matches the group '\*bais'"),
        ({"*bias": {"decay": 0.1}}, r"'\*bias' has settings \['decay'\]"),
        ({"*bias": {"lr": -1}}, "at least 0, not -1"),
        ({"*bias": {"weight_decay": -1}}, "weight_decay must be at least 0, not -1"),
    ],
)
def test_a_group_that_would_be_ignored_or_misread_is_refused(groups, error):
    with pytest.raises(ValueError, match=error):
        made("Adam", groups=groups)


def test_settings_are_checked_when_they_change():
    optimizer = optim.SGD(0.1)
    with pytest.raises(TypeError, match="a number or a schedule"):
        optimizer.lr = "small"
    with pytest.raises(ValueError, match="at least 0"):
        optimizer.weight_decay = -0.1
    optimizer = made("SGD", groups={"*bias": {"lr": 0.1}})
    optimizer.groups["*bias"]["lr"] = -1
    with pytest.raises(ValueError, match="at least 0"):
        optimizer.step(np.zeros(SIZE), np.zeros(SIZE))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "AdaGrad", "RMSprop", "Nesterov"])
def test_torch_agrees_on_decay_and_groups(name):
    torch = pytest.importorskip("torch")
    kinds = {"AdaGrad": "Adagrad", "Nesterov": "SGD"}
    kind = getattr(torch.optim, kinds.get(name, name))
    options = {"momentum": 0.9, "nesterov": True} if name == "Nesterov" else {}
    data, grads = start_and_grads()
    theirs = {n: torch.nn.Parameter(torch.tensor(data[where])) for n, where in SLICES.items()}
    bias = [p for n, p in theirs.items() if n.endswith("bias")]
    rest = [p for n, p in theirs.items() if not n.endswith("bias")]
    grouped = [{"params": rest}, {"params": bias, "weight_decay": 0.0, "lr": 0.01}]
    rule = kind(grouped, lr=0.05, weight_decay=0.2, **options)
    ours, got = made(name, groups={"*bias": {"weight_decay": 0.0, "lr": 0.01}}), data.copy()
    for grad in grads:
        for n, where in SLICES.items():
            theirs[n].grad = torch.tensor(grad[where])
        rule.step()
        ours.step(got, grad)
    for n, where in SLICES.items():
        expected = theirs[n].detach().numpy().reshape(-1)
        np.testing.assert_allclose(got[where], expected, rtol=1e-11, err_msg=f"{n} {SHAPES[n]}")
