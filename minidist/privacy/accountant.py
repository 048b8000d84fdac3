"""The Rényi accountant: what all steps of DP-SGD together give away about any one sample.

A step releases the sum of the clipped gradients of a batch, plus noise. With and without one
sample in the data, these sums have two distributions; the closer they are, the less the release
tells about that sample. Rényi's divergence of order α measures how close, and of steps it simply
adds up (Mironov, "Rényi differential privacy", arXiv 1702.07476):

    ε_α(T steps) = T · ε_α(one step)

For one step with noise σ (in units of the clip) and a sampling rate q, Mironov, Talwar and Zhang
(arXiv 1908.10530, section 3.3) have it exactly: ε_α = log A_α / (α - 1), with

    A_α = E_{z ~ N(0, σ²)} [(1 - q + q · exp((2z - 1)/(2σ²)))^α]

For whole α the power is multiplied out, a sum of α + 1 terms; else the mean is integrated.

An order is no (ε, δ), the promise that people know: "no output is more than e^ε times likelier with
a sample than without, but for a chance of δ". Every order gives one, and the best counts. Two ways
to convert, ``CONVERSIONS``; the second is never worse:

    "mironov"   ε = ε_α + log(1/δ)/(α - 1)                              arXiv 1702.07476, prop. 3
    "canonne"   ε = ε_α + log((α - 1)/α) - (log δ + log α)/(α - 1)      arXiv 2004.00010, prop. 12

(Balle et al., arXiv 1905.09982, theorem 21, have the second, too.) What adjacent data sets are
here: one has a sample that the other lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from minidist.privacy.sampling import check_rate

# Whole and fractional orders: small ones matter for much privacy loss, large ones for little.
ORDERS = (*(1 + k / 10 for k in range(1, 100)), *range(11, 65), 80, 96, 128, 192, 256, 512)


def rdp_of_step(rate: float, noise: float, order: float) -> float:
    """ε_α of one step: ``rate`` q, ``noise`` σ, ``order`` α > 1.

    >>> round(rdp_of_step(rate=1.0, noise=2.0, order=3), 12)  # without sampling: α/(2σ²)
    0.375
    """
    check_rate("rdp_of_step", rate)
    check_noise("rdp_of_step", noise)
    if not order > 1:
        raise ValueError(f"rdp_of_step: a Rényi order is above 1, not {order}")
    if noise == 0:
        return math.inf
    if rate == 1:
        return order / (2 * noise**2)
    log_a = _whole if float(order).is_integer() else _fractional
    return log_a(rate, noise, order) / (order - 1)


def _whole(q: float, sigma: float, order: float) -> float:
    """log A_α of a whole α = Σ_k (α over k) (1 - q)^(α - k) q^k exp((k² - k)/(2σ²))."""
    alpha = int(order)
    terms = [
        log_binomial(alpha, k)
        + (alpha - k) * math.log1p(-q)
        + k * math.log(q)
        + (k * k - k) / (2 * sigma**2)
        for k in range(alpha + 1)
    ]
    return log_sum(terms)


def _fractional(q: float, sigma: float, alpha: float) -> float:
    """log A_α of any α, by the trapezoid rule over z.

    Of an A_α near 1 the sum is that of A_α - 1, which keeps its digits. The rule converges
    exponentially here: the integrand decays on both sides, and its nearest singularity is πσ² off
    the real axis.
    """
    step = min(sigma, sigma**2) / 8
    z = np.arange(-12 * sigma, alpha + 12 * sigma, step)
    log_density = -(z**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    w = (2 * z - 1) / (2 * sigma**2)
    log_power = alpha * np.logaddexp(math.log1p(-q), math.log(q) + w)
    largest = float((log_density + log_power).max())
    if largest > 100:
        return largest + math.log(np.exp(log_density + log_power - largest).sum() * step)
    density = np.exp(log_density)
    near = log_power < 1  # of the others the power itself may be too large for a float
    more = np.where(
        near,
        density * np.expm1(np.where(near, log_power, 0)),
        np.exp(log_density + log_power) - density,
    )
    return math.log1p(more.sum() * step)


def log_binomial(n: float, k: float) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def log_sum(terms: Sequence[float]) -> float:
    """log Σ exp(term)."""
    largest = max(terms)
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))


def mironov(rdp: float, order: float, delta: float) -> float:
    """ε from one order, by proposition 3 of arXiv 1702.07476."""
    return rdp + math.log(1 / delta) / (order - 1)


def canonne(rdp: float, order: float, delta: float) -> float:
    """ε from one order, by proposition 12 of arXiv 2004.00010."""
    return rdp + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


CONVERSIONS: dict[str, Callable[[float, float, float], float]] = {
    "mironov": mironov,
    "canonne": canonne,
}


class Accountant:
    """Adds up what steps of DP-SGD give away.

    >>> accountant = Accountant()
    >>> accountant.spend(rate=0.01, noise=4.0, steps=10_000)
    >>> round(accountant.epsilon(1e-5, "mironov"), 2)  # Abadi et al. 2016: 1.26
    1.26
    """

    def __init__(self, orders: Sequence[float] = ORDERS) -> None:
        self.orders = tuple(orders)
        self.rdp = np.zeros(len(self.orders))

    def spend(self, rate: float, noise: float, steps: int = 1) -> None:
        """So many steps were made, with sampling rate ``rate`` and noise ``noise``."""
        if steps < 0:
            raise ValueError(f"Accountant.spend: {steps} steps")
        if steps:
            self.rdp += steps * np.array([rdp_of_step(rate, noise, one) for one in self.orders])

    def epsilon(self, delta: float, conversion: str = "canonne") -> float:
        """ε at ``delta``, by the best order; at least 0."""
        return self.best(delta, conversion)[0]

    def best(self, delta: float, conversion: str = "canonne") -> tuple[float, float]:
        """(ε, the order that gives it)."""
        check_delta("Accountant.epsilon", delta)
        if conversion not in CONVERSIONS:
            raise ValueError(f"conversion {conversion!r}: choose one of {', '.join(CONVERSIONS)}")
        if not self.rdp.any():
            return 0.0, self.orders[0]
        convert = CONVERSIONS[conversion]
        found = [
            (convert(float(rdp), order, delta), order)
            for rdp, order in zip(self.rdp, self.orders, strict=True)
        ]
        epsilon, order = min(found)
        return max(0.0, epsilon), order


def epsilon_of(
    rate: float, noise: float, steps: int, delta: float, conversion: str = "canonne"
) -> float:
    """ε of ``steps`` equal steps."""
    accountant = Accountant()
    accountant.spend(rate, noise, steps)
    return accountant.epsilon(delta, conversion)


def noise_for(
    epsilon: float, delta: float, rate: float, steps: int, conversion: str = "canonne"
) -> float:
    """The least noise with which ``steps`` steps stay within ``epsilon``: by bisection, to 0.1 %.

    >>> noise = noise_for(epsilon=3.0, delta=1e-5, rate=0.01, steps=1000)
    >>> 2.99 < epsilon_of(0.01, noise, 1000, 1e-5) <= 3.0
    True

    Raises ValueError for an ε of 0: no noise is enough.
    """
    check_epsilon("noise_for", epsilon)
    low, high = 0.0, 1.0
    while epsilon_of(rate, high, steps, delta, conversion) > epsilon:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(
                f"noise_for: ε = {epsilon} at δ = {delta} takes more than a million times the "
                "clip in noise: allow a larger ε, fewer steps or a lower sampling rate"
            )
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if epsilon_of(rate, middle, steps, delta, conversion) > epsilon:
            low = middle
        else:
            high = middle
    return high


def check_epsilon(who: str, epsilon: float) -> None:
    if not (isinstance(epsilon, (int, float, np.number)) and epsilon > 0):
        raise ValueError(
            f"{who}: ε = {epsilon!r} is not possible: it is above 0, since at 0 the result must "
            "not depend on the data at all"
        )


def check_delta(who: str, delta: float) -> None:
    if not (isinstance(delta, (int, float, np.number)) and 0 < delta < 1):
        raise ValueError(
            f"{who}: δ = {delta!r} is a probability between 0 and 1, and well below 1 over the "
            "number of samples"
        )


def check_noise(who: str, noise: float) -> None:
    if not (isinstance(noise, (int, float, np.number)) and 0 <= noise < math.inf):
        raise ValueError(
            f"{who}: the noise is {noise!r}: it is a standard deviation, in units of the clip: 0 "
            "(no privacy) or more"
        )
