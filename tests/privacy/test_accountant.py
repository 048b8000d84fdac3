"""The accountant against the paper's limits, another integration, another package, and papers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from minidist.privacy import Accountant, PoissonBatches, epsilon_of, noise_for, rdp_of_step
from minidist.privacy.accountant import _fractional, _whole

SETTINGS = [(0.01, 4.0), (256 / 60_000, 1.12), (0.1, 0.7), (0.5, 2.0), (1e-4, 1.0), (0.02, 10.0)]
MNIST = 256 / 60_000


def test_without_sampling_it_is_the_gaussian_mechanism():
    for noise in (0.5, 1.0, 7.0):
        for order in (1.5, 2, 31):
            assert rdp_of_step(1.0, noise, order) == pytest.approx(order / (2 * noise**2))


@pytest.mark.parametrize(("rate", "noise"), SETTINGS)
def test_the_sum_of_whole_orders_and_the_integral_agree(rate, noise):
    for order in (2, 3, 7, 10):
        assert _fractional(rate, noise, order) == pytest.approx(
            _whole(rate, noise, order), rel=1e-7
        )


@pytest.mark.parametrize(("rate", "noise"), SETTINGS)
def test_the_divergence_grows_with_the_order_the_rate_and_less_noise(rate, noise):
    orders = [1.05, 1.5, 2, 2.5, 3, 3.5, 5, 10.9, 11, 64]
    found = [rdp_of_step(rate, noise, order) for order in orders]
    assert all(a < b for a, b in pairwise(found)), found
    assert rdp_of_step(rate / 2, noise, 2.5) < found[3] < rdp_of_step(rate, noise * 0.9, 2.5)
    assert found[3] < rdp_of_step(1, noise, 2.5)


def test_it_is_that_of_two_densities_integrated_by_hand():
    """Of N(0, σ²) and (1 - q) N(0, σ²) + q N(1, σ²), in plain sums over a fine grid."""
    q, sigma = 0.1, 1.5
    x = np.linspace(-25, 26, 400_001)
    without = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    moved = np.exp(-((x - 1) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    ratio = 1 - q + q * moved / without
    for order in (1.3, 2, 4.7):
        moment = (without * ratio**order).sum() * (51 / 400_000)
        assert rdp_of_step(q, sigma, order) == pytest.approx(
            math.log(moment) / (order - 1), rel=1e-9
        )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3, 30.0])
def test_very_little_and_very_much_noise_give_numbers(noise):
    for rate in (1e-6, 0.3, 0.999):
        found = [rdp_of_step(rate, noise, order) for order in (1.1, 3, 3.3, 300)]
        assert all(0 < a < b < math.inf for a, b in pairwise(found)), (rate, found)


def test_steps_add_up():
    accountant = Accountant()
    for _ in range(5):
        accountant.spend(0.02, 1.1)
    accountant.spend(0.05, 2.0, steps=7)
    again = Accountant()
    again.spend(0.05, 2.0, steps=7)
    again.spend(0.02, 1.1, steps=5)
    assert accountant.epsilon(1e-5) == pytest.approx(again.epsilon(1e-5), rel=1e-12)
    assert Accountant().epsilon(1e-5) == 0
    assert epsilon_of(0.1, 0, 1, 1e-5) == math.inf


# What papers say, by their conversion


def test_the_figure_of_abadi_et_al():
    """Section 3.2 and figure 2 of arXiv 1607.00133: q = 0.01, σ = 4, 100 epochs, δ = 1e-5."""
    orders_they_took = range(2, 34)
    accountant = Accountant(orders_they_took)
    accountant.spend(0.01, 4.0, steps=100 * 100)
    assert accountant.epsilon(1e-5, "mironov") == pytest.approx(1.26, abs=0.005)
    assert accountant.epsilon(1e-5, "canonne") == pytest.approx(1.04, abs=0.005)


@pytest.mark.parametrize(
    ("noise", "epochs", "published"), [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)]
)
def test_the_table_of_the_tutorial_of_tensorflow_privacy(noise, epochs, published):
    """tutorials/README.md: batches of 256 of 60,000, δ = 1e-5. It cuts an epoch to 234 steps."""
    steps = epochs * (60_000 // 256)
    assert epsilon_of(MNIST, noise, steps, 1e-5, "mironov") == pytest.approx(published, rel=2e-3)
    assert epsilon_of(MNIST, noise, steps, 1e-5) < 0.95 * published


# Another package


@pytest.mark.parametrize(("rate", "noise"), SETTINGS)
def test_orders_of_dp_accounting(rate, noise):
    """Whole orders to 1e-6. Of fractional ones it computes an upper bound, which ours keeps below:
    it adds up the sizes of terms whose signs alternate."""
    dp_accounting = pytest.importorskip("dp_accounting")
    orders = [1.5, 2, 2.5, 3, 5, 5.7, 10, 10.9, 16, 32, 64, 256]
    theirs = dp_accounting.rdp.RdpAccountant(orders)
    event = dp_accounting.GaussianDpEvent(noise)
    theirs.compose(dp_accounting.PoissonSampledDpEvent(rate, event))
    for order, expected in zip(orders, theirs._rdp, strict=True):
        got = rdp_of_step(rate, noise, order)
        if float(order).is_integer():
            assert got == pytest.approx(expected, rel=1e-6)
        else:
            assert got <= expected * (1 + 1e-6)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [(0.01, 4.0, 10_000, 1e-5), (MNIST, 1.12, 14_062, 1e-5), (MNIST, 0.6, 7031, 1e-5),
     (0.02, 1.0, 500, 1e-5), (0.1, 2.0, 1000, 1e-6)],
)  # fmt: skip
def test_epsilon_of_dp_accounting(rate, noise, steps, delta):
    """By the same conversion, to 1 %."""
    dp_accounting = pytest.importorskip("dp_accounting")
    theirs = dp_accounting.rdp.RdpAccountant()
    event = dp_accounting.GaussianDpEvent(noise)
    theirs.compose(dp_accounting.PoissonSampledDpEvent(rate, event), steps)
    got = epsilon_of(rate, noise, steps, delta)
    assert got == pytest.approx(theirs.get_epsilon(delta), rel=1e-2)


def test_the_noise_for_a_promise_keeps_it_and_hardly_less_would():
    for epsilon, steps in ((0.3, 100), (8.0, 2000)):
        noise = noise_for(epsilon, 1e-5, 0.02, steps)
        assert epsilon_of(0.02, noise, steps, 1e-5) <= epsilon
        assert epsilon_of(0.02, noise * 0.998, steps, 1e-5) > epsilon


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise_for(0, 1e-5, 0.1, 10), "ε = 0 is not possible"),
        (lambda: noise_for(-1, 1e-5, 0.1, 10), "ε = -1 is not possible"),
        (lambda: epsilon_of(1.1, 1.0, 10, 1e-5), "at most 1, not 1.1"),
        (lambda: epsilon_of(0.0, 1.0, 10, 1e-5), "above 0 .* not 0.0"),
        (lambda: epsilon_of(0.1, -1.0, 10, 1e-5), "the noise is -1.0"),
        (lambda: epsilon_of(0.1, 1.0, 10, 0.0), "δ = 0.0"),
        (lambda: epsilon_of(0.1, 1.0, 10, 1e-5, "moments"), "choose one of mironov, canonne"),
        (lambda: epsilon_of(0.1, 1.0, -1, 1e-5), "-1 steps"),
        (lambda: rdp_of_step(0.1, 1.0, 1), "order is above 1, not 1"),
        (lambda: PoissonBatches((np.zeros((3, 1)), np.zeros(3, int)), 0), "not 0: for batches of"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The sampling that all of this assumes


def test_every_sample_is_drawn_with_the_rate_and_no_two_together():
    data = np.arange(400)[:, None], np.zeros(400, int)
    batches = PoissonBatches(data, 0.1, seed=5)
    drawn = np.zeros((500, 400), bool)
    for step in range(500):
        drawn[step, batches[step].indices] = True
    sizes = drawn.sum(axis=1)
    assert abs(sizes.mean() - 40) < 1 and abs(sizes.std() - math.sqrt(400 * 0.1 * 0.9)) < 0.6
    each = drawn.mean(axis=0)  # binomial: a standard deviation of 0.0134
    assert abs(each - 0.1).max() < 0.06 and abs(each.std() - 0.0134) < 0.002
    correlation = np.corrcoef(drawn.T)[np.triu_indices(400, 1)]
    assert abs(correlation.mean()) < 0.002 and abs(correlation.std() - 1 / math.sqrt(500)) < 0.002


def test_a_batch_is_the_same_whenever_it_is_asked_for():
    data = np.zeros((50, 1)), np.zeros(50, int)
    first, again = PoissonBatches(data, 0.2, 1), PoissonBatches(data, 0.2, 1)
    later = [again[step].indices for step in (7, 3)]
    assert np.array_equal(first[3].indices, later[1])
    assert not np.array_equal(first[3].indices, PoissonBatches(data, 0.2, 2)[3].indices)
    with pytest.raises(IndexError, match="count from 0"):
        first[-1]
    with pytest.raises(TypeError, match="is endless"):
        iter(first)
