"""A model's parameters and its flat array stay together, whatever is done to the model."""

import copy
import pickle

import numpy as np
import pytest

from minidist import models, nn
from minidist.optim import SGD

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


def build():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm(4), nn.ReLU(), nn.Linear(4, 2))


def train(model, steps=3):
    """A few steps; the losses."""
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((8, 3)).astype(np.float32), draw.integers(0, 2, 8)
    optimizer, loss, losses = SGD(0.5), nn.CrossEntropy(), []
    for _ in range(steps):
        model.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step(model.flat.data, model.flat.grad)
        losses.append(value.item())
    return losses


def assert_equal_states(one, two):
    assert list(one) == list(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_learns_and_leaves_the_first_alone(way):
    model = build().init(0)
    train(model, 1)
    before = model.state()
    other = WAYS[way](model)
    assert_equal_states(other.state(), before)
    losses = train(other)
    assert losses[-1] < losses[0]
    assert_equal_states(model.state(), before)
    assert train(model) == losses, "the same from there"
    assert np.shares_memory(other.flat.data, other.blocks["0"].weight.data)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_shares_what_the_model_shares(way):
    model = WAYS[way](models.gpt(11, 8, 8, 1, 2).init(0))
    embed, *_, head = model.blocks.values()
    assert embed.weight is head.weight
    assert "embedding.weight" in model.state(), "under the name that it is shared by"
    assert model.flat.size == models.gpt(11, 8, 8, 1, 2).init(0).flat.size


@pytest.mark.parametrize("way", WAYS)
def test_a_declared_model_is_copied_as_declared(way):
    other = WAYS[way](build())
    assert not other.initialised
    assert_equal_states(other.init(5).state(), build().init(5).state())


def test_a_block_copied_alone_has_memory_of_its_own():
    model = build().init(0)
    block = copy.deepcopy(model.blocks["0"])
    assert block.flat.size == 16
    block.flat.data[...] = 0
    assert model.blocks["0"].weight.data.any()


def test_a_copy_has_no_hooks():
    model = build().init(0)
    called = []
    model.blocks["0"].weight.on_ready.append(called.append)
    train(copy.deepcopy(model), 1)
    assert called == []
    train(model, 1)
    assert called == [model.blocks["0"].weight]


def test_init_does_not_overwrite_a_block_that_has_values():
    block = nn.Linear(3, 4).init(7)
    values = block.state()
    with pytest.raises(ValueError, match=r"block '0' .* initialised before.*partial=True"):
        nn.Sequential(block, nn.Linear(4, 2)).init(0)
    assert_equal_states(block.state(), values)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).init(0)
    model.load({f"0.{name}": value for name, value in values.items()}, partial=True)
    np.testing.assert_array_equal(model.state()["0.weight"], values["weight"])


def test_the_whole_may_be_initialised_again():
    model = build().init(0)
    assert_equal_states(model.init(1).state(), build().init(1).state())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: state | {"3.bias": np.zeros(3)}, "3.bias is .2,. in the model and .3,."),
        (lambda state: state | {"3.bias": np.array(["a", "b"])}, "3.bias is <U1 in the state"),
        (lambda state: state | {"4.bias": np.zeros(2)}, "differ in .'4.bias'."),
        (lambda state: {k: v for k, v in state.items() if k != "3.bias"}, "differ in .'3.bias'."),
    ],
)
def test_a_load_that_is_refused_has_changed_nothing(change, error):
    model = build().init(0)
    before = model.state()
    state = change({name: value + 1 for name, value in before.items()})
    with pytest.raises((KeyError, ValueError, TypeError), match=error):
        model.load(state)
    assert_equal_states(model.state(), before)


def test_a_partial_load_wants_names_that_it_knows():
    model = build().init(0)
    model.load({"3.bias": np.ones(2)}, partial=True)
    np.testing.assert_array_equal(model.state()["3.bias"], 1)
    with pytest.raises(KeyError, match=r"9\.bias"):
        model.load({"9.bias": np.ones(2)}, partial=True)
