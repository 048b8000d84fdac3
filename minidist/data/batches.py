"""Batches keyed by (seed, step): every rank can name the same global batch and read only its part.

A ``Batch`` is lazy: it holds the *indices* of its samples and reads them when asked. So all ranks
agree on the global batch without a message, and ``batch.shard(rank, size)`` costs one rank only
its share. Shards and microbatches need not be even: they remember the global count of targets, by
which losses are divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from minidist import array as arrays
from minidist.array import Array
from minidist.seeds import generator


@dataclass(frozen=True)
class Dataset:
    """Samples in memory (or memory-mapped): ``inputs`` (n, ...) and ``targets`` (n, ...).

    ``prepare`` turns the raw inputs of a batch into what the model takes, for example uint8
    pixels into floats. ``classes`` is the number of target classes.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    classes: int
    prepare: Callable[[np.ndarray], np.ndarray] = field(default=lambda raw: raw, repr=False)

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch axis."""
        return self.inputs.shape[1:]

    def batch(self, indices: np.ndarray) -> Batch:
        """These samples as a global batch."""
        return Batch(self, indices, 0)

    def chunks(self, size: int = 500) -> Iterator[Batch]:
        """All samples in order, ``size`` at a time: for evaluation."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))


@dataclass(frozen=True)
class Batch:
    """Part of a dataset, by index: a global batch, or a shard or microbatch of one."""

    dataset: Dataset
    indices: np.ndarray
    step: int
    global_batch: Batch | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def inputs(self) -> Array:
        """The samples, prepared, on the default device and in the default dtype if floating."""
        prepared = self.dataset.prepare(self.dataset.inputs[self.indices])
        if prepared.dtype.kind == "f":
            prepared = prepared.astype(arrays.default_dtype(), copy=False)
        return arrays.to_device(prepared)

    @cached_property
    def targets(self) -> Array:
        """The targets as int64, on the default device."""
        return arrays.to_device(self.dataset.targets[self.indices].astype(np.int64))

    @cached_property
    def count(self) -> int:
        """The number of targets in the *global* batch: what losses are divided by."""
        whole = self.global_batch or self
        return len(whole) * int(np.prod(self.dataset.targets.shape[1:]))

    def shard(self, rank: int, size: int) -> Batch:
        """Part ``rank`` of ``size`` contiguous parts; the first parts are one longer if uneven."""
        if not 0 <= rank < size:
            raise ValueError(f"shard: rank {rank} is not in [0, {size})")
        part = np.array_split(self.indices, size)[rank]
        return replace(self, indices=part, global_batch=self.global_batch or self)

    def microbatches(self, count: int) -> list[Batch]:
        """The batch in ``count`` contiguous parts, uneven or empty ones included."""
        return [self.shard(index, count) for index in range(count)]


class Batches:
    """An endless stream of global batches: ``batches[step]`` is the same on every rank.

    Each epoch is a new permutation, keyed by (seed, epoch); its last batch is shorter if ``size``
    does not divide the dataset.
    """

    def __init__(self, dataset: Dataset, size: int, seed: int = 0) -> None:
        if not 1 <= size <= len(dataset):
            raise ValueError(f"batch size {size} is not in [1, {len(dataset)}], the dataset's size")
        self.dataset = dataset
        self.size = size
        self.seed = seed
        self.steps_per_epoch = -(-len(dataset) // size)
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"steps count from 0, not {step}")
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            shuffle = generator(self.seed, "shuffle", epoch)
            self._order, self._epoch = shuffle.permutation(len(self.dataset)), epoch
        start = position * self.size
        return Batch(self.dataset, self._order[start : start + self.size], step)
