"""The gradient of a mean, from uneven shards: marks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises import collective
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.given import Calls
from minidist.exercises.single import compare, untouched

TITLE = "The gradient of a mean, from uneven shards"
MINUTES = 40
FUNCTIONS = ("gradient",)
MARKS = {
    "even shards": 2,
    "uneven shards": 4,
    "an empty shard": 1,
    "one all-reduce": 2,
    "inputs untouched": 1,
}
FORBIDDEN = collective.FORBIDDEN
FEATURES = 4


def cases(seed: int) -> Iterator[Case]:
    draw = np.random.default_rng(seed)
    for p, samples in ((1, 5), (2, 8), (4, 8), (2, 7), (3, 7), (4, 9), (5, 3), (8, 3)):
        yield Case(p, seed, settings={"samples": samples})
    yield Case(3, seed, settings={"samples": 3 * int(draw.integers(3, 9)) + 1})
    yield Case(3, seed, "mpi", {"samples": 7})


def whole(case: Case) -> dict[str, np.ndarray]:
    draw = np.random.default_rng([case.seed, case["samples"]])
    shapes = {"w": (FEATURES,), "x": (case["samples"], FEATURES), "y": (case["samples"],)}
    return {name: draw.standard_normal(shape) for name, shape in shapes.items()}


def prepare(rank: int, case: Case) -> dict[str, np.ndarray]:
    data = whole(case)
    return {
        "w": data["w"],
        "x": np.array_split(data["x"], case.ranks)[rank].copy(),
        "y": np.array_split(data["y"], case.ranks)[rank].copy(),
    }


def run(comm: Any, answer: Any, case: Case, given: dict[str, np.ndarray]) -> dict[str, Any]:
    calls = Calls()
    got = answer.gradient(comm, calls.all_reduce, given["w"], given["x"], given["y"])
    return {"got": got, "calls": calls.log, "after": given}


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    data, p = whole(case), case.ranks
    total = data["x"].T @ (data["x"] @ data["w"] - data["y"])
    expected = total / case["samples"]
    shards = [prepare(rank, case) for rank in range(p)]
    means = [s["x"].T @ (s["x"] @ s["w"] - s["y"]) / max(1, len(s["x"])) for s in shards]
    hints: dict[str, Any] = {  # of two that are the same number, as with few samples, the first
        "this is the sum over all samples, not divided by their number": total,
        "this is the average of the ranks' averages: a sample of a small shard weighs more than "
        "one "
        "of a large shard; add up sums, and divide by all samples once": np.mean(means, axis=0),
        "this is the sum of the ranks' averages": np.sum(means, axis=0),
        "this is divided by the number of ranks, and not by that of samples": total / p,
    }
    wrong = None
    for number, rank in enumerate(ranks):
        own = {
            "this is divided by p times the samples of the rank's own shard: how many there are in "
            "all, a rank learns only by adding up the counts": total
            / (p * max(1, len(shards[number]["x"])))
        }
        wrong = compare(f"rank {number}'s gradient", rank["got"], expected, hints | own)
        if wrong:
            alone = compare("", rank["got"], means[number]) is None and p > 1
            wrong = f"rank {number} has the gradient of its own shard alone" if alone else wrong
            break
    if case["samples"] < p:
        yield "an empty shard", wrong
    else:
        yield ("uneven shards" if case["samples"] % p else "even shards"), wrong
    changed = (untouched(rank["after"], shards[r]) for r, rank in enumerate(ranks))
    yield "inputs untouched", next((wrong for wrong in changed if wrong), None)
    most = max(len(rank["calls"]) for rank in ranks)
    largest = max((size for rank in ranks for _, size in rank["calls"]), default=0)
    yield (
        "one all-reduce",
        (
            f"{most} all-reduces: the number of samples can travel in the same array as the "
            "gradient"
            if most > 1
            else "nothing is added up over the ranks"
            if not most
            else f"{largest} numbers are added up over the ranks, and the gradient and the count "
            f"are {FEATURES + 1}: samples stay on their rank"
            if largest > FEATURES + 1
            else None
        ),
    )
