"""What a collective costs: the formula that stands beside each algorithm returns this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """One rank's part of a collective, and the time of the whole.

    ``messages`` and ``nbytes`` are what this rank sends, ``reduced`` the bytes that it combines
    (each costs γ), ``seconds`` the time from the start until the last rank is done.
    """

    messages: int
    nbytes: int
    seconds: float
    reduced: int = 0

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(
            self.messages + other.messages,
            self.nbytes + other.nbytes,
            self.seconds + other.seconds,
            self.reduced + other.reduced,
        )
