"""ZeRO stage 2: marks. arXiv 1910.02054, section 5.2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minidist.exercises import sharded
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.given import Calls
from minidist.exercises.sharded import LONG, STEPS, adam, gradient, held_now

TITLE = "ZeRO stage 2: a shard of the gradients"
MINUTES = 45
FUNCTIONS = ("Zero2",)
MARKS = {"result": 4, "ranks agree": 1, "bytes": 2, "held": 4}
FORBIDDEN = sharded.FORBIDDEN
PARTS = 3  # microbatches a step


def cases(seed: int) -> Iterator[Case]:
    for ranks, length in sharded.sizes(seed):
        yield Case(ranks, seed, settings={"length": length})
    yield Case(2, seed, "mpi", {"length": 9})


def prepare(rank: int, case: Case) -> dict[str, Any]:
    grads = [gradient(case, rank, number) for number in range(STEPS * PARTS)]
    return {"w": sharded.start(case), "grads": grads}


def run(comm: Any, answer: Any, case: Case, given: dict[str, Any]) -> dict[str, Any]:
    calls, held = Calls(), 0
    optimizer = answer.Zero2(comm, calls.reduce_scatter, calls.all_gather, adam, given["w"])
    for t in range(STEPS):
        for part in range(PARTS):
            grad = given["grads"][t * PARTS + part].copy()  # a microbatch's own memory
            optimizer.add(grad)
            del grad
            held = max(held, held_now(comm, case))
        optimizer.step()
    return {"w": given["w"], "calls": calls.log, "held": held}


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    p, n = case.ranks, case["length"]
    yield from sharded.judge_result(case, ranks, PARTS)
    differ = [number for number, rank in enumerate(ranks) if rank["w"] != ranks[0]["w"]]
    yield "ranks agree", f"ranks {differ} have other parameters than rank 0" if differ else None
    sent = sum(rank["bytes"] for rank in ranks)
    once = (p - 1) * n * 8 * STEPS
    wrong = None
    if sent == 2 * once and p > 1:
        wrong = (
            f"one reduce-scatter a step: that is ZeRO-1 with gradients added up first; ZeRO-2 "
            "sends "
            f"each of the {PARTS} microbatches at once, so that no whole gradient is kept"
        )
    elif sent != (PARTS + 1) * once:
        wrong = (
            f"the ranks send {sent:,} bytes together, and {PARTS} reduce-scatters and an "
            "all-gather "
            f"a step are {(PARTS + 1) * once:,}"
        )
    yield "bytes", wrong
    if n >= LONG:
        held = max(rank["held"] for rank in ranks) / 8
        allowed = 3 * n  # of all ranks together
        yield (
            "held",
            (
                f"between microbatches the ranks keep {held:,.0f} numbers together, and 3n for the "
                f"shards of gradients and state are {allowed:,}: keep no whole gradient, nor an "
                "array as long as one"
                if held > 1.1 * allowed + 2000 * p and p > 1
                else None
            ),
        )
