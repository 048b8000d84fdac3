"""How one parameter is cut over the ranks of the tensor axis: which part of which axis each holds.

    Linear, columns   weight (i, o)   rank 0 has columns 0 .. o/t - 1, and so on; the bias likewise
    Linear, rows      weight (i, o)   rank 0 has rows 0 .. i/t - 1; the bias is whole
    heads             qkv (w, q+k+v)  rank r has its heads' columns of q, of k and of v
    vocabulary        table (V, w)    rank 0 has the rows of tokens 0 .. V/t - 1

Every number of a cut parameter lies on exactly one rank; whatever is not cut is whole on all. The
values are those of serial training: the whole parameter is drawn by (seed, name), and a rank keeps
its part of it.
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
    """``kind``: its name in a plan. ``ranges[r]``: what rank r holds of ``axis``, in this order."""

    kind: str
    axis: int
    ranges: tuple[Ranges, ...]

    def length(self, rank: int) -> int:
        """How long the axis is on a rank."""
        return sum(stop - start for start, stop in self.ranges[rank])

    def boxes(
        self, whole: Shape, rank: int
    ) -> list[tuple[tuple[tuple[int, int], ...], tuple[slice, ...]]]:
        """Which boxes of a parameter of shape ``whole`` a rank holds; where each is in its part."""
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
        """Write a rank's part to its place in ``whole``."""
        before, done = (slice(None),) * self.axis, 0
        for start, stop in self.ranges[rank]:
            length = stop - start
            whole[(*before, slice(start, stop))] = part[(*before, slice(done, done + length))]
            done += length


@dataclass(frozen=True)  # a class, so that a model can be pickled with it
class PartOf:
    """Draws what serial training draws for the whole parameter, and keeps one rank's part."""

    initialiser: Initialiser
    whole: Shape
    cut: Cut
    rank: int

    def __call__(self, generator: np.random.Generator, shape: Shape) -> np.ndarray:
        return self.cut.take(self.initialiser(generator, self.whole), self.rank)


def even(kind: str, axis: int, length: int, ranks: int) -> Cut:
    """Consecutive parts, as even as can be; if uneven, the first are one longer."""
    lengths = chunk_lengths(length, ranks)
    return Cut(kind, axis, tuple(((start, stop),) for start, stop in in_a_row(lengths)))


def by_heads(axis: int, width: int, heads: int, groups: int, ranks: int) -> Cut:
    """Each rank's heads of queries, keys and values, which lie side by side in ``width``.

    With at least as many groups as ranks, a rank has whole groups: their query heads, and their
    head of keys and of values. With fewer, a rank has heads/ranks query heads of one group, and
    ranks/groups ranks share its head of keys and of values: each computes some features of it.
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
    """(start, stop) of parts of these lengths, one behind the other."""
    ends = np.cumsum(lengths).tolist()
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
