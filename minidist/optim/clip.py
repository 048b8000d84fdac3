"""Clipping by global norm: one bad batch must not move the parameters far.

    g ← g · min(1, limit / ‖g‖),   ‖g‖ over all gradients together

The gradient keeps its direction. Pascanu, Mikolov, Bengio, arXiv 1211.5063, algorithm 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidist.engine.array import Array, module_of, read
from minidist.engine.kernels import kernel, wide
from minidist.optim.part import Reduce

PIECE = 1 << 12  # elements summed in the gradient's own dtype


def global_norm(grad: Array, reduce: Reduce | None = None) -> Array | float:
    """The Euclidean norm of a 1-D gradient.

    Squares are summed in the gradient's dtype within short pieces, and the pieces' sums in float64:
    float32 alone would lose digits over millions of elements. If ``grad`` is one rank's shard,
    ``reduce`` must sum a float64 array of one element over the ranks, in place; each rank gets the
    norm of the whole. On a GPU, if nothing is summed over ranks, the norm is a 0-d array there;
    ``float(norm)`` waits for it.
    """
    xp = module_of(grad)
    if xp is not np:
        square = xp.square(grad, dtype=np.float64).sum()
        if reduce is None:
            return xp.sqrt(square)
        total = np.array([float(read(square, math.inf))])
    else:
        total = np.zeros(1)
        for start in range(0, grad.size, PIECE):
            piece = wide(grad[start : start + PIECE])
            total[0] += float(np.dot(piece, piece))
    if reduce is not None:
        reduce(total)
    return math.sqrt(total[0])


def norm_of(grad: Array) -> float:
    """``global_norm`` as a number on the host; infinity for an array that has only a shape."""
    norm = global_norm(grad)
    return norm if isinstance(norm, float) else float(read(norm, math.inf))


def clip_by_global_norm(grad: Array, limit: float, reduce: Reduce | None = None) -> Array | float:
    """Scale ``grad`` in place so that its norm is at most ``limit``; return the norm it had."""
    if not limit > 0:
        raise ValueError(f"clip_by_global_norm: the limit must be positive, not {limit}")
    norm = global_norm(grad, reduce)
    if isinstance(norm, float):
        if norm > limit:  # a NaN norm compares false: the gradient keeps its NaN
            grad *= limit / norm
    else:  # the same without reading the norm: the host does not wait for the GPU
        _scale_down(module_of(grad), grad, norm, float(limit))
    return norm


@kernel(
    "T *grad, const double *norm, double limit",
    "if (norm[0] > limit) grad[i] = T((A)grad[i] * A(limit / norm[0]));",
)
def _scale_down(xp: Any, grad: Array, norm: Array, limit: float) -> None:
    factor = xp.where(norm > limit, limit / norm, 1.0)
    grad *= factor.astype(grad.dtype)
