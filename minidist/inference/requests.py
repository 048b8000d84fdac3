"""A request, what is checked about it, and its answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


class Refused(ValueError):
    """A request that can never be answered: the message says why, with the numbers."""


@dataclass(frozen=True)
class Request:
    """Continue ``prompt`` by up to ``count`` tokens.

    ``temperature``, ``top_k`` and ``seed`` as in ``minidist.models.sample``: what is drawn depends
    on the request alone, not on the others that are answered at the same time. ``stop``: a token
    that ends the answer, and is its last.
    """

    prompt: tuple[int, ...]
    count: int
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0
    stop: int | None = None

    def check(self, vocabulary: int, context: int, positions: int) -> None:
        """Raise Refused if no model of this vocabulary and context, or no cache of this many
        ``positions``, can answer."""
        if not self.prompt:
            raise Refused("the prompt is empty: give at least one token to begin with")
        if self.count < 1:
            raise Refused(f"{self.count} tokens are asked for: ask for at least one")
        low, high = min(self.prompt), max(self.prompt)
        if low < 0 or high >= vocabulary:
            raise Refused(f"tokens lie in [0, {vocabulary}), found {low} to {high}")
        if not self.temperature >= 0 or (self.top_k is not None and self.top_k < 1):
            raise Refused(f"temperature {self.temperature} or top_k {self.top_k} is too small")
        length = self.positions
        if len(self.prompt) > context:
            raise Refused(
                f"a prompt of {len(self.prompt)} tokens does not fit into a context of {context}"
            )
        if length > context:
            raise Refused(
                f"a prompt of {len(self.prompt)} tokens and {self.count} new ones need {length} "
                f"positions, and the context is {context}: ask for at most "
                f"{context + 1 - len(self.prompt)}"
            )
        if length > positions:
            raise Refused(f"{length} positions do not fit into a cache of {positions} in all")

    @property
    def positions(self) -> int:
        """How many positions the cache needs: the last new token is not read again."""
        return len(self.prompt) + self.count - 1


@dataclass
class Answer:
    """The tokens of a request so far, and how it ended.

    ``reason``: "" while it is not finished, then "count", "stop" or "cancelled".
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    reason: str = ""

    def array(self) -> np.ndarray:
        return np.array(self.tokens, np.int64)
