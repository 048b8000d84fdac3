"""What the exercises on ZeRO share: Adam as it is given, the oracle, and the marks of a shard."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from tracemalloc import get_traced_memory
from typing import Any

import numpy as np

from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.single import unequal
from minidist.exercises.watch import barrier

FORBIDDEN = ("minidist.parallel", "minidist.collectives", "minidist.optim", "minidist.compare")
STEPS = 3
LONG = 1000  # numbers: from here on memory is looked at


def adam(w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, t: int) -> None:
    """Adam, in place: arXiv 1412.6980, algorithm 1."""
    m[...] = 0.8 * m + 0.2 * g
    v[...] = 0.9 * v + 0.1 * g * g
    w -= 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)


def sizes(seed: int) -> Iterator[tuple[int, int]]:
    """Ranks and lengths: divisible or not, shorter than the ranks, and long, to be weighed."""
    yield from ((1, 6), (2, 6), (3, 7), (4, 10), (4, 3), (2, 20_000), (4, 20_000))
    yield 3, 20 + int(np.random.default_rng(seed).integers(1, 9))


def start(case: Case) -> np.ndarray:
    return np.random.default_rng([case.seed, case["length"]]).standard_normal(case["length"])


def gradient(case: Case, rank: int, number: int) -> np.ndarray:
    draw = np.random.default_rng([case.seed, rank, number])
    return draw.integers(-50, 50, case["length"]) / 8.0


def expected(case: Case, each_step: int = 1, divide: float = 1.0) -> np.ndarray:
    """The parameters after all steps, of Adam on the sum of all gradients."""
    w = start(case)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, STEPS + 1):
        grads = [
            gradient(case, rank, (t - 1) * each_step + part)
            for rank in range(case.ranks)
            for part in range(each_step)
        ]
        adam(w, np.sum(grads, axis=0) / divide, m, v, t)
    return w


def held_now(comm: Any, case: Case) -> int:
    """Bytes that the ranks of this process keep besides what they were given; 0 for short arrays.

    All ranks wait until it is looked at: none is in the middle of a step, or has ended. A small
    array is lost among Python's own objects.
    """
    if case["length"] < LONG:
        return 0
    barrier(comm)
    gc.collect()
    held = get_traced_memory()[0]
    barrier(comm)
    return held


def judge_result(case: Case, ranks: list[dict[str, Any]], each_step: int = 1) -> Iterator[Verdict]:
    right, mean = expected(case, each_step), expected(case, each_step, case.ranks)
    wrong = None
    for number, rank in enumerate(ranks):
        got = np.asarray(rank["w"], float)
        if np.allclose(got, right, rtol=1e-9, atol=1e-11):
            continue
        parts = np.array_split(np.isclose(got, right, rtol=1e-9, atol=1e-11), case.ranks)
        if case.ranks > 1 and np.allclose(got, mean, rtol=1e-9, atol=1e-11):
            wrong = "the gradients are divided by the number of ranks: they are to be added up"
        elif case.ranks > 1 and parts[number].all() and parts[number].size:
            wrong = (
                f"rank {number} has its own part right and the others not: after the step, "
                "everybody needs the parts of all ranks"
            )
        elif np.array_equal(got, start(case)):
            wrong = f"rank {number}'s parameters have not changed: w is to be changed in place"
        else:
            first = int(np.argmax(~np.isclose(got, right, rtol=1e-9, atol=1e-11)))
            is_now, should = unequal(got[first], right[first])
            wrong = (
                f"after {STEPS} steps rank {number} has w[{first}] = {is_now}, and serial training "
                f"has {should}"
            )
        break
    yield "result", wrong
