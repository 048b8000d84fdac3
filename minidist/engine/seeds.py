"""Random numbers keyed by what they are for, never by rank or by order of calls.

Two ranks that ask for the same thing draw the same numbers, and a rank that asks for part of the
model draws exactly the part that serial training has. That is why a pipeline stage, a shard or a
replica can be built alone. The generator is counter-based (Philox: Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC'11), so a key is all the state there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np


def generator(seed: int, *what: object) -> np.random.Generator:
    """A generator for one purpose, the same wherever and whenever it is made.

    >>> int(generator(0, "shuffle", 3).integers(100))
    5
    """
    name = "/".join(str(part) for part in (seed, *what))
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class Draws(NamedTuple):
    """What the random draws of one training step are keyed by: see ``draws``."""

    seed: int
    step: int
    positions: np.ndarray | None


_draws: ContextVar[Draws | None] = ContextVar("draws", default=None)


@contextmanager
def draws(seed: int, step: int, positions: np.ndarray | None = None) -> Iterator[None]:
    """Key the draws inside (dropout's masks) by ``(seed, step)`` and each sample's position.

    ``positions`` says which samples of the *global* batch the first axis holds: [0, 1, 2, ...] if
    None, the whole batch. A shard or a microbatch passes its own positions, and so draws exactly
    the rows that serial training draws for these samples.

    >>> with draws(seed=0, step=5, positions=np.array([2, 3])):
    ...     part = uniform_rows("mask", 2, 8)
    >>> with draws(seed=0, step=5):
    ...     whole = uniform_rows("mask", 4, 8)
    >>> bool((part == whole[2:]).all())
    True
    """
    token = _draws.set(Draws(seed, step, positions))
    try:
        yield
    finally:
        _draws.reset(token)


def current_draws() -> Draws | None:
    """The ``draws`` we are inside of, or None: to enter them again for a recomputation."""
    return _draws.get()


def uniform_rows(name: str, rows: int, width: int) -> np.ndarray:
    """(rows, width) integers, uniform over all of uint32, row by row by position in the batch.

    Philox is a function of a key and a counter, so any row of the whole batch's table can be
    drawn alone: by starting the counter where that row starts. A step of the counter makes four
    words of 64 bits, so a row takes a whole number of those.
    """
    now = _draws.get()
    if now is None:
        raise RuntimeError(
            f"{name}: random draws in training, such as dropout's, are keyed by seed and step, "
            "which are not known here: write `with draws(seed, step):` around the forward (it is "
            "in minidist.engine), or call model.eval()"
        )
    positions = np.arange(rows) if now.positions is None else np.asarray(now.positions)
    if len(positions) != rows:
        raise ValueError(f"{name}: draws() was given {len(positions)} positions for {rows} samples")
    if not rows:  # an empty shard
        return np.empty((0, width), np.uint32)
    blocks = -(-width // 8)  # of 4 words, which are 8 numbers
    table = np.empty((rows, blocks * 8), np.uint32)
    # One generator for each run of consecutive positions.
    starts = np.flatnonzero(np.diff(positions, prepend=positions[:1] - 2) != 1)
    stops = [*starts[1:], rows][: len(starts)]
    for start, stop in zip(starts, stops, strict=True):
        philox = generator(now.seed, "draws", name, now.step).bit_generator
        philox.advance(int(positions[start]) * blocks)  # type: ignore[attr-defined]
        words = philox.random_raw(int(stop - start) * blocks * 4)
        table[start:stop] = words.view(np.uint32).reshape(stop - start, blocks * 8)
    return table[:, :width]
