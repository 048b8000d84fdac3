"""The algorithms that "auto" chose, recorded so that a later run can use the same ones.

Two algorithms add in different orders, so their sums differ in the last digits. A run that is to be
repeated bit by bit must therefore use the same ones, even if "auto" would now choose others because
of new measurements or a new version. Each rank's ``trace.choices`` has them by group of ranks, then
by length and itemsize of the array; ``comm.chosen`` is the part of one group. ``recorded`` makes a
list of them that JSON can hold, for traces, compare.json and checkpoints; with such a list,
``collectives/replay.py`` makes "auto" choose as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

Choices = dict[str, dict[tuple[int, int], str]]


def named(ranks: Sequence[int]) -> str:
    """A short name for a group of ranks.

    >>> named(range(4)), named([1, 3, 5]), named([2, 0, 3])
    ('0-3', '1-5:2', '2,0,3')
    """
    if len(ranks) > 2:
        step = ranks[1] - ranks[0]
        if step > 0 and all(b - a == step for a, b in pairwise(ranks)):
            return f"{ranks[0]}-{ranks[-1]}" + (f":{step}" if step > 1 else "")
    return ",".join(map(str, ranks))


def recorded(choices: Iterable[Choices]) -> list[dict[str, Any]]:
    """The choices of all ranks as a list; a choice that several ranks made together is listed once.

    >>> recorded([{"0,1": {(5, 4): "ring"}}, {"0,1": {(5, 4): "ring"}}])
    [{'ranks': '0,1', 'length': 5, 'itemsize': 4, 'algorithm': 'ring'}]
    """
    found = {
        (ranks, length, itemsize, name)
        for of_rank in choices
        for ranks, group in of_rank.items()
        for (length, itemsize), name in group.items()
    }
    keys = ("ranks", "length", "itemsize", "algorithm")
    return [dict(zip(keys, entry, strict=True)) for entry in sorted(found)]
