"""Cases of a test over several axes: every pair of choices each day, all combinations at times.

Bugs of composition mostly lie between two choices (this schedule with that clipping). So of the
product of all axes ``make test`` runs a few combinations in which every pair of choices occurs, and
``make long`` runs the others too: they carry the marker ``long``.

    @pytest.mark.parametrize(("ranks", "rule", "batch"), pairs([1, 2, 4], ["sgd", "adam"], [3, 13]))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairs(*axes: Iterable[Any]) -> list[Any]:
    """The product of the axes, as cases of ``parametrize``; each axis is a list of choices."""
    listed = [list(axis) for axis in axes]
    every = list(product(*(range(len(axis)) for axis in listed)))
    chosen = covering(every)
    return [
        pytest.param(
            *(axis[index] for axis, index in zip(listed, combination, strict=True)),
            marks=() if combination in chosen else pytest.mark.long,
        )
        for combination in every
    ]


def covering(combinations_: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Combinations in which every pair of choices of two axes occurs that occurs at all.

    Greedy: always the one that adds most pairs, the first of them if several do.
    """
    uncovered = set().union(*map(_pairs, combinations_)) if combinations_ else set()
    chosen: set[tuple[int, ...]] = set()
    while uncovered:
        best = max(combinations_, key=lambda one: len(_pairs(one) & uncovered))
        chosen.add(best)
        uncovered -= _pairs(best)
    return chosen


def _pairs(combination: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    """Every two (axis, choice) of a combination; of a single axis, its choice."""
    return set(combinations(enumerate(combination), min(2, len(combination))))
