"""Ring all-reduce: marks. The formulas are derived in ``minidist/collectives/ring.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minidist.exercises import collective
from minidist.exercises.collective import judge_count, judge_memory, judge_result
from minidist.exercises.exercise import Case, Verdict

TITLE = "Ring all-reduce"
MINUTES = 60
FUNCTIONS = ("all_reduce",)
MARKS = {"result": 4, "ranks agree": 1, "messages": 2, "bytes": 3, "neighbours": 1, "memory": 1}
FORBIDDEN = collective.FORBIDDEN
cases, prepare, run = collective.cases, collective.prepare, collective.run


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    p, n = case.ranks, case["length"]
    yield from judge_result(case, ranks)
    yield from judge_count(
        "messages",
        case,
        [rank["messages"] for rank in ranks],
        [2 * (p - 1)] * p,
        f"a ring sends 2(p - 1) = {2 * (p - 1)} messages a rank",
        {
            "each rank sends p - 1 messages: one half, reduce-scatter or all-gather, is missing, "
            "or whole arrays go around": [p - 1] * p,
            "each rank sends to every other one": [p * (p - 1)] * p,
        },
    )
    sent = [rank["bytes"] for rank in ranks]
    # Each chunk of the array is sent by all ranks but one in each half: 2(p - 1) times in all. Who
    # leaves out which chunk is the answer's choice, and which chunks are longer (all n mod p
    # numbers may be in one), so only the sum and the spread are fixed.
    total, longest = 2 * (p - 1) * n * 8, min(n, n // p + p - 1) * 8
    low = 2 * (n * 8 - longest) if p > 1 else 0
    formula = "a ring sends 2n(p - 1)/p numbers a rank, a chunk of n/p in each round"
    whole = f"each rank sends the whole array in each round: n(p - 1) numbers or more; {formula}"
    wrong = None
    if p > 2 and n and min(sent) >= n * 8 * (p - 1):
        wrong = whole
    elif 2 * sum(sent) == total != 0 and all(one["messages"] == 2 * (p - 1) for one in ranks):
        wrong = "4 bytes a number are sent, and the array has 8: the sum loses digits; " + formula
    elif sum(sent) == total and not all(low <= one <= 2 * n * 8 for one in sent):
        wrong = (
            f"one rank sends {min(sent):,} bytes and another {max(sent):,}: their chunks are not "
            f"alike, or a rank sends the same chunk again and again; {formula}"
        )
    elif sum(sent) != total:
        wrong = (
            f"the ranks send {sum(sent):,} bytes together, and 2n(p - 1) numbers are {total:,}; "
            f"{formula}"
        )
    yield "bytes", wrong
    away = {
        peer
        for number, rank in enumerate(ranks)
        for call, peer, _ in rank["log"]
        if call in ("send", "isend", "sendrecv")
        and peer not in ((number + 1) % p, (number - 1) % p)
    }
    yield (
        "neighbours",
        (
            "a rank sends to one that is not its neighbour: on a ring each rank sends to the same "
            "neighbour in every round"
            if away
            else None
        ),
    )
    yield from judge_memory(
        case,
        ranks,
        2 / p,  # a new buffer in each round is made while the last one is still there
        "a ring needs one chunk more, n/p numbers, or two, and no copy of the array",
    )
