"""The backward of a matrix product: marks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises import single
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.single import compare, untouched

TITLE = "The backward of a matrix product"
MINUTES = 20
FUNCTIONS = ("backward",)
MARKS = {"gradient of a": 3, "gradient of b": 3, "inputs untouched": 1}
FORBIDDEN = single.FORBIDDEN


def cases(seed: int) -> Iterator[Case]:
    draw = np.random.default_rng(seed)
    sizes = [(2, 3, 4), (3, 3, 3), (1, 5, 1), (4, 1, 2), tuple(draw.integers(2, 7, 3).tolist())]
    for n, k, m in sizes:
        yield Case(seed=seed, settings={"n": n, "k": k, "m": m})


def prepare(rank: int, case: Case) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(case.seed)
    n, k, m = case["n"], case["k"], case["m"]
    shapes = {"grad": (n, m), "a": (n, k), "b": (k, m)}
    return {name: draw.standard_normal(shape) for name, shape in shapes.items()}


def run(comm: Any, answer: Any, case: Case, given: dict[str, np.ndarray]) -> dict[str, Any]:
    grad_a, grad_b = answer.backward(given["grad"], given["a"], given["b"])
    return {"grad_a": grad_a, "grad_b": grad_b, "after": given}


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    (got,), given = ranks, prepare(0, case)
    grad, a, b = given["grad"], given["a"], given["b"]
    square = case["n"] == case["k"] == case["m"]
    hints_a = {"the gradient of a is grad @ b.T: b is not transposed": grad @ b} if square else {}
    hints_b = (
        {
            "the gradient of b is a.T @ grad: a is not transposed": a @ grad,
            "the gradient of b is a.T @ grad: the factors are exchanged": grad @ a.T,
        }
        if square
        else {}
    )
    of_a = compare("grad_a", got["grad_a"], grad @ b.T, hints_a)
    of_b = compare("grad_b", got["grad_b"], a.T @ grad, hints_b)
    exchanged = (compare("", got["grad_a"], a.T @ grad), compare("", got["grad_b"], grad @ b.T))
    if of_a and of_b and exchanged == (None, None):
        of_a = of_b = "the two gradients are exchanged: return (grad_a, grad_b)"
    yield "gradient of a", of_a
    yield "gradient of b", of_b
    yield "inputs untouched", untouched(got["after"], given)
