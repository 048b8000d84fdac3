"""Adam, on a slice: marks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises import single
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.single import close, unequal

TITLE = "Adam, on a slice"
MINUTES = 30
FUNCTIONS = ("adam",)
MARKS = {"first step": 2, "later steps": 3, "in place": 2, "slices": 1, "gradient untouched": 1}
FORBIDDEN = single.FORBIDDEN
SETTINGS = {"lr": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-3}


def cases(seed: int) -> Iterator[Case]:
    for length, steps in ((5, 1), (5, 6), (1, 3), (0, 2), (64, 4)):
        yield Case(seed=seed, settings={"length": length, "steps": steps})


def prepare(rank: int, case: Case) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(case.seed)
    long = case["length"] + 4
    return {
        "w": draw.standard_normal(long),
        "m": np.zeros(long),
        "v": np.zeros(long),
        "g": draw.standard_normal((case["steps"], case["length"])),
    }


def step(case: Case, w: Any, g: Any, m: Any, v: Any, t: int, slip: str = "") -> None:
    """The rule of the paper; ``slip`` names a known mistake, for the feedback."""
    lr, b1, b2, eps = (SETTINGS[name] for name in ("lr", "b1", "b2", "eps"))
    m[...] = b1 * m + (1 - b1) * g
    square = m * m if slip == "square of the average" else g * g
    v[...] = b2 * v + (1 - b2) * square
    if slip == "one decay":
        v[...] += (b1 - b2) * (v - (1 - b2) * square) / b2 + (b2 - b1) * square
    at = t + 1 if slip == "another t" else t
    big_m, big_v = m / (1 - b1**at), v / (1 - b2**at)
    if slip == "no correction":
        big_m, big_v = m, v
    if slip == "eps inside":
        w -= lr * big_m / np.sqrt(big_v + eps)
    elif slip == "no root":
        w -= lr * big_m / (big_v + eps)
    elif slip == "eps first":
        w -= lr * big_m / ((np.sqrt(v) + eps) / np.sqrt(1 - b2**t))
    else:
        w -= lr * big_m / (np.sqrt(big_v) + eps)


SLIPS = {
    "no correction": "the averages are not corrected: divide m by 1 - b1 ** t and v by 1 - b2 ** t",
    "eps inside": "eps is added to the root, sqrt(V) + eps, not under it",
    "no root": "the step is divided by the *root* of V",
    "eps first": "eps is added after the correction, sqrt(V) + eps: not to the root of v",
    "another t": "the correction takes one step more than the t that is given: t is the step of "
    "this array and counts from 1, whatever was called before",
    "square of the average": "v is an average of the squares of g, not the square of m",
    "one decay": "v decays by b2, and here by b1",
}


def run(comm: Any, answer: Any, case: Case, given: dict[str, Any]) -> dict[str, Any]:
    own = slice(2, 2 + case["length"])
    w, m, v = (given[name][own] for name in ("w", "m", "v"))
    grads = given["g"].copy()
    for t in range(1, case["steps"] + 1):
        answer.adam(w, given["g"][t - 1], m, v, t, **SETTINGS)
    return {
        "w": given["w"], "m": given["m"], "v": given["v"],
        "g kept": bool((grads == given["g"]).all()),
    }  # fmt: skip


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    (got,) = ranks
    own, mark = slice(2, 2 + case["length"]), "first step" if case["steps"] == 1 else "later steps"
    arrays = {name: np.asarray(got[name], float) for name in ("w", "m", "v")}
    start, wanted = prepare(0, case), {}
    for slip in ("", *SLIPS):
        copy = prepare(0, case)
        w, m, v = (copy[name][own] for name in ("w", "m", "v"))
        for t in range(1, case["steps"] + 1):
            step(case, w, copy["g"][t - 1], m, v, t, slip)
        wanted[slip] = copy
    wrong = None
    if not close(arrays["w"][own], wanted[""]["w"][own]):
        found = [slip for slip in SLIPS if close(arrays["w"][own], wanted[slip]["w"][own])]
        one = int(np.argmax(np.abs(arrays["w"][own] - wanted[""]["w"][own])))
        is_now, should = unequal(arrays["w"][own][one], wanted[""]["w"][own][one])
        after = f"after {case['steps']} step{'s' * (case['steps'] > 1)}"
        wrong = (
            SLIPS[found[0]] if found else f"{after} w[{one}] is {is_now}, and should be {should}"
        )
    yield mark, wrong
    same = [
        name
        for name in ("w", "m", "v")
        if case["length"] and (arrays[name][own] == start[name][own]).all()
    ]
    yield (
        "in place",
        (
            f"{', '.join(same)} has not changed: write into the array (w -= ..., m[...] = ...); "
            "w = ... only gives another array that name"
            if same
            else None
        ),
    )
    outside = [
        name
        for name in ("w", "m", "v")
        if not np.array_equal(np.delete(arrays[name], own), np.delete(start[name], own))
    ]
    yield "slices", f"numbers beside the slice of {outside[0]} were changed" if outside else None
    yield "gradient untouched", None if got["g kept"] else "g was changed"
