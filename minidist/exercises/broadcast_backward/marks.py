"""The backward of a broadcast: marks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises import single
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.single import compare, untouched

TITLE = "The backward of a broadcast"
MINUTES = 30
FUNCTIONS = ("unbroadcast",)
MARKS = {"axes in front": 2, "axes of length 1": 2, "both, and neither": 2, "inputs untouched": 1}
FORBIDDEN = single.FORBIDDEN

# The mark, the tensor's shape, the shape that it was broadcast to.
SHAPES: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
    ("axes in front", (3,), (4, 3)),
    ("axes in front", (3,), (2, 4, 3)),
    ("axes in front", (), (4, 3)),
    ("axes of length 1", (4, 1), (4, 3)),
    ("axes of length 1", (1, 3), (4, 3)),
    ("axes of length 1", (2, 1, 3), (2, 4, 3)),
    ("both, and neither", (1, 3), (2, 4, 3)),
    ("both, and neither", (4, 3), (4, 3)),
    ("both, and neither", (3, 1), (2, 3, 5)),
    ("both, and neither", (1, 1), (1, 4)),
    ("both, and neither", (0, 1), (0, 3)),
]


def cases(seed: int) -> Iterator[Case]:
    for number, (_, shape, broadcast) in enumerate(SHAPES):
        yield Case(seed=seed, settings={"shape": shape, "from": broadcast, "number": number})


def prepare(rank: int, case: Case) -> np.ndarray:
    return np.random.default_rng(case.seed).standard_normal(tuple(case["from"]))


def run(comm: Any, answer: Any, case: Case, grad: np.ndarray) -> dict[str, Any]:
    got = np.asarray(answer.unbroadcast(grad, tuple(case["shape"])))
    return {"got": got, "shape": got.shape, "after": grad}


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    (got,), grad, shape = ranks, prepare(0, case), tuple(case["shape"])
    # The slope of sum(grad * broadcast(x)) with respect to each number of x, one by one.
    expected = np.zeros(shape)
    for index in np.ndindex(shape):
        one = np.zeros(shape)
        one[index] = 1
        expected[index] = (grad * one).sum()
    mark = SHAPES[case["number"]][0]
    if tuple(got["shape"]) != shape:
        wrong: str | None = (
            f"a tensor of shape {shape} needs a gradient of that shape, and this has "
            f"{tuple(got['shape'])}"
        )
    else:
        every = np.asarray(got["got"], float).reshape(shape)
        count = max(1, grad.size) / max(1, expected.size)
        wrong = compare(
            "the gradient",
            every,
            expected,
            {
                "the gradient is a sum over the repeated axes, and this is a mean": expected
                / count,
                "this takes one of the repeated gradients, and the sum of them is wanted": (
                    grad.reshape(-1)[: expected.size].reshape(shape)
                    if grad.size >= expected.size
                    else expected
                ),
            },
        )
    yield mark, wrong
    yield "inputs untouched", untouched({"grad": got["after"]}, {"grad": grad})
