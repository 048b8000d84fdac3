"""Clipping by global norm: one bad batch must not throw the parameters far away.

    g ← g · min(1, limit / ‖g‖),   ‖g‖ over all gradients together

so that the direction stays. Pascanu, Mikolov, Bengio, arXiv 1211.5063, algorithm 1.
"""

from __future__ import annotations

import math

import numpy as np

from minidist.engine.array import Array, module_of
from minidist.optim.optimizer import Reduce

PIECE = 1 << 12  # elements summed in the gradient's own dtype


def global_norm(grad: Array, reduce: Reduce | None = None) -> float:
    """The Euclidean norm of a 1-D gradient.

    Squares are summed in short pieces, and the pieces in float64: float32 alone would lose
    digits over millions of elements. If ``grad`` is one rank's shard, ``reduce`` must sum a
    float64 array of one element over the ranks, in place; each rank gets the norm of the whole.
    """
    xp = module_of(grad)
    total = np.zeros(1)
    if xp is np:
        for start in range(0, grad.size, PIECE):
            piece = grad[start : start + PIECE]
            total[0] += float(np.dot(piece, piece))
    else:
        total[0] = float(xp.square(grad, dtype=np.float64).sum())
    if reduce is not None:
        reduce(total)
    return math.sqrt(total[0])


def clip_by_global_norm(grad: Array, limit: float, reduce: Reduce | None = None) -> float:
    """Scale ``grad`` in place so that its norm is at most ``limit``; returns the norm before."""
    if not limit > 0:
        raise ValueError(f"clip_by_global_norm: the limit must be positive, not {limit}")
    norm = global_norm(grad, reduce)
    if norm > limit:  # a NaN norm compares false and leaves the gradient as it is, to be found
        grad *= limit / norm
    return norm
