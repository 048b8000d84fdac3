"""How long requests wait, by queueing theory: c places, random arrivals, random lengths (M/M/c).

    λ arrivals a second ──▸ queue ──▸ c places, each of which ends after 1/μ seconds on average

    a = λ / μ   (places that are busy on average)        ρ = a / c   (must be below 1)

    C = (aᶜ / c!) · 1/(1 - ρ)  /  ( Σ_{k<c} aᵏ/k!  +  (aᶜ / c!) · 1/(1 - ρ) )     Erlang C:
                                                       the share of requests that have to wait
    W = C / (c μ - λ)                                  the mean time in the queue

W grows without bound as ρ comes near 1: half of the waiting at 90 % load is gone at 80 %. With an
engine of c sequences at once, 1/μ is the time of a whole answer. It is longer when more sequences
are in the batch, which this formula does not know: measure 1/μ with a full batch.

Source: A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in
automatic telephone exchanges", 1917; any textbook on queues under M/M/c.
"""

from __future__ import annotations


def erlang_c(rate: float, service: float, places: int) -> float:
    """The share of requests that wait: λ a second, 1/μ = ``service`` seconds, c ``places``.

    1 if there are more requests than can be served.
    """
    if not (rate >= 0 and service > 0 and isinstance(places, int) and places >= 1):
        raise ValueError(
            f"queueing: need a rate of at least 0, a service time above 0 and at least one place, "
            f"not {rate}, {service} and {places}"
        )
    a = rate * service
    if a >= places:
        return 1.0
    # B: the share that would be lost without a queue (Erlang B), by its recursion: aᶜ / c! cannot
    # overflow in it. C = B / (1 - ρ (1 - B)).
    B = 1.0
    for k in range(1, places + 1):
        B = a * B / (k + a * B)
    return B / (1 - a / places * (1 - B))


def mean_wait(rate: float, service: float, places: int) -> float:
    """W, the mean seconds in the queue; infinite if there are more requests than can be served."""
    spare = places / service - rate  # c μ - λ
    return erlang_c(rate, service, places) / spare if spare > 0 else float("inf")
