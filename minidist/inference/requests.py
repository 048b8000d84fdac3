"""A request, its checks, and its answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidist.models.gpt import check_draws


class Refused(ValueError):
    """A request that cannot be answered; the message gives the reason."""


@dataclass(frozen=True)
class Request:
    """Continue ``prompt`` by up to ``count`` tokens.

    ``temperature``, ``top_k`` and ``seed``: as in ``minidist.models.sample``. The draws do not
    depend on other requests that are answered at the same time. ``stop``: a token that ends the
    answer; it is the answer's last token.
    """

    prompt: tuple[int, ...]
    count: int
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if hasattr(self.prompt, "tolist"):  # an array
            object.__setattr__(self, "prompt", tuple(np.atleast_1d(self.prompt).tolist()))
        elif isinstance(self.prompt, list):  # which could change while the request waits
            object.__setattr__(self, "prompt", tuple(self.prompt))

    def check(self, vocabulary: int, context: int, positions: int) -> None:
        """Raise Refused if a model with this ``vocabulary`` and ``context``, and a cache of
        ``positions`` positions, cannot answer the request."""
        if not isinstance(self.prompt, tuple) or not self.prompt:
            raise Refused(
                "the prompt is empty: give at least one token to begin with"
                if isinstance(self.prompt, tuple)
                else f"the prompt is a tuple of tokens, not {self.prompt!r}"
            )
        for token in self.prompt:
            whole("a token", token)
        whole("the number of tokens", self.count)
        whole("the seed", self.seed)
        if self.count < 1:
            raise Refused(f"{self.count} tokens are asked for: ask for at least one")
        low, high = min(self.prompt), max(self.prompt)
        if low < 0 or high >= vocabulary:
            raise Refused(f"tokens lie in [0, {vocabulary}), found {low} to {high}")
        if self.stop is not None and not 0 <= whole("stop", self.stop) < vocabulary:
            raise Refused(f"stop={self.stop} is no token: they lie in [0, {vocabulary})")
        try:
            check_draws(self.temperature, self.top_k)
        except ValueError as error:
            raise Refused(str(error)) from None
        if self.top_k is not None:
            whole("top_k", self.top_k)
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
        """How many positions of the cache it needs; the last new token needs none."""
        return len(self.prompt) + self.count - 1


def whole(what: str, value: Any) -> int:
    """``value``, an integer. Raises Refused if it is none, or needs more than 64 bits."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise Refused(f"{what} is a whole number, not {value!r}")
    if not -(1 << 63) <= value < 1 << 63:
        raise Refused(f"{what} has at most 64 bits, and {value} has more")
    return int(value)


@dataclass
class Answer:
    """The tokens of a request so far.

    ``reason``: why it ended, "count", "stop" or "cancelled"; "" while it has not.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    reason: str = ""

    def array(self) -> np.ndarray:
        return np.array(self.tokens, np.int64)
