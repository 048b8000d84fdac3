"""Poisson sampling: each sample is in a batch with probability q, independently of the others.

    batches = PoissonBatches(dataset, rate=0.01, seed=0)
    batches[step]        about q·N samples, sometimes none; the same on every rank

The accountant's formula holds only for this sampling. It does not hold for shuffled batches of a
fixed size (``Batches``), where an epoch has every sample exactly once. The draws are keyed by
(seed, step), so the seed reveals the samples of each step: for data that must stay private it must
be secret. See docs/private.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.data.batches import Batch, Dataset
from minidist.engine.seeds import generator


@dataclass(frozen=True)
class PoissonBatch(Batch):
    """A batch from ``PoissonBatches``; ``rate`` is q."""

    rate: float = 0.0

    def __str__(self) -> str:
        return f"{super().__str__()}, drawn with rate {self.rate:g}"


class PoissonBatches:
    """An endless stream of global batches; ``batches[step]`` is the same on every rank.

    >>> batches = PoissonBatches((np.zeros((100, 2)), np.zeros(100, int)), rate=0.03)
    >>> [len(batches[step]) for step in range(8)], batches.expected
    ([6, 2, 7, 0, 2, 2, 4, 2], 3.0)

    Raises ValueError for a rate that is not in (0, 1].
    """

    def __init__(self, dataset: Dataset | tuple[Any, Any], rate: float, seed: int = 0) -> None:
        if isinstance(dataset, tuple):
            dataset = Dataset("arrays", *dataset)
        self.dataset, self.rate, self.seed = dataset, check_rate("PoissonBatches", rate), seed

    @property
    def expected(self) -> float:
        """The mean size of a batch, q·N."""
        return self.rate * len(self.dataset)

    @property
    def steps_per_epoch(self) -> float:
        """1/q: in this number of steps a sample is drawn once on average."""
        return 1 / self.rate

    def __getitem__(self, step: int) -> PoissonBatch:
        if not isinstance(step, (int, np.integer)):
            raise TypeError(f"batches[step] takes a whole number, not {step!r}")
        if step < 0:
            raise IndexError(f"steps count from 0, not {step}")
        drawn = generator(self.seed, "poisson", step).random(len(self.dataset))
        indices = np.flatnonzero(drawn < self.rate)
        return PoissonBatch(self.dataset, indices, step, seed=self.seed, rate=self.rate)

    def __iter__(self) -> Iterator[PoissonBatch]:
        raise TypeError("the stream of batches is endless: use batches[step]")


def check_rate(who: str, rate: float) -> float:
    """``rate`` as a float. Raises ValueError unless it is in (0, 1]."""
    if not (isinstance(rate, (int, float, np.number)) and 0 < rate <= 1):
        raise ValueError(
            f"{who}: the sampling rate is the probability that a sample is in a batch, above 0 and "
            f"at most 1, not {rate!r}: for batches of about B of N samples pass B/N"
        )
    return float(rate)
