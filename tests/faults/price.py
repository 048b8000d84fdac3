"""What the checks cost: their own time over a step's.

    minidist run -n 2 -m tests.faults.price

Those that are always on are timed in each step, and so is ``Comm.flat``, of which the check is only
a part. After each check a function that does nothing is timed in the same way: the difference is
the check's time without the clock's. Steps in debug mode are compared with steps out of it, in
turns.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from minidist import launch
from minidist.comm import Comm, checks, messages, print_once
from minidist.compare.tasks import TASKS
from minidist.data import Batches
from minidist.parallel import METHODS, guards, method

# Where checks are called. Some are functions of another library, in a condition.
HOMES = (messages, messages.Messages, method, guards)
OTHERS = {"_check", "flat", "isfinite", "may_share_memory"}
STEPS, TURNS = 30, 5
METHOD = "data_parallel/ring"


def nothing(*args: Any, **options: Any) -> None:
    """A check of nothing."""


class Clock:
    """The seconds that were spent in the checks, the outermost of those that call each other.

    ``own``: seconds of as many calls of ``nothing``, which are in ``seconds`` too.
    """

    def __init__(self) -> None:
        self.seconds, self.own, self.calls, self.inside = 0.0, 0.0, 0, False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            if self.inside:
                return function(*args, **options)
            self.inside = True
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                end = time.perf_counter()
                nothing(*args, **options)
                self.own += time.perf_counter() - end
                self.seconds += end - start
                self.calls += 1
                self.inside = False

        return timed


def find(clock: Clock) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Put the clock around each check where it is called; returns what was there."""
    wanted = {name for home in (checks, guards) for name in vars(home) if name.startswith("check")}
    wanted |= OTHERS
    before = []
    for home in HOMES:
        for name in wanted & vars(home).keys():
            before.append((home, name, vars(home)[name]))
            setattr(home, name, clock.wrap(vars(home)[name]))
    return before


def steps(comm: Comm, task: str, clock: Clock | None) -> float:
    """The median seconds of a step; with a clock, it counts the checks of the same steps."""
    found = TASKS[task]
    method = METHODS[METHOD](found.model(), found.loss(), found.optimizer(), comm)
    batches = Batches(found.data()[0], 128, 0)
    for number in range(3):
        method.step(batches[number])
    before = find(clock) if clock else []
    comm.barrier()
    times = []
    for number in range(3, 3 + STEPS):
        start = time.perf_counter()
        method.step(batches[number])
        times.append(time.perf_counter() - start)
    for home, name, function in before:
        setattr(home, name, function)
    return sum(times) if clock else statistics.median(times)


for task in ("mlp", "gpt"):
    clock = Clock()
    whole = sum(
        launch(lambda comm, task=task, clock=clock: steps(comm, task, clock))[0] for _ in range(2)
    )
    print_once(
        f"{task}: always on: {clock.calls / 2 / STEPS:.0f} checks a step, "
        f"{1e6 * (clock.seconds - clock.own) / 2 / STEPS:.1f} us, "
        f"{100 * (clock.seconds - clock.own) / whole:.3f} % of its time "
        f"(with the clock's own time {100 * clock.seconds / whole:.3f} %)"
    )
    plain, debug = [], []
    for _ in range(TURNS):
        for value, seconds in (("0", plain), ("1", debug)):
            os.environ["MINIDIST_DEBUG"] = value
            seconds.append(launch(lambda comm, task=task: steps(comm, task, None))[0])
    os.environ["MINIDIST_DEBUG"] = "0"
    usual, checked = 1e3 * statistics.median(plain), 1e3 * statistics.median(debug)
    print_once(f"{task}: a step of {usual:.1f} ms takes {checked:.1f} ms in debug mode")
