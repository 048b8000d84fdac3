"""All-reduce by halving and doubling: marks. See ``collectives/halving_doubling.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minidist.exercises import collective
from minidist.exercises.collective import judge_count, judge_memory, judge_result
from minidist.exercises.exercise import Case, Verdict

TITLE = "All-reduce by halving and doubling"
MINUTES = 75
FUNCTIONS = ("all_reduce",)
MARKS = {"result": 4, "ranks agree": 1, "messages": 3, "bytes": 3, "memory": 1}
FORBIDDEN = collective.FORBIDDEN
prepare, run = collective.prepare, collective.run


def cases(seed: int) -> Iterator[Case]:
    return collective.cases(seed, (1, 2, 4, 8))


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    p, n = case.ranks, case["length"]
    rounds = p.bit_length() - 1
    yield from judge_result(case, ranks)
    yield from judge_count(
        "messages",
        case,
        [rank["messages"] for rank in ranks],
        [2 * rounds] * p,
        f"halving and doubling sends 2 log2 p = {2 * rounds} messages a rank",
        {
            "each rank sends 2(p - 1) messages: that is a ring": [2 * (p - 1)] * p,
            "each rank sends log2 p messages: recursive doubling of whole arrays, or one half is "
            "missing": [rounds] * p,
        },
    )
    sent = [rank["bytes"] for rank in ranks]
    # In each half of the algorithm, all but one part of the array is sent by all ranks together.
    total = 2 * (p - 1) * n * 8
    wrong = None
    if p > 2 and n and min(sent) >= rounds * n * 8:
        wrong = (
            "each rank sends the whole array in each round: n log2 p numbers; halving sends n/2, "
            "then n/4, and so on"
        )
    elif sum(sent) != total:
        wrong = (
            f"the ranks send {sum(sent):,} bytes together, and 2n(p - 1) numbers are {total:,}: "
            "each round of halving sends half of what the last one sent"
        )
    yield "bytes", wrong
    yield from judge_memory(
        case,
        ranks,
        max(0.5, 1 - 1 / p),  # 1/2 + 1/4 + ... if each round has a buffer of its own
        "halving needs half an array more, into which it receives, and never a whole one",
    )
