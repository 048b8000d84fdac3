"""The frame of a fuzz run: draw a case from a seed, check it, and report what fails in one line.

    python -m tests.fuzz graphs --seed 4711          # one case again
    python -m tests.fuzz graphs --count 5000         # many, from seed 0 on

A *kind* is a function ``check(random, size)``: it draws a case of about ``size`` parts from the
generator, and raises AssertionError (or whatever the code under test raises) if it is wrong. It
returns a line that says what was tried. The same seed and size give the same case everywhere. A
failing case is drawn again at half the size, and again, while that still fails: the report has the
smallest.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Check = Callable[[np.random.Generator, int], str]


@dataclass(frozen=True)
class Failure:
    """A case that failed, at the smallest size at which it still does."""

    kind: str
    seed: int
    size: int
    error: str

    def __str__(self) -> str:
        again = f"python -m tests.fuzz {self.kind} --seed {self.seed} --size {self.size}"
        return f"{again}\n{self.error}"


def attempt(check: Check, seed: int, size: int) -> str | None:
    """What is wrong with one case, or None."""
    try:
        check(np.random.default_rng(seed), size)
    except Exception:
        return traceback.format_exc(limit=-4)
    return None


def find(kind: str, check: Check, seed: int, size: int) -> Failure | None:
    """One case, made smaller while it fails."""
    error = attempt(check, seed, size)
    if error is None:
        return None
    while size > 1 and (smaller := attempt(check, seed, size // 2)) is not None:
        size, error = size // 2, smaller
    return Failure(kind, seed, size, error)


def fuzz(
    kind: str,
    check: Check,
    count: int,
    start: int = 0,
    size: int = 12,
    seconds: float | None = None,
) -> Iterator[Failure]:
    """The failures of ``count`` cases, from seed ``start`` on; stops after ``seconds``."""
    begin = time.monotonic()
    for seed in range(start, start + count):
        if seconds is not None and time.monotonic() - begin > seconds:
            return
        failure = find(kind, check, seed, 1 + seed % size)  # small ones too
        if failure is not None:
            yield failure
