"""Two layers cut over the ranks: marks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises import collective
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.given import Calls
from minidist.exercises.single import compare, untouched

TITLE = "Two layers cut over the ranks"
MINUTES = 60
FUNCTIONS = ("forward", "backward")
MARKS = {
    "forward": 3,
    "own gradients": 3,
    "gradient of x": 2,
    "gradient of d": 1,
    "messages": 3,
    "inputs untouched": 1,
}
FORBIDDEN = collective.FORBIDDEN
NAMES = ("x", "a", "b", "c", "d")


def cases(seed: int) -> Iterator[Case]:
    for p, hidden in ((1, 4), (2, 6), (3, 7), (4, 4), (4, 10)):
        yield Case(p, seed, settings={"hidden": hidden})
    yield Case(2, seed, "mpi", {"hidden": 6})


def whole(case: Case) -> dict[str, np.ndarray]:
    draw, hidden = np.random.default_rng(case.seed), case["hidden"]
    shapes = {"x": (5, 3), "a": (3, hidden), "b": (hidden,), "c": (hidden, 2), "d": (2,)}
    found = {name: draw.standard_normal(shape) for name, shape in shapes.items()}
    return found | {"grad": draw.standard_normal((5, 2))}


def own(case: Case, rank: int, array: np.ndarray, axis: int) -> np.ndarray:
    return np.ascontiguousarray(np.array_split(array, case.ranks, axis)[rank])


def prepare(rank: int, case: Case) -> dict[str, np.ndarray]:
    cut = {"a": 1, "b": 0, "c": 0}
    return {
        name: own(case, rank, array, cut[name]) if name in cut else array
        for name, array in whole(case).items()
    }


def run(comm: Any, answer: Any, case: Case, given: dict[str, np.ndarray]) -> dict[str, Any]:
    calls = Calls()

    def all_reduce(comm: Any, array: np.ndarray) -> None:
        flat = np.ascontiguousarray(array, np.float64).reshape(-1)
        calls.all_reduce(comm, flat)
        array[...] = flat.reshape(array.shape)

    parts = [given[name] for name in NAMES[1:]]
    y, h = answer.forward(comm, all_reduce, given["x"], *parts)
    forward = len(calls.log)
    grads = answer.backward(comm, all_reduce, given["grad"], given["x"], h, *parts)
    return {
        "y": y, "grads": list(grads), "forward": forward, "calls": calls.log, "after": given,
    }  # fmt: skip


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    w, p = whole(case), case.ranks
    h = np.maximum(w["x"] @ w["a"] + w["b"], 0)
    product = h @ w["c"]
    grad_h = np.where(h > 0, w["grad"] @ w["c"].T, 0)
    linear, no_slope = (w["x"] @ w["a"] + w["b"]) @ w["c"], w["grad"] @ w["c"].T
    unmasked = {"a": w["x"].T @ no_slope, "b": no_slope.sum(axis=0)}
    wanted = {
        "x": grad_h @ w["a"].T,
        "a": w["x"].T @ grad_h,
        "b": grad_h.sum(axis=0),
        "c": h.T @ w["grad"],
        "d": w["grad"].sum(axis=0),
    }
    found: dict[str, str | None] = dict.fromkeys(("y", *NAMES))
    for number, rank in enumerate(ranks):
        mine = np.array_split(np.arange(case["hidden"]), p)[number]
        part_of_y = h[:, mine] @ w["c"][mine]
        part_of_x = grad_h[:, mine] @ w["a"][:, mine].T
        found["y"] = found["y"] or compare(
            f"y on rank {number}",
            rank["y"],
            product + w["d"],
            {
                "the bias d is added on every rank before the sum, so it counts p times": (
                    product + p * w["d"]
                ),
                "y is the part of this rank's hidden units: it must be summed over the ranks": (
                    part_of_y + w["d"]
                ),
                "the bias d is missing": product,
                "the ReLU comes between the layers, before the product with c": (
                    np.maximum(linear + w["d"], 0)
                ),
                "the ReLU is missing": linear + w["d"],
            },
        )
        cut = {"a": 1, "b": 0, "c": 0}
        for name, got in zip(NAMES, rank["grads"], strict=True):
            right = wanted[name]
            hints: dict[str, Any] = {}
            if name in cut:
                right = own(case, number, right, cut[name])
                hints = {
                    f"the gradient of {name} is p times too large: grad is the same on all ranks, "
                    "and must not be summed": right * p
                }
                if name in unmasked:
                    hints["the slope of the ReLU is missing: it is 0 where h is 0"] = own(
                        case, number, unmasked[name], cut[name]
                    )
            elif name == "x":
                hints = {
                    "the gradient of x is the part of this rank's hidden units: it must be "
                    "summed": (part_of_x),
                }
            else:
                hints = {
                    "the gradient of d is summed over the ranks, each of which has it": right * p
                }
            found[name] = found[name] or compare(
                f"the gradient of {name} on rank {number}",
                got,
                right,
                {why: value for why, value in hints.items() if p > 1 or "ReLU" in why},
            )
    yield "forward", found["y"]
    yield "own gradients", found["a"] or found["b"] or found["c"]
    yield "gradient of x", found["x"]
    yield "gradient of d", found["d"]
    changed = (untouched(rank["after"], prepare(r, case)) for r, rank in enumerate(ranks))
    yield "inputs untouched", next((wrong for wrong in changed if wrong), None)
    for rank in ranks:
        calls = rank["calls"]
        sizes = [size for _, size in calls]
        if sizes != [product.size, w["x"].size] or rank["forward"] != 1:
            yield (
                "messages",
                (
                    f"all-reduces of {sizes} numbers, and one of y ({product.size}) in the forward "
                    "and one "
                    f"of the gradient of x ({w['x'].size}) in the backward are enough"
                ),
            )
            return
    yield "messages", None
