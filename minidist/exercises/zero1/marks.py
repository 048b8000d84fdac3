"""ZeRO stage 1: marks. arXiv 1910.02054, section 5.1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minidist.exercises import sharded
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.given import Calls
from minidist.exercises.sharded import LONG, STEPS, adam, gradient, held_now

TITLE = "ZeRO stage 1: a shard of the optimizer's state"
MINUTES = 60
FUNCTIONS = ("Zero1",)
MARKS = {"result": 4, "ranks agree": 1, "bytes": 3, "state held": 3}
FORBIDDEN = sharded.FORBIDDEN


def cases(seed: int) -> Iterator[Case]:
    for ranks, length in sharded.sizes(seed):
        yield Case(ranks, seed, settings={"length": length})
    yield Case(2, seed, "mpi", {"length": 9})


def prepare(rank: int, case: Case) -> dict[str, Any]:
    return {"w": sharded.start(case), "grads": [gradient(case, rank, t) for t in range(STEPS)]}


def run(comm: Any, answer: Any, case: Case, given: dict[str, Any]) -> dict[str, Any]:
    calls, stepped = Calls(), []

    def watched_adam(w: Any, g: Any, m: Any, v: Any, t: int) -> None:
        stepped.append(int(w.size))
        adam(w, g, m, v, t)

    optimizer = answer.Zero1(comm, calls.reduce_scatter, calls.all_gather, watched_adam, given["w"])
    for grad in given["grads"]:
        optimizer.step(grad)
    held = held_now(comm, case)
    return {"w": given["w"], "calls": calls.log, "stepped": stepped, "held": held}


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    p, n = case.ranks, case["length"]
    yield from sharded.judge_result(case, ranks)
    differ = [number for number, rank in enumerate(ranks) if rank["w"] != ranks[0]["w"]]
    yield "ranks agree", f"ranks {differ} have other parameters than rank 0" if differ else None
    sent, total = sum(rank["bytes"] for rank in ranks), 2 * (p - 1) * n * 8 * STEPS
    wrong = None
    if sent > total:
        wrong = (
            f"the ranks send {sent:,} bytes together, and a reduce-scatter of the gradients and an "
            f"all-gather of the parameters are {total:,}: 2n(p - 1) numbers a step"
        )
    elif sent < total:
        wrong = (
            f"the ranks send {sent:,} bytes together, and {total:,} are needed: gradients "
            "(reduce-scatter) and parameters (all-gather) of every rank"
        )
    yield "bytes", wrong
    if n >= LONG:
        # All ranks live in one process: what they hold together, besides what they were given.
        state = max(rank["held"] for rank in ranks) / 8
        whole = [rank["stepped"][0] for rank in ranks if rank["stepped"]] == [n] * p
        yield (
            "state held",
            (
                f"the ranks keep {state:,.0f} numbers together, and m and v of all parts are 2n = "
                f"{2 * n:,}: "
                + (
                    "each rank steps all parameters, as in plain data parallel training"
                    if whole
                    else "allocate m and v for the own part only"
                )
                if state > 2 * n * 1.25 + 4000 * p or (whole and p > 1)
                else None
            ),
        )
