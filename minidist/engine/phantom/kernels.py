"""Fused kernels: chains of elementwise steps (``cupy.fuse``), and CUDA source (``RawKernel``).

Neither is executed; only the bytes that they move are counted. A chain is traced once for each
combination of dtypes, to find which arrays it reads and writes. In CUDA source, an array is written
if an element of it is assigned to, and read if an element is used in any other way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from minidist.engine.arithmetic import work
from minidist.engine.kernels import KERNELS
from minidist.engine.phantom import views
from minidist.engine.phantom.arrays import ndarray, new, tracing


def fuse(kernel_name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``cupy.fuse``: one kernel from a chain of elementwise steps."""

    def made(chain: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[Any, tuple[tuple[int, ...], np.dtype | None]] = {}

        def run(*given: Any) -> Any:
            key = tuple([one.dtype if type(one) is ndarray else type(one) for one in given])
            found = known.get(key)
            if found is None:
                found = known[key] = _traced(chain, given)
            passes, dtype = found
            nbytes = 0
            for times, one in zip(passes, given, strict=True):
                if times:
                    nbytes += times * one.nbytes
            if tracing.events is not None:  # inside another chain
                for event in _events(passes, given):
                    tracing.events.append(event)
            if dtype is None:
                work.kernel(nbytes)
                return None
            shape = views.broadcast(*(one.shape for one in given if type(one) is ndarray))
            out = new(shape, dtype)
            work.kernel(nbytes + out.nbytes)
            return out

        return run

    return made


def _traced(
    chain: Callable[..., Any], given: tuple[Any, ...]
) -> tuple[tuple[int, ...], np.dtype | None]:
    """How often each argument is moved, 1 if read plus 1 if written; and the result's dtype."""
    outer, before = tracing.events, work.counts()
    tracing.events = []
    try:
        result = chain(*given)
        events = tracing.events
    finally:
        tracing.events = outer
        work.reset(before)
    reads, writes = set[int](), set[int]()
    for read, written in events:
        reads |= {id(one) for one in read} - writes
        writes.add(id(written))
    passes = tuple((id(one) in reads) + (id(one) in writes) for one in given)
    return passes, None if result is None else result.dtype


def _events(passes: tuple[int, ...], given: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], Any]]:
    read = tuple(one for times, one in zip(passes, given, strict=True) if times)
    return [(read, one) for times, one in zip(passes, given, strict=True) if times == 2]


class RawKernel:
    """``cupy.RawKernel``: counts the bytes of the arrays that the kernel reads and writes."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        kernel = KERNELS[name]
        self.passes = _passes(kernel.arguments, kernel.body)
        self.by_rows = kernel.over == "rows"

    def __call__(self, grid: Any, block: Any, args: tuple[Any, ...]) -> None:
        nbytes, limit = 0, 0
        for times, one in zip(self.passes, args):  # noqa: B905 (lengths follow)
            if times and type(one) is ndarray:
                own = one.nbytes
                if self.by_rows:  # each block reads one row, which need not be all rows of a table
                    limit = limit or max(own, args[0].nbytes)
                    own = min(own, limit)
                nbytes += times * own
        work.kernel(nbytes)


def _passes(arguments: str, body: str) -> tuple[int, ...]:
    """How often each argument is moved: 1 if read plus 1 if written; 0 for a number."""
    found = []
    for declared in re.split(r",\s*", arguments):
        name = re.findall(r"\w+", declared)[-1]
        if "*" not in declared:
            found.append(0)
            continue
        uses = re.findall(rf"\b{name}\[[^\]]*\](?:\s*=(?!=))?", body)
        read = any(not use.endswith("=") for use in uses)
        written = any(use.endswith("=") for use in uses)
        found.append(read + written)
    return tuple(found)
