"""Softmax cross-entropy: marks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises import single
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.single import compare, untouched

TITLE = "Softmax cross-entropy"
MINUTES = 40
FUNCTIONS = ("loss", "backward")
MARKS = {"loss": 3, "gradient": 3, "large logits": 2, "parts of a batch": 2, "inputs untouched": 1}
FORBIDDEN = single.FORBIDDEN

# samples, classes, size of the logits, samples in the whole batch
KINDS = [(5, 3, 1, 5), (1, 10, 1, 1), (4, 4, 1, 12), (3, 5, 1000, 3), (3, 5, 800, 9), (0, 3, 1, 7)]


def cases(seed: int) -> Iterator[Case]:
    for samples, classes, size, count in KINDS:
        settings = {"samples": samples, "classes": classes, "size": size, "count": count}
        yield Case(seed=seed, settings=settings)


def prepare(rank: int, case: Case) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(case.seed)
    samples, classes = case["samples"], case["classes"]
    return {
        "logits": draw.standard_normal((samples, classes)) * case["size"],
        "targets": draw.integers(0, classes, samples),
    }


def run(comm: Any, answer: Any, case: Case, given: dict[str, np.ndarray]) -> dict[str, Any]:
    arguments = given["logits"], given["targets"], case["count"]
    with np.errstate(all="ignore"):
        loss = answer.loss(*arguments)
        grad = answer.backward(*arguments)
    return {"loss": loss, "grad": grad, "after": given}


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    (got,), given = ranks, prepare(0, case)
    logits, targets, count = given["logits"], given["targets"], case["count"]
    rows = np.arange(len(targets))
    largest = logits.max(axis=1, keepdims=True, initial=-np.inf)
    log_p = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    losses = -log_p[rows, targets]
    grad = np.exp(log_p)
    grad[rows, targets] -= 1
    part = case["count"] != case["samples"]
    own = max(1, case["samples"])
    of_loss = compare(
        "the loss",
        got["loss"],
        np.asarray(losses.sum() / count),
        {
            "the loss is divided by the samples of this part: count is that of the whole batch": (
                losses.sum() / own
            ),
            "the loss is not divided by count": losses.sum(),
            "the sign is wrong: the loss is minus the logarithm": -losses.sum() / count,
        },
    )
    of_grad = compare(
        "the gradient",
        np.asarray(got["grad"], float).reshape(-1, case["classes"]),
        grad / count,
        {
            "the gradient is divided by the samples of this part, and count is the whole batch's": (
                grad / own
            ),
            "the gradient is not divided by count": grad,
            "1 is not subtracted for the true class": np.exp(log_p) / count,
        },
    )
    if case["size"] > 100:
        wrong = of_loss or of_grad
        if wrong and not np.isfinite([np.sum(got["loss"]), np.sum(got["grad"])]).all():
            wrong += (
                " (exp of a large number is infinite, and of a very small one 0: shift first, by "
            )
            wrong += "the largest logit of each row)"
        elif wrong and wrong == of_loss and "should be" in wrong:
            wrong += (
                " (p of the true class may be 0 here: log p is a difference of logits, without "
            )
            wrong += "the logarithm of p)"
        yield "large logits", wrong
    elif part:
        yield "parts of a batch", of_loss or of_grad
    else:
        yield "loss", of_loss
        yield "gradient", of_grad
    yield "inputs untouched", untouched(got["after"], given)
