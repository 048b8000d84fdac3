"""What the exercises on ZeRO share: Adam as it is given, the oracle, and the marks of a shard."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
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


Grads = np.ndarray  # of all steps: (steps, ranks, microbatches of a step, length)
Total = Callable[[Grads, int], np.ndarray]  # the gradient of a step, made of them


def right(grads: Grads, step: int) -> np.ndarray:
    return grads[step].sum(axis=(0, 1))


def own_alone(grads: Grads, step: int) -> np.ndarray:
    """Each rank's part of its own gradient."""
    ranks = grads.shape[1]
    parts = [np.array_split(grads[step, rank].sum(axis=0), ranks)[rank] for rank in range(ranks)]
    return np.concatenate(parts)


MISTAKES: dict[str, Total] = {
    "the gradients are divided by the number of ranks: they are to be added up": (
        lambda grads, step: right(grads, step) / grads.shape[1]
    ),
    "the gradients are divided by the number of microbatches: they are to be added up": (
        lambda grads, step: right(grads, step) / grads.shape[2]
    ),
    "each rank steps with its own gradient alone: reduce_scatter returns the sum over all ranks": (
        own_alone
    ),
    "only the last microbatch of a step counts: each is to be added to those before": (
        lambda grads, step: grads[step, :, -1].sum(axis=0)
    ),
    "gradients of earlier steps are still in the sum: each step begins from zero": (
        lambda grads, step: grads[: step + 1].sum(axis=(0, 1, 2))
    ),
}


def expected(case: Case, each_step: int = 1, total: Total = right) -> np.ndarray:
    """The parameters after all steps, of Adam on ``total`` of the gradients."""
    grads = np.array(
        [
            [[gradient(case, rank, t * each_step + part) for part in range(each_step)]
             for rank in range(case.ranks)]
            for t in range(STEPS)
        ]
    )  # fmt: skip
    w = start(case)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(STEPS):
        adam(w, total(grads, t), m, v, t + 1)
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
    wanted, wrong = expected(case, each_step), None

    def near(got: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.isclose(got, other, rtol=1e-9, atol=1e-11)

    for number, rank in enumerate(ranks):
        got = np.asarray(rank["w"], float)
        if near(got, wanted).all():
            continue
        parts = np.array_split(near(got, wanted), case.ranks)
        mistakes = (
            why
            for why, total in MISTAKES.items()
            if near(got, expected(case, each_step, total)).all()
        )
        if mistake := next(mistakes, None):
            wrong = mistake
        elif case.ranks > 1 and parts[number].all() and parts[number].size:
            wrong = (
                f"rank {number} has its own part right and the others not: after the step, "
                "everybody needs the parts of all ranks"
            )
        elif not np.isfinite(got).all():
            wrong = f"rank {number} has NaN or infinity in w: with t = 0 Adam divides by 0; t is 1 "
            wrong += "in the first step"
        elif np.array_equal(got, start(case)):
            wrong = f"rank {number}'s parameters have not changed: w is to be changed in place"
        else:
            first = int(np.argmax(~near(got, wanted)))
            is_now, should = unequal(got[first], wanted[first])
            wrong = (
                f"after {STEPS} steps rank {number} has w[{first}] = {is_now}, and serial training "
                f"has {should}"
            )
        break
    yield "result", wrong
