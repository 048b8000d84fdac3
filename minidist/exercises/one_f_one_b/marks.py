"""The 1F1B schedule: marks. What a schedule costs is found by running it on a clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises import single
from minidist.exercises.exercise import Case, Verdict

TITLE = "The 1F1B schedule of a pipeline"
MINUTES = 50
FUNCTIONS = ("schedule",)
MARKS = {"complete": 2, "no deadlock": 2, "in flight": 3, "time": 2, "order": 1}
FORBIDDEN = single.FORBIDDEN


def cases(seed: int) -> Iterator[Case]:
    draw = np.random.default_rng(seed)
    sizes = [(1, 1), (1, 4), (2, 1), (2, 5), (4, 6), (4, 2), (4, 16), (8, 8), (3, 7)]
    sizes.append((int(draw.integers(3, 9)), int(draw.integers(9, 20))))
    for stages, microbatches in sizes:
        yield Case(seed=seed, settings={"stages": stages, "microbatches": microbatches})


def prepare(rank: int, case: Case) -> None:
    return None


def run(comm: Any, answer: Any, case: Case, given: None) -> dict[str, Any]:
    p, m = case["stages"], case["microbatches"]
    return {"steps": [[as_pair(step) for step in answer.schedule(s, p, m)] for s in range(p)]}


def as_pair(step: Any) -> Any:
    """A tuple or list as a list; whatever else it is, as it is."""
    return list(step) if isinstance(step, (tuple, list)) else step


def clock(steps: list[list[list[Any]]]) -> tuple[float | None, str]:
    """(time of the last end, "") with F and B of one second each; (None, why) if it gets stuck."""
    p = len(steps)
    done: dict[tuple[int, str, int], float] = {}
    now, at = [0.0] * p, [0] * p
    moved = True
    while moved:
        moved = False
        for stage in range(p):
            while at[stage] < len(steps[stage]):
                kind, number = steps[stage][at[stage]]
                before = (stage - 1, "F", number) if kind == "F" else (stage + 1, "B", number)
                needed = [before] if 0 <= before[0] < p else []
                needed += [(stage, "F", number)] if kind == "B" else []
                if any(one not in done for one in needed):
                    break
                start = max([now[stage], *(done[one] for one in needed)])
                now[stage] = done[stage, kind, number] = start + 1
                at[stage] += 1
                moved = True
    for stage in range(p):
        if at[stage] < len(steps[stage]):
            kind, number = steps[stage][at[stage]]
            return None, f"stage {stage} waits for ever before {kind}{number}"
    return max(now), ""


def _is_step(step: Any) -> bool:
    pair = isinstance(step, list) and len(step) == 2
    return pair and step[0] in ("F", "B") and type(step[1]) is int


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    p, m, steps = case["stages"], case["microbatches"], ranks[0]["steps"]
    wanted = sorted(([kind, number] for kind in "BF" for number in range(m)), key=str)
    missing = next(
        (
            f"stage {stage} has {len(steps[stage])} steps, and each of {m} microbatches needs one "
            "F "
            "and one B on every stage"
            for stage in range(p)
            if sorted(steps[stage], key=str) != wanted
        ),
        None,
    )
    shapeless = next((step for own in steps for step in own if not _is_step(step)), None)
    if shapeless is not None:
        missing = f'a step is a pair such as ("F", 0), and not {shapeless!r}'
    yield "complete", missing
    if missing:
        for mark in ("no deadlock", "in flight", "time", "order"):
            yield mark, missing
        return
    seconds, stuck = clock(steps)
    yield "no deadlock", stuck or None
    most = []
    for own in steps:
        flying = np.cumsum([1 if kind == "F" else -1 for kind, _ in own])
        most.append(int(flying.max()))
    over = [stage for stage in range(p) if most[stage] > min(m, p - stage)]
    every = most == [m] * p and m > 1
    yield (
        "in flight",
        (
            f"stage {over[0]} has {most[over[0]]} microbatches in flight, and 1F1B needs at most "
            f"p - stage = {p - over[0]}"
            + (": all forwards come first, as in GPipe" if every else "")
            if over
            else None
        ),
    )
    best = 2 * (m + p - 1)  # m(F + B) and a bubble of (p - 1)(F + B)
    yield (
        "time",
        (
            stuck
            or (
                f"the step takes {seconds:g} times F, and 2(m + p - 1) = {best} are enough: "
                + (
                    "each stage waits for the one before its next forward: the warm-up is too short"
                    if all(count == 1 for count in most)
                    else "something waits that need not"
                )
                if seconds is not None and seconds > best
                else None
            )
        ),
    )
    mixed = next(
        (
            f"stage {stage} takes the {kind}s in the order {numbers}: each kind goes 0, 1, 2, ..."
            for stage, own in enumerate(steps)
            for kind in "FB"
            if (numbers := [number for one, number in own if one == kind]) != list(range(m))
        ),
        None,
    )
    yield "order", mixed
