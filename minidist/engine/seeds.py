"""Random numbers keyed by their purpose, never by rank or by the order of calls.

Ranks that draw for the same purpose get the same numbers, and a rank that has a part of the model
draws exactly the numbers of this part in serial training. So a pipeline stage, a shard or a replica
can be built alone. The generator is counter-based (Philox: Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", SC'11): its only state is a key and a counter.
"""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from minidist.engine.array import to_host
from minidist.engine.kernels import kernel


def generator(seed: int, *what: object) -> np.random.Generator:
    """A generator for one purpose, the same on every rank and at any time.

    >>> int(generator(0, "shuffle", 3).integers(100))
    5
    """
    return np.random.Generator(np.random.Philox(key=_key(seed, *what)))


def _key(*what: object) -> int:
    """128 bits for one purpose."""
    name = "/".join(str(part) for part in what)
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")


class Draws(NamedTuple):
    """The key of the random draws in a training step: see ``draws``."""

    seed: int
    step: int
    positions: np.ndarray | None


_draws: ContextVar[Draws | None] = ContextVar("draws", default=None)


class draws:  # noqa: N801 (used as a function is)
    """Key the draws inside (dropout's masks) by ``(seed, step)`` and each sample's position.

    ``positions`` are the positions in the *global* batch of the samples on the first axis; None:
    the whole batch, [0, 1, 2, ...]. A shard or a microbatch passes its own positions, and so draws
    exactly the rows that serial training draws for these samples.

    >>> with draws(seed=0, step=5, positions=np.array([2, 3])):
    ...     part = uniform_rows("mask", 2, 8)
    >>> with draws(seed=0, step=5):
    ...     whole = uniform_rows("mask", 4, 8)
    >>> bool((part == whole[2:]).all())
    True
    """

    __slots__ = ("key", "token")

    def __init__(self, seed: int, step: int, positions: np.ndarray | None = None) -> None:
        self.key = Draws(seed, step, positions)

    def __enter__(self) -> None:
        self.token = _draws.set(self.key)

    def __exit__(self, *error: object) -> None:
        _draws.reset(self.token)


def current_draws() -> Draws | None:
    """The key of the enclosing ``draws``, or None: for a recomputation, which draws the same."""
    return _draws.get()


def _drawn_for(name: str, rows: int) -> tuple[int, np.ndarray]:
    """The key of the draws with this name, and the position in the global batch of each row."""
    now = _draws.get()
    if now is None:
        raise RuntimeError(
            f"{name}: random draws in training, such as dropout's, are keyed by seed and step, "
            "which are not known here: write `with draws(seed, step):` around the forward (from "
            "minidist.engine import draws), or call model.eval()"
        )
    positions = np.arange(rows) if now.positions is None else np.asarray(now.positions)
    if len(positions) != rows:
        raise ValueError(f"{name}: draws() was given {len(positions)} positions for {rows} samples")
    return _key(now.seed, "draws", name, now.step), positions


def uniform_rows(name: str, rows: int, width: int) -> np.ndarray:
    """(rows, width) integers, uniform over uint32; each row depends on its position in the batch.

    Philox is a function of a key and a counter, so any row of the whole batch can be drawn alone,
    by starting the counter where that row starts. Each value of the counter makes four words of 64
    bits, so the counter advances by a whole number for each row.
    """
    key, positions = _drawn_for(name, rows)
    return _table(key, positions, width)


def _table(key: int, positions: np.ndarray, width: int) -> np.ndarray:
    """The rows of ``uniform_rows`` at these positions."""
    rows = len(positions)
    if not rows:  # an empty shard
        return np.empty((0, width), np.uint32)
    blocks = -(-width // 8)  # values of the counter for a row: 4 words of 64 bits are 8 numbers
    table = np.empty((rows, blocks * 8), np.uint32)
    # One generator for each run of consecutive positions.
    starts = np.flatnonzero(np.diff(positions, prepend=positions[:1] - 2) != 1)
    stops = [*starts[1:], rows][: len(starts)]
    for start, stop in zip(starts, stops, strict=True):
        philox = np.random.Philox(key=key)
        philox.advance(int(positions[start]) * blocks)
        words = philox.random_raw(int(stop - start) * blocks * 4)
        table[start:stop] = words.view(np.uint32).reshape(stop - start, blocks * 8)
    return table[:, :width]


def draw_mask(xp: Any, name: str, rows: int, width: int, rate: float) -> Any:
    """(rows, width) truth values on the device of ``xp``, each false with probability ``rate``.

    It is ``uniform_rows(name, rows, width) >= rate · 2³²``, and the same on every device: a GPU
    draws the numbers itself.
    """
    key, positions = _drawn_for(name, rows)
    first = int(positions[0]) if rows else 0
    consecutive = bool((np.diff(positions) == 1).all())  # then ``first`` is enough
    mask = xp.empty((rows, width), bool)
    listed = None if consecutive else xp.asarray(positions, np.int64)
    low, high = (half - (half >> 63 << 64) for half in (key & 2**64 - 1, key >> 64))  # signed
    _draw_mask(xp, mask, listed, first, low, high, int(rate * 2**32), width)
    return mask


@kernel(
    "bool *mask, const long long *positions, long long first, long long low, long long high, "
    "long long least, long long width",
    """
    typedef unsigned long long Word;
    Word position = positions ? positions[i / width] : first + i / width;
    Word c0 = position * ((width + 7) / 8) + i % width / 8 + 1, c1 = 0, c2 = 0, c3 = 0;
    Word k0 = low, k1 = high;
    for (int round = 0; round < 10; round++) {  // Philox 4x64, figure 2 of the paper
        Word high0 = __umul64hi(0xD2E7470EE14C6C93ull, c0), low0 = 0xD2E7470EE14C6C93ull * c0;
        Word high2 = __umul64hi(0xCA5A826395121157ull, c2), low2 = 0xCA5A826395121157ull * c2;
        c0 = high2 ^ c1 ^ k0;
        c1 = low2;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B97F4A7C15ull;
        k1 += 0xBB67AE8584CAA73Bull;
    }
    int which = i % width % 8;  // of the 8 numbers in the 4 words
    Word word = which < 2 ? c0 : which < 4 ? c1 : which < 6 ? c2 : c3;
    mask[i] = (long long)(word >> 32 * (which % 2) & 0xFFFFFFFFull) >= least;
""",
)
def _draw_mask(
    xp: Any,
    mask: Any,
    positions: Any,
    first: int,
    low: int,
    high: int,
    least: int,
    width: int,
) -> None:
    key = (low & 2**64 - 1) | (high & 2**64 - 1) << 64
    where = np.arange(first, first + len(mask)) if positions is None else to_host(positions)
    mask[...] = xp.asarray(_table(key, where, width) >= least)
