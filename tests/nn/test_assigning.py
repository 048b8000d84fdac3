"""Parameters and the flat array stay one memory: an assignment copies, or says why it cannot."""

import copy
import pickle

import numpy as np
import pytest

from minidist import Tensor, nn
from minidist.nn import Parameter, UninitialisedError
from minidist.nn.init import constant
from minidist.optim import SGD, AdamW

X = np.ones((3, 4), np.float32)


def made():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).init(0)


def one(model):
    return model.flat.data.__array_interface__["data"], [
        np.shares_memory(p.data, model.flat.data) and np.shares_memory(p.grad, model.flat.grad)
        for p in model.flat.parameters
    ]


def test_values_and_gradients_are_copied_into_the_flat_arrays():
    model = made()
    weight, before = model.blocks["0"].weight, one(model)
    weight.data = np.full((4, 3), 7, np.float32)
    weight.grad = np.full((4, 3), 5, np.float32)
    assert (model.flat.data[:12] == 7).all() and (model.flat.grad[:12] == 5).all()
    weight.data += 1
    weight.data = [[0.5] * 3] * 4
    assert (model.flat.data[:12] == 0.5).all()
    model.flat.data = model.flat.data * 2
    model.flat.grad *= 3
    assert (weight.data == 1).all() and (weight.grad == 15).all()
    assert one(model) == before
    SGD(1.0).step(model.flat.data, model.flat.grad)
    assert (weight.data == -14).all()


def test_only_the_first_gradient_after_zero_grad_overwrites():
    model = made()
    bias = model.blocks["2"].bias
    for loss in (lambda: model(X).sum(), lambda: (bias * 3).sum()):  # written by the op, or copied
        for backwards in (1, 2):
            model.zero_grad()
            model.flat.grad.fill(np.nan)  # in place, and so lost
            for _ in range(backwards):
                loss().backward()
            assert (bias.grad == 3 * backwards).all()


def test_an_assigned_gradient_is_added_to():
    model = made()
    model.zero_grad()
    bias = model.blocks["2"].bias
    bias.grad = np.array([10, 20], np.float32)
    model(X).sum().backward()
    np.testing.assert_array_equal(bias.grad, [13, 23])


