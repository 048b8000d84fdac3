"""The cost of tracing while it is off, as a share of an all-reduce of 4 KB.

A difference of 1 % is smaller than the noise of messages between processes. So the calls that exist
only for tracing are counted in one all-reduce. Each of them is timed alone, many times in a row,
minus the code that would replace it without tracing. Their sum is divided by the time of the
all-reduce:

    rounds    ``for round in comm.rounds(...)``     against ``for round in range(...)``
    steps     ``with comm.step(...): pass``         against nothing
    records   ``if trace.record: ...``, a message   against nothing

Counting messages and bytes and reading the clock are not included: they are always on.
"""

from __future__ import annotations

from collections.abc import Callable
from timeit import repeat
from typing import Any

import numpy as np

from minidist.bench.turns import Call, least_seconds
from minidist.collectives import recursive_doubling
from minidist.comm.comm import Comm

LENGTH = 1024  # float32: 4 KB
CALLS = 20000


def measure(comm: Comm, turns: int) -> dict[str, Any]:
    """Seconds of the all-reduce; number and seconds of each kind of call; their share."""
    array = np.zeros(LENGTH, np.float32)

    def once() -> None:
        recursive_doubling.all_reduce(comm, array)

    seconds = least_seconds(comm, {"all-reduce": Call(once, (array,))}, turns)["all-reduce"]
    counts, prices = count(comm, once), price(comm)
    return {
        "seconds": seconds,
        "calls": counts,
        "seconds_each": prices,
        "share": sum(counts[name] * prices[name] for name in counts) / seconds,
    }


def count(comm: Comm, once: Callable[[], None]) -> dict[str, int]:
    """How often ``once`` calls each tracing function."""
    counts = {"rounds": 0, "step": 0, "_left": 0}

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(comm, name)

        def call(*args: Any) -> Any:
            counts[name] += 1
            return method(*args)

        return call

    for name in counts:
        setattr(comm, name, counted(name))
    try:
        once()
    finally:
        for name in counts:
            delattr(comm, name)  # back to the method of the class
    return {"rounds": counts["rounds"], "steps": counts["step"], "records": counts["_left"]}


def price(comm: Comm) -> dict[str, float]:
    """Seconds of one such call, minus the code without tracing."""

    def seconds(statement: str) -> float:
        return min(repeat(statement, globals={"comm": comm}, number=CALLS, repeat=9)) / CALLS

    nothing = seconds("pass")
    return {
        "rounds": seconds("for _ in comm.rounds('exchange', 2): pass")
        - seconds("for _ in range(1, 3): pass"),
        "steps": seconds("with comm.step('fold'): pass") - nothing,
        "records": seconds("if comm.trace.record: pass") - nothing,
    }


def sentence(found: dict[str, Any]) -> str:
    """The result in words."""
    calls = ", ".join(
        f"{number} {name} of {found['seconds_each'][name] * 1e9:.0f} ns"
        for name, number in found["calls"].items()
    )
    return (
        f"tracing, off: {found['share']:.1%} of a 4 KB all-reduce by recursive doubling, "
        f"{found['seconds'] * 1e6:.1f} µs ({calls})"
    )
