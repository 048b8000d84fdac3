"""An optimizer's state is saved by the names of parameters, and loaded, or refused as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import optim
from minidist.models import mlp
from tests.optim.test_groups import RULES


@pytest.mark.parametrize("name", [*RULES, "mixed"])
def test_a_saved_optimizer_goes_on_where_it_was(name):
    def start():
        model = mlp((5, 4, 3)).init(0)
        rule = RULES["Adam" if name == "mixed" else name](0.05, weight_decay=0.1)
        optimizer = optim.MixedPrecision(rule, scale=2.0, patience=2) if name == "mixed" else rule
        optimizer.bind(model.flat.slices)
        return model, optimizer

    def steps(model, optimizer, which):
        for step in which:
            grad = np.random.default_rng(step).standard_normal(model.flat.size)
            optimizer.step(model.flat.data, grad.astype(np.float32))
        return model.flat.data.copy()

    expected = steps(*start(), range(5))
    model, optimizer = start()
    steps(model, optimizer, range(3))
    saved = model.state(), optimizer.state(model)
    assert saved[1]["steps"] == 3
    for key, values in saved[1].items():
        if key.startswith("optimizer/"):
            assert values.shape == model.named_parameters()[key.split("/", 2)[2]].declared
    steps(model, optimizer, [3])  # what was saved is a copy
    model, optimizer = start()
    optimizer.load(saved[1], model.load(saved[0]))
    assert np.array_equal(steps(model, optimizer, (3, 4)), expected)


def test_another_state_is_refused_and_changes_nothing():
    model = mlp((5, 4, 3)).init(0)
    adam, sgd = optim.Adam(), optim.SGD(0.1, momentum=0.9)
    for rule in (adam, sgd):
        rule.step(model.flat.data, np.ones_like(model.flat.data))
    before = adam.state(model)
    for wrong, kind, error in [
        (sgd.state(model), KeyError, "optimizer/mean/1.weight"),
        ({"optimizer/mean/1.weight": np.zeros(1)}, KeyError, "steps"),
        (before | {"optimizer/mean/1.weight": np.zeros((4, 5))}, ValueError, r"\(4, 5\)"),
    ]:
        with pytest.raises(kind, match=error):
            adam.load(wrong, model)
    assert all(np.array_equal(values, before[n]) for n, values in adam.state(model).items())
    with pytest.raises(ValueError, match="steps 39 elements, and the model has 23"):
        adam.state(mlp((4, 3, 2)).init(0))
