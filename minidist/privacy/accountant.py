"""The Rényi accountant: how much all steps of DP-SGD together reveal about any one sample.

A step releases the sum of the clipped gradients of a batch, plus noise. With and without one sample
in the data, this sum has two distributions; the closer they are, the less it reveals about the
sample. The Rényi divergence of order α measures their distance. Over steps it adds up (Mironov,
"Rényi differential privacy", arXiv 1702.07476):

    ε_α(T steps) = T · ε_α(one step)

For one step with noise σ (in units of the clip) and sampling rate q, Mironov, Talwar and Zhang
(arXiv 1908.10530, section 3.3) give the exact value ε_α = log A_α / (α - 1), with

    A_α = E_{z ~ N(0, σ²)} [(1 - q + q · exp((2z - 1)/(2σ²)))^α]

For integer α the power is expanded into a sum of α + 1 terms; for other α the mean is integrated.

Usually privacy is stated as (ε, δ): "no output is more than e^ε times likelier with a sample than
without it, except with probability δ". Every order gives an ε, and the smallest is used. There are
two conversions, ``CONVERSIONS``; the second is never worse:

    "mironov"   ε = ε_α + log(1/δ)/(α - 1)                              arXiv 1702.07476, prop. 3
    "canonne"   ε = ε_α + log((α - 1)/α) - (log δ + log α)/(α - 1)      arXiv 2004.00010, prop. 12

(Balle et al., arXiv 1905.09982, theorem 21, also have the second.) Here two data sets are adjacent
if one has exactly one sample more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from minidist.privacy.sampling import check_rate

# Small orders give the best ε if the privacy loss is large, large orders if it is small.
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
    """log A_α for integer α: A_α = Σ_k (α over k) (1 - q)^(α - k) q^k exp((k² - k)/(2σ²))."""
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
    """log A_α for any α, by the trapezoid rule over z.

    If A_α is near 1, A_α - 1 is summed instead, to keep its digits. The rule converges
    exponentially here, because the integrand decays on both sides, and its nearest singularity is
    at a distance of πσ² from the real axis.
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
    near = log_power < 1  # for larger ones the power itself may overflow
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
    """Adds up the privacy loss of steps of DP-SGD.

    >>> accountant = Accountant()
    >>> accountant.spend(rate=0.01, noise=4.0, steps=10_000)
    >>> round(accountant.epsilon(1e-5, "mironov"), 2)  # Abadi et al. 2016: 1.26
    1.26
    """

    def __init__(self, orders: Sequence[float] = ORDERS) -> None:
        self.orders = tuple(orders)
        self.rdp = np.zeros(len(self.orders))

    def spend(self, rate: float, noise: float, steps: int = 1) -> None:
        """Add ``steps`` steps with sampling rate ``rate`` and noise ``noise``."""
        if steps < 0:
            raise ValueError(f"Accountant.spend: {steps} steps")
        if steps:
            self.rdp += steps * np.array([rdp_of_step(rate, noise, one) for one in self.orders])

    def epsilon(self, delta: float, conversion: str = "canonne") -> float:
        """ε at ``delta``, from the best order; at least 0."""
        return self.best(delta, conversion)[0]

    def best(self, delta: float, conversion: str = "canonne") -> tuple[float, float]:
        """(ε, the order that gives it). Raises ValueError for a δ outside (0, 1), and for an
        unknown conversion."""
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
    """The least noise with which ``steps`` steps have at most ``epsilon``, by bisection to 0.1 %.

    >>> noise = noise_for(epsilon=3.0, delta=1e-5, rate=0.01, steps=1000)
    >>> 2.99 < epsilon_of(0.01, noise, 1000, 1e-5) <= 3.0
    True

    Raises ValueError for an ε of 0 or below, or one that needs too much noise.
    """
    check_epsilon("noise_for", epsilon)
    low, high = 0.0, 1.0
    while epsilon_of(rate, high, steps, delta, conversion) > epsilon:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(
                f"noise_for: ε = {epsilon} at δ = {delta} needs noise of more than a million times "
                "the clip: allow a larger ε, fewer steps or a lower sampling rate"
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
            f"{who}: ε = {epsilon!r} is not possible: it must be above 0; at 0 the result must not "
            "depend on the data at all"
        )


def check_delta(who: str, delta: float) -> None:
    if not (isinstance(delta, (int, float, np.number)) and 0 < delta < 1):
        raise ValueError(
            f"{who}: δ = {delta!r}: it must be a probability between 0 and 1, and well below 1 / "
            "the number of samples"
        )


def check_noise(who: str, noise: float) -> None:
    if not (isinstance(noise, (int, float, np.number)) and 0 <= noise < math.inf):
        raise ValueError(
            f"{who}: the noise is {noise!r}: it must be a finite standard deviation, in units of "
            "the clip: 0 (no privacy) or more"
        )
