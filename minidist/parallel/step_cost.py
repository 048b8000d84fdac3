"""The predicted cost of a training step: the result of ``Method.cost``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepCost:
    """The predicted cost of one training step; lists are indexed by rank.

    ``messages`` and ``nbytes``: sent. ``peak_bytes``: held, by kind: parameters, gradients,
    optimizer, activations. ``busy``: seconds of compute. ``seconds``: of the whole step, if compute
    and collectives do not overlap (``collectives/series.py``); else None, and
    ``parallel.simulate`` gives the time.
    """

    messages: list[int]
    nbytes: list[int]
    peak_bytes: dict[str, list[int]]
    busy: list[float]
    seconds: float | None

    @property
    def idle_fraction(self) -> float | None:
        """The fraction of the ranks' time in which they do not compute; None if unknown."""
        if self.seconds is None:
            return None
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0
