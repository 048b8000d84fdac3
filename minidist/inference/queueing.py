"""How long requests wait, by queueing theory: c places, random arrivals, random lengths (M/M/c).

    λ arrivals a second ──▸ queue ──▸ c places, each of which ends after 1/μ seconds on average

    a = λ / μ   (places that are busy on average)        ρ = a / c   (must be below 1)

    C = (aᶜ / c!) · 1/(1 - ρ)  /  ( Σ_{k<c} aᵏ/k!  +  (aᶜ / c!) · 1/(1 - ρ) )     Erlang C:
                                                       the share of requests that have to wait
    W = C / (c μ - λ)                                  the mean time in the queue

W grows without bound as ρ approaches 1: at 80 % load it is about half of that at 90 %. For an
engine with c sequences at once, 1/μ is the time of a whole answer. This time grows with the batch,
which the formula ignores: measure 1/μ with a full batch.

Source: A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in
automatic telephone exchanges", 1917; any textbook on queues under M/M/c.
"""

from __future__ import annotations


def erlang_c(rate: float, service: float, places: int) -> float:
    """C, the share of requests that wait; 1 if more requests arrive than can be served.

    ``rate`` is λ, a second; ``service`` is 1/μ, seconds; ``places`` is c. Raises ValueError for
    numbers out of range.
    """
    if not (rate >= 0 and service > 0 and isinstance(places, int) and places >= 1):
        raise ValueError(
            f"queueing: need a rate of at least 0, a service time above 0 and at least one place, "
            f"not {rate}, {service} and {places}"
        )
    a = rate * service
    if a >= places:
        return 1.0
    # B: the share that would be rejected without a queue (Erlang B). Its recursion avoids aᶜ / c!,
    # which can overflow. C = B / (1 - ρ (1 - B)).
    B = 1.0
    for k in range(1, places + 1):
        B = a * B / (k + a * B)
    return B / (1 - a / places * (1 - B))


def mean_wait(rate: float, service: float, places: int) -> float:
    """W, the mean seconds in the queue; infinite if more requests arrive than can be served."""
    spare = places / service - rate  # c μ - λ
    return erlang_c(rate, service, places) / spare if spare > 0 else float("inf")
