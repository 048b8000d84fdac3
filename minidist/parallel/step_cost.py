"""What a training step should cost: the answer of ``Method.cost``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepCost:
    """What one training step should cost, for each rank: lists, indexed by rank.

    ``messages`` and ``nbytes``: sent. ``peak_bytes``: held, by kind: parameters, gradients,
    optimizer, activations. ``busy``: seconds computing; ``seconds``: the whole step where computing
    and collectives just add up (``collectives/series.py``), else None: ``parallel.simulate`` finds
    the time of any step.
    """

    messages: list[int]
    nbytes: list[int]
    peak_bytes: dict[str, list[int]]
    busy: list[float]
    seconds: float | None

    @property
    def idle_fraction(self) -> float | None:
        """The share of all ranks' time in which they do not compute; None if unknown."""
        if self.seconds is None:
            return None
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0
