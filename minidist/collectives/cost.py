"""What a collective costs: the formula that stands beside each algorithm returns this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Messages and bytes that one rank sends, and seconds until the last rank is done."""

    messages: int
    nbytes: int
    seconds: float

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(
            self.messages + other.messages,
            self.nbytes + other.nbytes,
            self.seconds + other.seconds,
        )
