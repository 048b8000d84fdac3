"""A server with bounded staleness: marks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises import single
from minidist.exercises.exercise import Case, Verdict

TITLE = "A server with bounded staleness"
MINUTES = 40
FUNCTIONS = ("Clock",)
MARKS = {"bound": 4, "nobody waits in vain": 3, "synchronous": 1, "without a bound": 1}
FORBIDDEN = single.FORBIDDEN
TURNS = 200


def cases(seed: int) -> Iterator[Case]:
    for workers in (1, 2, 4, 5, 8):
        for staleness in (0, 1, 3, None):
            yield Case(seed=seed + workers, settings={"workers": workers, "staleness": staleness})


def prepare(rank: int, case: Case) -> list[int]:
    """In which order workers would get on, if nobody waited: some are far quicker than others."""
    draw = np.random.default_rng(case.seed)
    speed = draw.random(case["workers"]) ** 2 + 0.05
    return draw.choice(case["workers"], TURNS, p=speed / speed.sum()).tolist()


def run(comm: Any, answer: Any, case: Case, turns: list[int]) -> dict[str, Any]:
    """A log of events: ("begin", worker, answer) and ("finish", worker, list)."""
    bound = math.inf if case["staleness"] is None else case["staleness"]
    clock = answer.Clock(case["workers"], bound)
    log: list[Any] = []
    busy: set[int] = set()
    waiting: set[int] = set()
    for worker in turns:
        if worker in waiting:
            continue
        if worker not in busy:
            allowed = bool(clock.may_begin(worker))
            log.append(["begin", worker, allowed])
            (busy if allowed else waiting).add(worker)
        else:
            free = [int(one) for one in clock.finished(worker)]
            log.append(["finish", worker, free])
            busy.discard(worker)
            busy |= set(free) & waiting
            waiting -= set(free)
    return {"log": log}


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    steps, waiting = [0] * case["workers"], set()
    bound = math.inf if case["staleness"] is None else case["staleness"]
    too_far = in_vain = None
    for kind, worker, said in ranks[0]["log"]:
        lead = steps[worker] - min(steps)
        if kind == "begin":
            if said and lead > bound:
                too_far = too_far or (
                    f"worker {worker} may begin with {steps[worker]} finished steps, while the "
                    "slowest "
                    f"has finished {min(steps)}: {lead} ahead, and the bound is {bound}"
                )
            if not said and lead <= bound:
                in_vain = in_vain or (
                    f"worker {worker} must wait with {steps[worker]} finished steps, while the "
                    "slowest "
                    f"has finished {min(steps)}: it is {lead} ahead, and {bound} are allowed"
                )
            if not said:
                waiting.add(worker)
        else:
            steps[worker] += 1
            may = sorted(one for one in waiting if steps[one] - min(steps) <= bound)
            early = sorted(set(said) - set(may))
            if early:
                one, ahead = early[0], steps[early[0]] - min(steps)
                too_far = too_far or (
                    f"worker {one} is let go, although it is {ahead} steps ahead, and the bound is "
                    f"{bound}"
                    if one in waiting
                    else f"finished() returns worker {one}, which was not waiting: only those to "
                    "whom may_begin has said False, and nobody has let go since"
                )
            if list(said) != may and not early:
                left = sorted(set(may) - set(said))
                in_vain = in_vain or (
                    f"worker {left[0]} waits on, although the slowest has caught up"
                    if left
                    else f"finished() returns {said}, and should return {may}"
                )
            waiting -= set(said)
    name = {0: "synchronous", None: "without a bound"}.get(case["staleness"])
    if name:
        yield name, too_far or in_vain
    yield "bound", too_far
    yield "nobody waits in vain", in_vain
