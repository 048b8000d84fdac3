"""Each initialiser draws from the distribution that its paper asks for."""

from __future__ import annotations

import numpy as np
import pytest

from minidist.nn import init

DRAWS = 200_000


def drawn(initialiser):
    return initialiser(np.random.default_rng(0), (DRAWS,))


@pytest.mark.parametrize(
    ("initialiser", "bound"),
    [
        (init.uniform_fan_in(25), 1 / 5),
        (init.uniform_fan_in(0), 1.0),
        (init.xavier_uniform(20, 34), 1 / 3),  # √(6/54)
    ],
)
def test_uniform_initialisers_reach_their_bound_and_not_beyond(initialiser, bound):
    values = drawn(initialiser)
    assert np.abs(values).max() <= bound
    assert values.max() > 0.999 * bound and values.min() < -0.999 * bound
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("initialiser", "std"), [(init.normal(0.02), 0.02), (init.he_normal(50), 0.2)]
)
def test_normal_initialisers_have_their_standard_deviation(initialiser, std):
    values = drawn(initialiser)
    assert values.std() == pytest.approx(std, rel=0.01)
    assert abs(values.mean()) < 0.01 * std


def test_constant():
    assert (drawn(init.constant(3.0)) == 3.0).all()
