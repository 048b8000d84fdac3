"""A cut: which part of one axis of a parameter each rank of the tensor axis holds.

    Linear, columns   weight (i, o)   rank 0 has columns 0 .. o/t - 1, and so on; the bias likewise
    Linear, rows      weight (i, o)   rank 0 has rows 0 .. i/t - 1; the bias is whole
    heads             qkv (w, q+k+v)  rank r has its heads' columns of q, of k and of v
    vocabulary        table (V, w)    rank 0 has the rows of tokens 0 .. V/t - 1

Every element of a cut parameter is on exactly one rank. A parameter that is not cut is whole on
every rank. The initial values are those of serial training: a rank draws the whole parameter by
(seed, name), and keeps its part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minidist.collectives.partition import chunk_lengths
from minidist.nn.module import Initialiser, Shape

Ranges = tuple[tuple[int, int], ...]  # (start, stop) of each part of an axis


@dataclass(frozen=True)
class Cut:
    """``kind``: its name in a plan. ``ranges[r]``: the ranges of ``axis`` on rank r, in order."""

    kind: str
    axis: int
    ranges: tuple[Ranges, ...]

    def length(self, rank: int) -> int:
        """The length of the axis on a rank."""
        return sum(stop - start for start, stop in self.ranges[rank])

    def boxes(
        self, whole: Shape, rank: int
    ) -> list[tuple[tuple[tuple[int, int], ...], tuple[slice, ...]]]:
        """(box of the parameter of shape ``whole``, its slices in the rank's part), by range."""
        found, at = [], 0
        for start, stop in self.ranges[rank]:
            box = [(0, length) for length in whole]
            inside = [slice(None)] * len(whole)
            box[self.axis] = (start, stop)
            inside[self.axis] = slice(at, at + stop - start)
            found.append((tuple(box), tuple(inside)))
            at += stop - start
        return found

    def shape(self, whole: Shape, rank: int) -> Shape:
        """The shape of a rank's part of a parameter of shape ``whole``."""
        return (*whole[: self.axis], self.length(rank), *whole[self.axis + 1 :])

    def take(self, whole: np.ndarray, rank: int) -> np.ndarray:
        """A rank's part of a whole array."""
        before = (slice(None),) * self.axis
        parts = [whole[(*before, slice(*part))] for part in self.ranges[rank]]
        return np.concatenate(parts, axis=self.axis)

    def put(self, part: np.ndarray, rank: int, whole: np.ndarray) -> None:
        """Write a rank's part into ``whole``."""
        before, done = (slice(None),) * self.axis, 0
        for start, stop in self.ranges[rank]:
            length = stop - start
            whole[(*before, slice(start, stop))] = part[(*before, slice(done, done + length))]
            done += length


@dataclass(frozen=True)  # a class, so that a model can be pickled with it
class PartOf:
    """An initialiser that draws the whole parameter, as serial training, and keeps a part."""

    initialiser: Initialiser
    whole: Shape
    cut: Cut
    rank: int

    def __call__(self, generator: np.random.Generator, shape: Shape) -> np.ndarray:
        return self.cut.take(self.initialiser(generator, self.whole), self.rank)


def even(kind: str, axis: int, length: int, ranks: int) -> Cut:
    """Consecutive parts of equal length; if ``ranks`` does not divide, the first are one longer."""
    lengths = chunk_lengths(length, ranks)
    return Cut(kind, axis, tuple(((start, stop),) for start, stop in in_a_row(lengths)))


def by_heads(axis: int, width: int, heads: int, groups: int, ranks: int) -> Cut:
    """Each rank's heads of queries, keys and values; ``width`` has all three, in this order.

    With at least as many groups as ranks, a rank has whole groups: their query heads, and their
    heads of keys and values. With fewer, a rank has heads/ranks query heads of one group. Its head
    of keys and values is then shared by ranks/groups ranks; each computes some of its features.
    """
    d = width // (heads + 2 * groups)
    shared = heads // groups  # query heads that share a head of keys
    if groups >= ranks:
        mine = in_a_row(chunk_lengths(groups, ranks))
        queries = [(start * shared * d, stop * shared * d) for start, stop in mine]
        keys = [(start * d, stop * d) for start, stop in mine]
    else:
        sharers = ranks // groups
        each = heads // ranks * d
        queries = [(rank * each, (rank + 1) * each) for rank in range(ranks)]
        features = d // sharers
        keys = [(rank * features, (rank + 1) * features) for rank in range(ranks)]
    k, v = heads * d, (heads + groups) * d  # where keys and values begin
    ranges = [
        (query, (k + start, k + stop), (v + start, v + stop))
        for query, (start, stop) in zip(queries, keys, strict=True)
    ]
    return Cut("heads", axis, tuple(ranges))


def in_a_row(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of consecutive parts with these lengths."""
    ends = np.cumsum(lengths).tolist()
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
