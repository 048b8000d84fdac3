"""Part: an array that an optimizer steps, where it lies in the model, and the state kept for it.

Serial training steps one array, the whole model. A ZeRO rank steps a shard of each block, a server
its key range. Each is a ``Part``; all parts belong to *one* optimizer, whose settings and step
count they share. So a change of ``optimizer.lr`` acts on all of them.

    flat.data   [ block 0 ............. | block 1 ..... | block 2 .. ]
    parts         [ own shard ]           [ own ]          [ o ]        state: momentum, for each

A part is stepped in *pieces*: short ranges, so that the arrays that a rule uses stay in the
processor's cache. Pieces also end where the rate or the weight decay changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.versions import version_of

Reduce = Callable[[np.ndarray], object]  # sums a float64 host array over all shards, in place


@dataclass(frozen=True)
class Piece:
    """A range of elements to step at once; of one parameter only, if the rule needs that."""

    part: slice
    parameter: int  # its index among the parameters, -1 if the rule does not need it
    excluded: bool
    group: int = -1  # which of the optimizer's groups its parameter is in; -1: none


@dataclass
class Part:
    """An array that is stepped: elements from ``start`` on of the array that ``slices`` cut.

    ``slices``: where each parameter lies, None if nobody said. ``reduce`` sums a small float64
    array over those that step the rest. ``state`` maps each slot to an array as long as the data.
    """

    slices: Mapping[str, slice] | None = None
    start: int = 0
    reduce: Reduce | None = None
    state: dict[str, Array] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    scratch: Array = None
    penalised: Array = None  # a piece's gradient with the weight decay in it
    cut_for: Any = None  # what the pieces were cut for
    stepped: Any = None  # where the model's parameters lay at the first step

    def check_parameters(self, data: Array) -> None:
        """Raise ValueError if ``data`` has other parameters than at the first step."""
        version = version_of(data)
        if version is None:
            return
        if self.stepped is version.layout:
            return
        if self.stepped is not None and self.stepped != version.layout:
            raise ValueError(
                "step: parameters were frozen or unfrozen since this optimizer's first step, and "
                "its state belongs to those before: make a new optimizer"
            )
        self.stepped = version.layout

    def pieces_and_scratch(self) -> list[tuple[Piece, Array]]:
        """The pieces, each with scratch of its length."""
        return [(p, self.scratch[: p.part.stop - p.part.start]) for p in self.pieces]

    def cut(
        self,
        size: int,
        longest: int,
        patterns: Collection[str],
        exclude: Collection[str],
        layerwise: bool,
        rule: str,
    ) -> None:
        """Make pieces of at most ``longest`` elements, cut where rate or weight decay change."""
        if self.cut_for == (wanted := (size, longest, *patterns, None, *exclude, layerwise)):
            return
        runs = [Piece(slice(0, size), -1, False)]
        if layerwise or patterns or exclude:
            runs = self._runs(size, tuple(patterns), exclude, layerwise, rule)
        self.pieces = [
            Piece(slice(low, min(low + longest, run.part.stop)), run.parameter, *whose(run))
            for run in runs
            for low in range(run.part.start, run.part.stop, longest)
        ]
        self.cut_for, self.scratch = wanted, None

    def _runs(
        self,
        size: int,
        patterns: Sequence[str],
        exclude: Collection[str],
        layerwise: bool,
        rule: str,
    ) -> list[Piece]:
        """A range for each parameter; neighbours with equal rate and decay are joined."""
        if self.slices is None:
            raise RuntimeError(
                f"{rule} must know where each parameter lies: call "
                "optimizer.bind(model.flat.slices) before the first step"
            )
        runs = list[Piece]()
        for index, (name, where) in enumerate(self.slices.items()):
            low, high = max(where.start - self.start, 0), min(where.stop - self.start, size)
            if low >= high:
                continue
            excluded = matching(name, exclude) >= 0
            own = Piece(slice(low, high), index, excluded, matching(name, patterns))
            if runs and not layerwise and whose(runs[-1]) == whose(own):
                own = Piece(slice(runs.pop().part.start, high), index, *whose(own))
            runs.append(own)
        covered = sum(run.part.stop - run.part.start for run in runs)
        if covered != size:
            raise ValueError(
                f"step: {size} elements from {self.start} on were passed, but the bound slices "
                f"cover {covered} of them: bind with the start of the slice that is stepped"
            )
        return runs


def whose(piece: Piece) -> tuple[bool, int]:
    """What decides a piece's rate and weight decay."""
    return piece.excluded, piece.group


def matching(name: str, patterns: Collection[str]) -> int:
    """The number of the first pattern that ``name`` matches; -1 if it matches none."""
    return next((i for i, pattern in enumerate(patterns) if fnmatchcase(name, pattern)), -1)
