"""What the exercises on all-reduce share: the cases, one run, and the marks of the result.

The formulas are each exercise's own; see ``ring/marks.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises.exercise import Case, Verdict

RANKS = (1, 2, 3, 4, 5, 8)
FORBIDDEN = ("minidist.collectives", "minidist.parallel", "minidist.compare", "minidist.bench")
LONG = 20_000  # numbers, where memory is looked at: an array is more than Python's own objects


def cases(seed: int, ranks: tuple[int, ...] = RANKS) -> Iterator[Case]:
    """Lengths around zero, around the rank count, one of a size to weigh; some on MPI ranks."""
    draw = np.random.default_rng(seed)
    for p in ranks:
        lengths = sorted({0, 1, p - 1, p, p + 1, 24, LONG + int(draw.integers(1, 9))})
        for length in lengths:
            yield Case(p, seed, settings={"length": length})
    for p in (2, 3):
        if p in ranks or p == 2:
            yield Case(p, seed, "mpi", {"length": 29})


def prepare(rank: int, case: Case) -> np.ndarray:
    """A rank's own numbers: different on every rank, exact in float64 whatever the order."""
    return (
        np.random.default_rng([case.seed, rank, case["length"]]).integers(-999, 999, case["length"])
        / 8.0
    )


def run(comm: Any, answer: Any, case: Case, array: np.ndarray) -> dict[str, Any]:
    returned = answer.all_reduce(comm, array)
    found: dict[str, Any] = {"got": array}
    if isinstance(returned, np.ndarray) and returned is not array:
        found["other"] = returned
    return found


def judge_result(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    """The sum, in place, on every rank; and bitwise the same everywhere."""
    inputs = [prepare(rank, case) for rank in range(case.ranks)]
    expected = np.sum(inputs, axis=0)
    wrong = None
    for number, rank in enumerate(ranks):
        got = np.array(rank["got"])
        if (got == expected).all():
            continue
        if (got == inputs[number]).all() and "other" in rank:
            wrong = (
                f"rank {number}'s array is unchanged and another one is returned: the sum must be "
                "written into the array itself (array[...] = ...; array = ... only renames)"
            )
        elif (got == inputs[number]).all():
            wrong = f"rank {number}'s array is unchanged, no sum was written into it"
        elif np.allclose(got * case.ranks, expected):
            wrong = f"rank {number} has the mean: the sum is {case.ranks} times as much"
        else:
            first = int(np.argmax(got != expected))
            wrong = (
                f"rank {number} has {got[first]} at position {first}, and the sum of all ranks is "
                f"{expected[first]} ({int((got != expected).sum())} of {got.size} numbers differ)"
            )
        break
    yield "result", wrong
    differ = [number for number, rank in enumerate(ranks) if rank["got"] != ranks[0]["got"]]
    yield (
        "ranks agree",
        (
            f"ranks {differ} have other numbers than rank 0: replicas must stay bitwise equal"
            if differ
            else None
        ),
    )


def judge_count(
    what: str,
    case: Case,
    got: list[int],
    expected: list[int],
    formula: str,
    diagnoses: dict[str, list[int]],
) -> Iterator[Verdict]:
    """Messages or bytes of every rank; ``diagnoses``: what other counts are a sign of."""
    if got == expected:
        yield what, None
        return
    rank = next(r for r in range(case.ranks) if got[r] != expected[r])
    for reason, counts in diagnoses.items():
        if got == counts:
            yield what, f"{reason}; {formula}"
            return
    yield what, f"rank {rank} sends {got[rank]:,}, and {expected[rank]:,} is right: {formula}"


def judge_memory(
    case: Case, ranks: list[dict[str, Any]], extra: float, why: str
) -> Iterator[Verdict]:
    """Besides the array at most ``extra`` times as much, on average over the ranks."""
    if case["length"] < LONG or case.world == "mpi":
        return
    own = case["length"] * 8
    held = ranks[0]["peak"] / case.ranks / own
    yield (
        "memory",
        (
            f"besides its array, a rank holds {held:.1f} times as much at once: {why}"
            if held > extra + OVERHEAD / own
            else None
        ),
    )


OVERHEAD = 20_000  # bytes a rank for what Python itself holds: stacks, small objects, lists
