"""Part: an array that an optimizer steps, where it lies in the model, and the state kept for it.

Serial training steps one array, the whole model. A ZeRO rank steps a shard of each block, a server
its key range. Each is a ``Part``; all parts belong to *one* optimizer, whose settings and step
count they share. So a change of ``optimizer.lr`` acts on all of them.

    flat.data   [ block 0 ............. | block 1 ..... | block 2 .. ]
    parts         [ own shard ]           [ own ]          [ o ]        state: momentum, for each

A part is stepped in *pieces*: ranges so short that all arrays of a rule fit the processor's cache.
Pieces also end where the learning rate or the weight decay changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.versions import version_of

Reduce = Callable[[np.ndarray], object]  # sums a float64 host array over all shards, in place


@dataclass(frozen=True)
class Piece:
    """A range of elements that are stepped at once: for layer-wise rules, of one parameter."""

    where: slice
    parameter: int  # its index among the parameters; -1 if the pieces are not cut by parameter
    excluded: bool  # whether its weights do not decay
    group: int = -1  # the index of its group among the optimizer's groups; -1: in none


@dataclass
class Part:
    """An array that is stepped: the elements of the model's flat array from ``start`` on.

    ``slices``: where each parameter lies in the flat array, None if unknown. ``reduce`` sums a
    small float64 array over the ranks that step the rest. ``state`` maps each slot to an array as
    long as the data.
    """

    slices: Mapping[str, slice] | None = None
    start: int = 0
    reduce: Reduce | None = None
    state: dict[str, Array] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    scratch: Array = None
    penalised: Array = None  # a piece's gradient plus the L2 penalty λ·w
    cut_for: Any = None  # the arguments of ``cut`` that made the pieces
    layout: Any = None  # where the model's parameters lay at the first step

    def check_parameters(self, data: Array) -> None:
        """Raise ValueError if ``data`` has other parameters than at the first step."""
        version = version_of(data)
        if version is None or self.layout is version.layout:
            return
        if self.layout is not None and self.layout != version.layout:
            raise ValueError(
                "step: parameters were frozen or unfrozen since this optimizer's first step, and "
                "its state belongs to those before: make a new optimizer"
            )
        self.layout = version.layout

    def pieces_and_scratch(self) -> list[tuple[Piece, Array]]:
        """The pieces, each with a scratch array of its length."""
        return [(p, self.scratch[: p.where.stop - p.where.start]) for p in self.pieces]

    def cut(
        self,
        size: int,
        longest: int,
        patterns: Collection[str],
        exclude: Collection[str],
        layerwise: bool,
        rule: str,
    ) -> None:
        """Make pieces of at most ``longest`` elements, each with one rate and one weight decay.

        ``patterns`` are those of the groups. Does nothing if the pieces were made for the same
        arguments.
        """
        cut_for = (size, longest, *patterns, None, *exclude, layerwise)
        if self.cut_for == cut_for:
            return
        ranges = [Piece(slice(0, size), -1, False)]
        if layerwise or patterns or exclude:
            ranges = self._by_settings(size, tuple(patterns), exclude, layerwise, rule)
        self.pieces = [
            replace(whole, where=slice(low, min(low + longest, whole.where.stop)))
            for whole in ranges
            for low in range(whole.where.start, whole.where.stop, longest)
        ]
        self.cut_for, self.scratch = cut_for, None

    def _by_settings(
        self,
        size: int,
        patterns: Sequence[str],
        exclude: Collection[str],
        layerwise: bool,
        rule: str,
    ) -> list[Piece]:
        """A range for each parameter; unless ``layerwise``, neighbours with the same learning rate
        and weight decay are joined."""
        if self.slices is None:
            raise RuntimeError(
                f"{rule} must know where each parameter lies: call "
                "optimizer.bind(model.flat.slices) before the first step"
            )
        ranges = list[Piece]()
        for index, (name, where) in enumerate(self.slices.items()):
            low, high = max(where.start - self.start, 0), min(where.stop - self.start, size)
            if low >= high:
                continue
            settings = matching(name, exclude) >= 0, matching(name, patterns)
            if ranges and not layerwise and settings == (ranges[-1].excluded, ranges[-1].group):
                low = ranges.pop().where.start
            ranges.append(Piece(slice(low, high), index, *settings))
        covered = sum(one.where.stop - one.where.start for one in ranges)
        if covered != size:
            raise ValueError(
                f"step: {size} elements from {self.start} on were passed, but the bound slices "
                f"cover {covered} of them: bind with the start of the slice that is stepped"
            )
        return ranges


def matching(name: str, patterns: Collection[str]) -> int:
    """The index of the first pattern that ``name`` matches; -1 if it matches none."""
    return next((i for i, pattern in enumerate(patterns) if fnmatchcase(name, pattern)), -1)
