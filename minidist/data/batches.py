"""Batches keyed by (seed, step): all ranks know the same global batch, and each reads its own part.

A ``Batch`` is lazy: it stores the *indices* of its samples, and reads the samples when they are
needed. So all ranks agree on the global batch without a message, and a rank that takes
``batch.shard(rank, size)`` reads only its shard. Shards and microbatches may have uneven sizes.
Each stores the global count of targets, by which losses are divided. Each also stores its position
in the global batch, by which random draws are keyed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from minidist.data.augment import Augment
from minidist.data.shuffle import Permutation
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.seeds import draws, generator, uniform_rows
from minidist.ops.losses import holds_classes

LISTED = 1 << 24  # up to so many samples the order is stored as a list, of at most 128 MB
Samples = Any  # has a shape, a length and [array of indices]: an array, a memory map, Windows


@dataclass(frozen=True)
class Dataset:
    """Samples in memory or memory-mapped: ``inputs`` (n, ...) and ``targets`` (n, ...).

    ``prepare`` turns the raw inputs of a batch into what the model takes, for example uint8
    pixels into floats. ``classes`` is the number of target classes. Targets equal to ``ignore``
    are padding and are not counted (pass the same number to the loss). ``encode`` and ``decode``
    convert text to tokens and back, if the data is text.
    """

    name: str
    inputs: Samples = field(repr=False)
    targets: Samples = field(repr=False)
    classes: int
    prepare: Callable[[np.ndarray], np.ndarray] = field(default=lambda raw: raw, repr=False)
    ignore: int | None = None
    encode: Callable[[str], np.ndarray] | None = field(default=None, repr=False)
    decode: Callable[[Any], str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"dataset {self.name}: {len(self.inputs)} inputs but {len(self.targets)} targets"
            )
        dtype = getattr(self.targets, "dtype", None)
        if dtype is not None:
            holds_classes(f"dataset {self.name}", dtype, self.classes)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch axis."""
        return self.inputs.shape[1:]

    @cached_property
    def prepared(self) -> np.ndarray:
        """No samples, prepared: the shape and dtype of what the model takes, without reading."""
        return self.prepare(np.empty((0, *self.input_shape), self.inputs.dtype))

    def batch(self, indices: np.ndarray) -> Batch:
        """These samples as a global batch."""
        return Batch(self, indices, 0)

    def chunks(self, size: int = 500) -> Iterator[Batch]:
        """All samples in order, ``size`` at a time: for evaluation."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Two datasets, (training, held-out), chosen at random by ``seed``; both in memory.

        Not for windows of a text, because windows overlap: use ``split_tokens`` on the text.
        """
        count = round(len(self) * held_out)
        if not 0 < count < len(self):
            raise ValueError(f"split: {held_out} of {len(self)} samples leaves one side empty")
        order = generator(seed, "split", self.name).permutation(len(self))

        def part(indices: np.ndarray) -> Dataset:
            return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

        return part(np.sort(order[count:])), part(np.sort(order[:count]))


@dataclass(frozen=True)
class Batch:
    """Part of a dataset, by index: a global batch, or a shard or microbatch of one.

    ``first`` is the position of its first sample in the global batch. Random draws for a
    sample are keyed by (seed, step, position), so a shard draws exactly the numbers that serial
    training draws for the same samples. For dropout, write ``with draws(batch.seed, batch.step,
    batch.positions)`` around the forward.
    """

    dataset: Dataset
    indices: np.ndarray
    step: int
    global_batch: Batch | None = None
    first: int = 0
    seed: int = 0
    augment: Augment | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def positions(self) -> np.ndarray:
        """The position of each sample in the global batch."""
        return np.arange(self.first, self.first + len(self))

    @cached_property
    def inputs(self) -> Array:
        """The prepared samples, on the default device; floats in the default dtype."""
        xp = arrays.module()
        if not arrays.module_has_numbers(xp):  # nothing is read
            none = self.dataset.prepared
            dtype = arrays.default_dtype() if none.dtype.kind == "f" else none.dtype
            return xp.empty((len(self), *none.shape[1:]), dtype)
        raw = self.dataset.inputs[self.indices]
        if self.augment is not None:
            with draws(self.seed, self.step, self.positions):
                drawn = uniform_rows("augment", len(self), self.augment.draws)
            raw = self.augment(raw, drawn / 2**32)
        prepared = self.dataset.prepare(raw)
        if prepared.dtype.kind == "f":
            prepared = prepared.astype(arrays.default_dtype(), copy=False)
        return arrays.to_device(prepared)

    @cached_property
    def targets(self) -> Array:
        """The targets as int64, on the default device."""
        xp = arrays.module()
        if not arrays.module_has_numbers(xp):
            return xp.empty((len(self), *self.dataset.targets.shape[1:]), np.int64)
        return arrays.to_device(self.dataset.targets[self.indices].astype(np.int64))

    @cached_property
    def count(self) -> int:
        """The number of targets in the *global* batch: losses are divided by it.

        Where nothing is read, none is taken to be padding.
        """
        whole = self.global_batch or self
        if self.dataset.ignore is not None and arrays.module_has_numbers(arrays.module()):
            targets = self.dataset.targets[whole.indices]
            return int((targets != self.dataset.ignore).sum())
        return len(whole) * int(np.prod(self.dataset.targets.shape[1:]))

    def shard(self, rank: int, size: int) -> Batch:
        """Part ``rank`` of ``size`` contiguous parts; if uneven, the first parts are one longer."""
        if not 0 <= rank < size:
            raise ValueError(f"shard: rank {rank} is not in [0, {size})")
        each, longer = divmod(len(self), size)
        start = rank * each + min(rank, longer)
        stop = start + each + (rank < longer)
        return replace(
            self,
            indices=self.indices[start:stop],
            global_batch=self.global_batch or self,
            first=self.first + start,
        )

    def microbatches(self, count: int) -> list[Batch]:
        """The batch in ``count`` contiguous parts; parts may be uneven or empty."""
        return [self.shard(index, count) for index in range(count)]


class Batches:
    """An endless stream of global batches: ``batches[step]`` is the same on every rank.

    Each epoch is a new permutation, keyed by (seed, epoch); its last batch is shorter if ``size``
    does not divide the dataset. ``augment`` changes the inputs at random, keyed by (seed, step,
    position in the global batch). The order of more than ``LISTED`` samples is computed, not
    stored, so the dataset may be larger than memory.
    """

    def __init__(
        self, dataset: Dataset, size: int, seed: int = 0, augment: Augment | None = None
    ) -> None:
        if not 1 <= size <= len(dataset):
            raise ValueError(f"batch size {size} is not in [1, {len(dataset)}], the dataset's size")
        self.dataset = dataset
        self.size = size
        self.seed = seed
        self.augment = augment
        self.steps_per_epoch = -(-len(dataset) // size)
        self._epoch = -1
        self._order: np.ndarray | Permutation = np.empty(0, np.int64)

    def __getitem__(self, step: int) -> Batch:
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