REFUSED = {
    "another shape": (lambda m: setattr(m.blocks["0"].weight, "data", X), ValueError, r"\(4, 3\)"),
    "a shape that broadcasts": (
        lambda m: setattr(m.blocks["0"].weight, "data", X[:1, :3]), ValueError, "shape"),
    "another dtype": (
        lambda m: setattr(m.blocks["0"].weight, "data", np.ones((4, 3))), TypeError, "astype"),
    "a tensor": (
        lambda m: setattr(m.blocks["0"].weight, "data", Tensor(X[:, :3])), TypeError, r"\.data"),
    "no gradient": (lambda m: setattr(m.blocks["0"].weight, "grad", None), TypeError, "zero_grad"),
    "a gradient of another shape": (
        lambda m: setattr(m.blocks["0"].weight, "grad", X), ValueError, "shape"),
    "flat values of another shape": (
        lambda m: setattr(m.flat, "data", X[0]), ValueError, "flat.data is float32"),
    "flat gradients of another dtype": (
        lambda m: setattr(m.flat, "grad", m.flat.grad.astype("f8")), ValueError, "flat.grad"),
    "a new parameter": (
        lambda m: setattr(m.blocks["0"], "weight", Parameter((4, 3), constant(0))),
        AttributeError, "cannot be exchanged after init"),
    "no parameter": (
        lambda m: setattr(m.blocks["0"], "bias", None), AttributeError, "cannot be exchanged"),
    "a new layer as an attribute": (
        lambda m: setattr(m, "head", nn.Linear(2, 2)), AttributeError, "cannot be exchanged"),
    "new flat arrays": (lambda m: setattr(m, "flat", made().flat), AttributeError, "exchanged"),
    "another block": (
        lambda m: m.blocks.__setitem__("0", nn.Linear(4, 3)), TypeError, "cannot be exchanged"),
    "a block more": (
        lambda m: m.blocks.update({"3": nn.Linear(2, 2)}), TypeError, "load"),
    "a block less": (lambda m: m.blocks.pop("2"), TypeError, "cannot be"),
    "a block deleted": (lambda m: m.blocks.__delitem__("2"), TypeError, "cannot be"),
    "blocks joined": (
        lambda m: m.blocks.__ior__({"0": nn.Linear(4, 3)}), TypeError, "cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_what_would_disconnect_is_refused_and_changes_nothing(change):
    model = made()
    before, state = one(model), model.state()
    do, kind, match = change
    with pytest.raises(kind, match=match):
        do(model)
    assert one(model) == before
    assert all((value == state[name]).all() for name, value in model.state().items())


def test_blocks_in_a_list_cannot_be_exchanged_either():
    class Own(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(2, 2), nn.Linear(2, 2)]

    model = Own()
    model.layers[1] = nn.Linear(2, 2)  # declared only
    model.init(0)
    with pytest.raises(TypeError, match="item assignment"):
        model.layers[0] = nn.Linear(2, 2)


def test_before_init_everything_can_be_exchanged():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model.blocks["1"] = nn.Linear(3, 5)
    model.blocks["0"].bias = None
    assert model.init(0)(X).shape == (3, 5)
    with pytest.raises(UninitialisedError, match="init"):
        nn.Linear(2, 2).weight.data = np.ones((2, 2))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_as_strict_and_keeps_what_is_frozen(twin):
    model = twin(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).freeze("0.*").init(0))
    assert list(model.flat.slices) == ["1.weight", "1.bias"]
    assert model.blocks["0"].weight.grad is None
    with pytest.raises(TypeError, match="cannot be exchanged"):
        model.blocks["0"] = nn.Linear(4, 3)
    model.unfreeze("0.bias")
    assert list(model.flat.slices) == ["0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("when", ["before init", "after init"])
@pytest.mark.parametrize("how", ["freeze", "requires_grad"])
def test_frozen_parameters_have_no_gradient_and_never_change(when, how):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    if when == "after init":
        model.init(0)
    if how == "freeze":
        model.freeze("0.*", "2.bias")
    else:
        for parameter in (model.blocks["0"].weight, model.blocks["0"].bias, model.blocks["2"].bias):
            parameter.requires_grad = False
    if when == "before init":
        model.init(0)
    assert model.flat.size == 6 and list(model.flat.slices) == ["2.weight"]
    assert len(model.parameters()) == 4 and len(model.state()) == 4
    reference = made()  # the same values as without freezing
    assert all((model.state()[n] == v).all() for n, v in reference.state().items())
    start = model.state()
    model.zero_grad()
    model(X).sum().backward()
    reference.zero_grad()
    reference(X).sum().backward()
    np.testing.assert_array_equal(model.blocks["2"].weight.grad, reference.blocks["2"].weight.grad)
    assert model.blocks["0"].weight.grad is None and model.blocks["2"].bias.grad is None
    AdamW(0.1, weight_decay=0.5).step(model.flat.data, model.flat.grad)
    for name, value in model.state().items():
        assert (value == start[name]).all() == (name != "2.weight"), name
    model.load({n: v + 1 for n, v in start.items()})
    np.testing.assert_array_equal(model.blocks["0"].weight.data, start["0.weight"] + 1)


def test_freezing_keeps_the_gradients_of_the_others():
    model = made()
    model.zero_grad()
    model(X).sum().backward()
    before = model.blocks["2"].weight.grad.copy()
    model.freeze("0.*")
    np.testing.assert_array_equal(model.blocks["2"].weight.grad, before)
    assert before.any() and one(model)[1] == [True, True]


def test_no_gradient_of_a_frozen_weight_is_computed():
    from minidist.engine.array import work

    flops = {}
    for frozen in (False, True):
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        model = (model.freeze("1.weight") if frozen else model).init(0)
        model.zero_grad()
        before = work.flops
        model(X).sum().backward()
        flops[frozen] = work.flops - before
    assert flops[False] - flops[True] == 2 * 3 * 3 * 2


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"no parameter matches '7.\*': there are 0.weight"):
        made().freeze("7.*")
