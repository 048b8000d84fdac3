"""All-reduce by way of one rank: marks. The formulas are derived in ``collectives/central.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minidist.exercises import collective
from minidist.exercises.collective import judge_count, judge_memory, judge_result
from minidist.exercises.exercise import Case, Verdict

TITLE = "All-reduce by way of one rank"
MINUTES = 30
FUNCTIONS = ("all_reduce",)
MARKS = {"result": 4, "ranks agree": 1, "messages": 2, "bytes": 2, "memory": 1}
FORBIDDEN = collective.FORBIDDEN
cases, prepare, run = collective.cases, collective.prepare, collective.run


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    p, n = case.ranks, case["length"]
    yield from judge_result(case, ranks)
    messages = [p - 1] + [1] * (p - 1)
    everybody = "every rank sends to every other one: that works, with p times the messages"
    yield from judge_count(
        "messages",
        case,
        [rank["messages"] for rank in ranks],
        messages,
        "rank 0 sends p - 1 messages, each other rank one",
        {everybody: [p - 1] * p, "the sum is not sent back": [0] + [1] * (p - 1)},
    )
    yield from judge_count(
        "bytes",
        case,
        [rank["bytes"] for rank in ranks],
        [count * n * 8 for count in messages],
        "a message is the whole array",
        {everybody: [(p - 1) * n * 8] * p},
    )
    yield from judge_memory(
        case,
        ranks,
        2 / p,  # a new buffer for each rank is made while the last one is still there
        "rank 0 needs one array more, into which it receives; nobody else does",
    )
