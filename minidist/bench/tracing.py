"""What tracing costs while it is off, as a share of an all-reduce of 4 KB.

A difference of 1 % drowns in the noise of messages between processes. So the calls that are there
for tracing alone are counted in one all-reduce, each is timed by itself, many times in a row,
against what would stand there without tracing, and the sum is set against the all-reduce:

    rounds    ``for round in comm.rounds(...)``     against ``for round in range(...)``
    steps     ``with comm.step(...): pass``         against nothing
    records   ``if trace.record: ...``, a message   against nothing

Counting messages and bytes and taking the time are no part of it: they are always on.
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
    """Seconds of the all-reduce; for each call, how many and seconds of one; the share of all."""
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
    """How often ``once`` calls what is there for tracing."""
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
            delattr(comm, name)  # the class's own again
    return {"rounds": counts["rounds"], "steps": counts["step"], "records": counts["_left"]}


def price(comm: Comm) -> dict[str, float]:
    """Seconds of one such call, beyond what would stand there without tracing."""

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
