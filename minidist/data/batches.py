"""Batches keyed by (seed, step): a stream of global batches that is the same on every rank.

batches = Batches(dataset, 128, seed=0)
batches[step]                        any step, in any order
len(batches)                         steps in an epoch
for batch in batches.epoch(0):       one epoch, each sample once
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.data.augment import Augment
from minidist.data.dataset import Batch, Dataset
from minidist.data.shuffle import Permutation
from minidist.engine.seeds import generator

__all__ = ["LISTED", "Batch", "Batches", "Dataset"]

LISTED = 1 << 24  # samples, up to which the order is stored as an array, of at most 128 MB


class Batches:
    """An endless stream of global batches: ``batches[step]`` is the same on every rank.

    ``dataset`` may be a pair of arrays, (inputs, targets). Each epoch is a new permutation, keyed
    by (seed, epoch); its last batch is shorter if ``size`` does not divide the dataset. ``augment``
    changes the inputs at random, keyed by (seed, step, position in the global batch). For more than
    ``LISTED`` samples the order is computed, not stored, so the dataset may be larger than memory.
    Raises TypeError for another kind of dataset, ValueError for a size that does not fit.
    """

    def __init__(
        self,
        dataset: Dataset | tuple[Any, Any],
        size: int,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        if isinstance(dataset, tuple):
            dataset = Dataset("arrays", *dataset)
        if not isinstance(dataset, Dataset):
            raise TypeError(
                "Batches takes a Dataset, or a pair of arrays (inputs, targets), not a "
                f"{type(dataset).__name__}"
            )
        if not isinstance(size, (int, np.integer)):
            raise TypeError(f"the batch size must be an integer, not {size!r}")
        if not 1 <= size <= len(dataset):
            raise ValueError(f"batch size {size} is not in [1, {len(dataset)}], the dataset's size")
        self.dataset = dataset
        self.size = size
        self.seed = seed
        self.augment = augment
        self.steps_per_epoch = -(-len(dataset) // size)
        self._epoch = -1
        self._order: np.ndarray | Permutation = np.empty(0, np.int64)

    def __len__(self) -> int:
        """Steps in an epoch. ``batches[step]`` also takes steps of later epochs."""
        return self.steps_per_epoch

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch, counted from 0: each sample once, in the epoch's random order.

        >>> batches = Batches((np.zeros((5, 2)), np.zeros(5, int)), 2)
        >>> [len(batch) for batch in batches.epoch(0)], len(batches)
        ([2, 2, 1], 3)
        """
        first = number * len(self)
        return (self[step] for step in range(first, first + len(self)))

    def __iter__(self) -> Iterator[Batch]:
        raise TypeError(
            "which epoch? Each has another order: use `for batch in batches.epoch(0)`, or "
            "batches[step] for any step of any epoch"
        )

    def __getitem__(self, step: int) -> Batch:
        if not isinstance(step, (int, np.integer)):
            raise TypeError(f"batches[step] takes a whole number, not {step!r}")
        if step < 0:
            raise IndexError(f"steps count from 0, not {step}")
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            shuffle = generator(self.seed, "shuffle", epoch)
            count = len(self.dataset)
            self._order = (
                Permutation(count, shuffle) if count > LISTED else shuffle.permutation(count)
            )
            self._epoch = epoch
        start = position * self.size
        indices = self._order[start : start + self.size]
        return Batch(self.dataset, indices, step, seed=self.seed, augment=self.augment)
