"""Buckets that are sent while the backward still runs: marks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.comm.machine import Machine
from minidist.engine.array import work
from minidist.exercises import collective
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.given import Calls

TITLE = "Buckets that are sent while the backward still runs"
MINUTES = 75
FUNCTIONS = ("Buckets",)
MARKS = {"result": 3, "number of buckets": 2, "same order": 1, "overlap": 3, "used twice": 1}
FORBIDDEN = collective.FORBIDDEN
FLOPS = 3_000_000  # of a layer's backward: about as long as a ring of 20,000 numbers on 4 ranks


def cases(seed: int) -> Iterator[Case]:
    kinds: list[tuple[list[int], int]] = [
        ([50, 60, 70, 80], 100),
        ([50, 60, 70, 80], 10**9),
        ([50, 60, 70, 80], 1),
        ([50, 50, 60, 40], 100),  # full to the last number
        ([10, 300, 10], 100),
        ([7], 100),
    ]
    for p in (1, 2, 4):
        for sizes, limit in kinds:
            yield Case(p, seed, settings={"sizes": sizes, "limit": limit, "steps": 1})
        yield Case(p, seed, settings={"sizes": [40, 50, 60], "limit": 80, "steps": 2})
    yield Case(4, seed, settings={"sizes": [20_000] * 6, "limit": 15_000, "steps": 1})
    yield Case(2, seed, "mpi", {"sizes": [50, 60, 70], "limit": 100, "steps": 1})


def prepare(rank: int, case: Case) -> list[list[np.ndarray]]:
    draw = np.random.default_rng([case.seed, rank, len(case["sizes"])])
    return [
        [draw.integers(-99, 99, size) / 4.0 for size in case["sizes"]] for _ in range(case["steps"])
    ]


def run(comm: Any, answer: Any, case: Case, given: list[list[np.ndarray]]) -> dict[str, Any]:
    calls, sent_after = Calls(), []
    buckets = answer.Buckets(comm, calls.all_reduce, case["limit"])
    for grads in given:
        for grad in grads:
            work.flops += FLOPS  # this layer's backward, on the simulator's clock
            buckets.ready(grad)
        buckets.finish()
        sent_after.append(len(calls.log))
    return {"got": given, "calls": calls.log, "sent after": sent_after}


def sizes_of_buckets(case: Case, over: bool = False) -> list[int]:
    """Numbers in each bucket; ``over``: for an answer that waits until the limit is exceeded."""
    buckets, filled = [], 0
    for size in case["sizes"]:
        filled += size
        if filled >= case["limit"] + over:
            buckets.append(filled)
            filled = 0
    return buckets + [filled] * (filled > 0)


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    p = case.ranks
    inputs = [prepare(rank, case) for rank in range(p)]
    wrong = None
    for number, rank in enumerate(ranks):
        for step, grads in enumerate(rank["got"]):
            for layer, grad in enumerate(grads):
                expected = np.sum([inputs[r][step][layer] for r in range(p)], axis=0)
                if not np.array_equal(grad, expected):
                    untouched = np.array_equal(grad, inputs[number][step][layer])
                    wrong = wrong or (
                        f"rank {number}'s gradient number {layer} "
                        + (
                            "has not changed: the sum must be copied back into it, "
                            "after the future's wait()"
                            if untouched
                            else "is the mean of the ranks, and the sum is wanted"
                            if np.array_equal(np.multiply(grad, p), expected)
                            else "is not the sum over the ranks"
                        )
                    )
    yield ("used twice" if case["steps"] > 1 else "result"), wrong
    expected_sizes = sizes_of_buckets(case) * case["steps"]
    got = [size for _, size in ranks[0]["calls"]]
    reason = None
    if got != expected_sizes:
        reason = f"buckets of {got} numbers, and with a limit of {case['limit']} they are "
        reason += str(expected_sizes)
        if len(got) == len(case["sizes"]) * case["steps"]:
            reason = (
                "an all-reduce for each gradient: collect them until the limit is reached; "
                + reason
            )
        elif got == sizes_of_buckets(case, over=True) * case["steps"]:
            reason = "a bucket is full as soon as it has limit numbers, not one more; " + reason
        elif len(got) == case["steps"]:
            reason = "everything in one all-reduce: send a bucket when it is full; " + reason
    yield "number of buckets", reason
    orders = [[size for _, size in rank["calls"]] for rank in ranks]
    yield (
        "same order",
        (
            "ranks send different buckets: they would be added to the wrong ones"
            if any(order != orders[0] for order in orders)
            else None
        ),
    )
    if len(case["sizes"]) == 6 and p > 1 and case.world == "local":
        # Half of the time that sending takes would do: six backwards hide five of six rings.
        alone = 6 * FLOPS / Machine().flops
        spent = ranks[0]["seconds"] - alone
        yield (
            "overlap",
            (
                f"the step takes {ranks[0]['seconds']:.6f} s on the simulator's clock, and the "
                f"backward alone {alone:.6f} s: nothing is sent while it runs; start a full bucket "
                "at once, with comm.spawn, and wait in finish"
                if spent > 0.5 * alone
                else None
            ),
        )
