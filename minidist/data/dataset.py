"""Datasets and batches: samples are read only when they are needed.

A ``Batch`` stores the *indices* of its samples. So all ranks can make the global batch without a
message, and a rank that takes ``batch.shard(rank, size)`` reads only its shard. Shards and
microbatches may have uneven sizes. Each knows its global batch, because its loss is divided by the
number of targets there; and its position in it, which keys random draws.

Kinds of inputs and targets:

    stored            inputs become            targets become
    integers          the same integers        int64: classes, tokens
    floats            the default dtype        the default dtype: numbers, class probabilities
    truth values      the same                 the default dtype, 0 and 1, as BinaryCrossEntropy
                                               takes them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from minidist.data.augment import Augment
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.digests import digest
from minidist.engine.seeds import draws, generator, uniform_rows
from minidist.ops.class_numbers import holds_classes

INT64 = np.dtype(np.int64)
Samples = Any  # has a shape, a length and [array of indices]: an array, a memory map, Windows


@dataclass(frozen=True)
class Dataset:
    """Samples in memory or memory-mapped: ``inputs`` (n, ...) and ``targets`` (n, ...).

    ``classes``: the number of classes, if targets are class numbers; else None. ``prepare`` turns
    the raw inputs of a batch into the model's input, for example uint8 pixels into floats.
    ``encode`` and ``decode`` convert text to tokens and back, if the data is text. Targets that are
    padding are a setting of the loss: ``CrossEntropy(ignore_index=-1)``. Raises TypeError or
    ValueError for arrays that do not fit.

    >>> x = np.linspace(0, 1, 6).reshape(6, 1)
    >>> Dataset("squares", x, x**2).batch([1, 5]).targets
    array([[0.04],
           [1.  ]], dtype=float32)
    """

    name: str
    inputs: Samples = field(repr=False)
    targets: Samples = field(repr=False)
    classes: int | None = None
    prepare: Callable[[np.ndarray], np.ndarray] = field(default=lambda raw: raw, repr=False)
    ignore: InitVar[int | None] = None  # of 0.1: see below
    encode: Callable[[str], np.ndarray] | None = field(default=None, repr=False)
    decode: Callable[[Any], str] | None = field(default=None, repr=False)

    def __post_init__(self, ignore: int | None) -> None:
        if ignore is not None:
            raise TypeError(
                f"dataset {self.name}: ignore={ignore} is a setting of the loss, so that loss, "
                f"accuracy and count ignore the same targets: CrossEntropy(ignore_index={ignore})"
            )
        for what in ("inputs", "targets"):
            if not hasattr(getattr(self, what), "shape"):  # a list
                object.__setattr__(self, what, np.asarray(getattr(self, what)))
            kind = getattr(getattr(getattr(self, what), "dtype", None), "kind", None)
            if kind is not None and kind not in "iufb":
                raise TypeError(
                    f"dataset {self.name}: {what} of dtype {getattr(self, what).dtype} are not "
                    "numbers: encode them as integers or floats first"
                )
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"dataset {self.name}: {len(self.inputs)} inputs but {len(self.targets)} targets"
            )
        dtype = getattr(self.targets, "dtype", None)
        if dtype is not None and self.classes is not None:
            holds_classes(f"dataset {self.name}", dtype, self.classes)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch axis."""
        return self.inputs.shape[1:]

    @cached_property
    def prepared(self) -> np.ndarray:
        """An empty prepared batch: the dtype and shape of the model's input, without reading."""
        none = np.empty(0, np.int64)  # if the inputs have no dtype, reads 0 rows to find it
        dtype = getattr(self.inputs, "dtype", None) or self.inputs[none].dtype
        return self.prepare(np.empty((0, *self.input_shape), dtype))

    def inputs_for(self, raw: Any) -> Array:
        """The model's input for raw samples (n, *input_shape), or for one sample.

        It is ``prepare``d, with floats in the default dtype, on the default device; one sample gets
        a batch axis. Use this for predictions: a model needs inputs that are prepared as in
        training.

        >>> pixels = Dataset("grey", np.zeros((9, 2, 2), np.uint8), np.zeros(9, int), 2,
        ...                  prepare=lambda raw: raw / 255)
        >>> pixels.inputs_for(np.full((2, 2), 51, np.uint8)).tolist()  # one image
        [[[0.20000000298023224, 0.20000000298023224], [0.20000000298023224, 0.20000000298023224]]]

        Raises ValueError for another shape, TypeError for floats if the raw samples are integers,
        since these are probably prepared already.
        """
        raw = raw if hasattr(raw, "shape") else np.asarray(raw)
        if raw.shape == self.input_shape:
            raw = raw[None]
        if raw.shape[1:] != self.input_shape:
            raise ValueError(
                f"dataset {self.name}: raw samples have shape {self.input_shape}, or (n, ...) "
                f"for several, not {raw.shape}"
            )
        stored = getattr(self.inputs, "dtype", raw.dtype)
        if raw.dtype.kind == "f" and stored.kind in "iu":
            raise TypeError(
                f"dataset {self.name}: raw samples are {stored}, and these {raw.dtype}: if they "
                "are prepared already, pass them to the model directly"
            )
        return self._input(raw.astype(stored, copy=False) if stored.kind == "f" else raw)

    def _input(self, raw: np.ndarray) -> Array:
        """The model's input for raw samples of the right shape and dtype."""
        prepared = self.prepare(raw)
        if prepared.dtype.kind == "f":
            prepared = prepared.astype(arrays.default_dtype(), copy=False)
        return arrays.to_device(prepared)

    def batch(self, indices: Any) -> Batch:
        """These samples as a global batch."""
        return Batch(self, np.asarray(indices), 0)

    def chunks(self, size: int = 500) -> Iterator[Batch]:
        """All samples in order, ``size`` at a time: for evaluation."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Two datasets in memory, (training, held-out), chosen at random by ``seed``.

        Do not use it for windows of a text, which overlap: use ``split_tokens`` on the text. Raises
        ValueError if one side would be empty.
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

    ``first`` is the position of its first sample in the global batch. Random draws for a sample are
    keyed by its position, so a shard draws the same numbers as serial training does for its
    samples. (In your own loop, use ``with draws(seed, step, part.positions):`` around the forward.)
    ``seed`` and ``step`` key only the draws of ``augment``; a method has its own, so the same batch
    can be used in several steps.
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
        if self.augment is None:
            return self.dataset._input(raw)
        with draws(self.seed, self.step, self.positions):
            drawn = uniform_rows("augment", len(self), self.augment.draws)
        return self.dataset.inputs_for(self.augment(raw, drawn / 2**32))

    @cached_property
    def raw_targets(self) -> np.ndarray:
        """The targets as they are stored, on the host."""
        return np.asarray(self.dataset.targets[self.indices])

    @cached_property
    def targets(self) -> Array:
        """The targets on the default device: integers as int64, the rest in the default dtype."""
        xp, of = arrays.module(), self.dataset.targets
        integers = getattr(of, "dtype", INT64).kind in "iu"
        dtype = INT64 if integers else np.dtype(arrays.default_dtype())
        if not arrays.module_has_numbers(xp):
            return xp.empty((len(self), *of.shape[1:]), dtype)
        return arrays.to_device(self.raw_targets.astype(dtype, copy=False))

    def count(self, loss: Any) -> float:
        """The divisor of ``loss`` for any part of the *global* batch: see nn/loss.py.

        It is the same for all parts of a batch, so their losses add up to the batch's loss.
        """
        whole = self if self.global_batch is None else self.global_batch
        return whole.own_count(loss)

    def own_count(self, loss: Any) -> float:
        """``loss.count`` of this part's targets. They are read only if the loss needs them.

        On device "phantom" nothing is read, and each target counts as 1.
        """
        if not loss.counts_values:
            of = self.dataset.targets
            return loss.count(_zeros((len(self), *of.shape[1:]), getattr(of, "dtype", INT64)))
        if arrays.module_has_numbers(arrays.module()):
            return loss.count(self.raw_targets)
        return len(self) * int(np.prod(self.dataset.targets.shape[1:]))

    def digest(self) -> int:
        """64 bits, different for other samples: from their indices, and the first sample."""
        of, first = self.dataset, self.indices[:1]
        what: list[object] = [len(of), np.asarray(self.indices, np.int64)]
        if self.augment is not None:
            what += [self.seed, self.step, self.augment]
        if arrays.module_has_numbers(arrays.module()):
            what += [np.asarray(of.inputs[first]), np.asarray(of.targets[first])]
        return digest(*what)

    def __str__(self) -> str:
        shown = ", ".join(str(index) for index in self.indices[:4])
        more = ", ..." if len(self) > 4 else ""
        return f"{len(self)} samples {shown}{more} of {self.dataset.name} ({len(self.dataset)})"

    def shard(self, rank: int, size: int) -> Batch:
        """Part ``rank`` of ``size`` contiguous parts; if uneven, the first parts are one longer."""
        if not 0 <= rank < size:
            raise ValueError(f"shard: rank {rank} is not in [0, {size})")
        each, longer = divmod(len(self), size)
        start = rank * each + min(rank, longer)
        stop = start + each + (rank < longer)
        return Batch(
            *(self.dataset, self.indices[start:stop], self.step, self.global_batch or self),
            *(self.first + start, self.seed, self.augment),
        )

    def microbatches(self, count: int) -> list[Batch]:
        """The batch in ``count`` contiguous parts; parts may be uneven or empty."""
        return [self.shard(index, count) for index in range(count)]


@lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros of any shape in the memory of one number. Kept: every step needs the same few."""
    return np.broadcast_to(np.zeros((), dtype), shape)
