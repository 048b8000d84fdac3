"""Who owns which samples."""

from __future__ import annotations

import numpy as np
import pytest

from minidist.data import Dataset
from minidist.data.clients import Clients, by_dirichlet, evenly

LABELS = np.random.default_rng(0).integers(0, 5, 1000)
DATA = Dataset("labels", np.zeros((1000, 2)), LABELS, 5)


def skew(clients):
    """Half the absolute difference between a client's classes and everybody's, averaged."""
    table = np.array(
        [np.bincount(LABELS[clients.samples(k)], minlength=5) for k in range(clients.count)]
    )
    assert table.sum() == len(DATA), "each sample has one owner"
    own = table / table.sum(1, keepdims=True)
    return np.abs(own - table.sum(0) / table.sum()).sum(1).mean() / 2


def test_the_smaller_alpha_the_more_skewed_and_uneven():
    found = [by_dirichlet(DATA, 6, alpha, seed=1) for alpha in (0.2, 2, 1e4)]
    skews = [skew(clients) for clients in found]
    assert skews[0] > 0.4 > skews[1] > 0.1 > 0.02 > skews[2]
    spreads = [np.ptp(clients.sizes()) for clients in found]
    assert spreads[0] > 100 > 10 > spreads[2]
    assert skew(evenly(DATA, 6)) < 0.1


def test_the_shares_of_a_class_have_the_variance_of_a_dirichlet():
    """Var p = (1/K)(1 - 1/K) / (Kα + 1), over 40 draws of 5 classes."""
    K, alpha = 4, 0.7
    shares = [
        np.bincount(by_dirichlet(DATA, K, alpha, seed).owner[label == LABELS], minlength=K)
        / (label == LABELS).sum()
        for seed in range(40)
        for label in range(5)
    ]
    expected = (1 / K) * (1 - 1 / K) / (K * alpha + 1)
    assert np.mean(shares) == pytest.approx(1 / K)
    assert np.var(shares) == pytest.approx(expected, rel=0.1)


def test_evenly_is_equal_amounts_at_random():
    clients = evenly(DATA, 7, seed=2)
    assert set(clients.sizes()) == {142, 143}
    assert not np.array_equal(clients.owner, np.sort(clients.owner))


@pytest.mark.parametrize(
    "make", [lambda s: by_dirichlet(DATA, 5, 1, s), lambda s: evenly(DATA, 5, s)]
)
def test_the_seed_decides(make):
    assert np.array_equal(make(3).owner, make(3).owner)
    assert not np.array_equal(make(3).owner, make(4).owner)


def test_places_in_a_batch():
    clients = Clients(np.array([1, 0, 3, 1, 0]), 4)
    places = clients.places(np.array([4, 3, 0, 2, 4]))
    assert [list(one) for one in places] == [[0, 4], [1, 2], [], [3]]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: by_dirichlet(DATA, 5, 0), "alpha must be positive and finite, not 0"),
        (lambda: by_dirichlet(DATA, 5, np.inf), "alpha must be positive and finite, not inf"),
        (lambda: by_dirichlet(DATA, 0, 1), "an integer ≥ 1, not 0"),
        (lambda: by_dirichlet(DATA, 2.5, 1), "an integer ≥ 1, not 2.5"),
        (lambda: by_dirichlet(DATA, 400, 0.1), r"of 400 own none of the 1000.*a larger alpha"),
        (lambda: evenly(DATA, 1001), r"1 of 1001 own none.* \(client \d+\).*use fewer clients"),
        (lambda: Clients(np.array([0, 3]), 3), "owners go from 0 to 3, and 3 clients"),
        (lambda: Clients(np.array([0.5]), 3), "one integer for each sample, not float64"),
        (
            lambda: by_dirichlet(Dataset("r", np.zeros((4, 1)), np.zeros((4, 1))), 2, 1),
            "class numbers, one for each sample.*use evenly",
        ),
    ],
)
def test_bad_input(make, error):
    with pytest.raises((ValueError, TypeError), match=error):
        make()
