"""LARS and LAMB: a separate learning rate for each parameter, for very large batches.

A large batch needs a large rate, but the largest stable rate differs from layer to layer. Both
rules make the step of a layer proportional to the norm ‖w‖ of its weights:

    LARS   r = η·‖w‖ / (‖g‖ + λ·‖w‖)                      v ← μ·v + lr·r·(g + λ·w);  w ← w - v
    LAMB   u = m̂ / (√v̂ + ε) + λ·w,  r = ‖w‖ / ‖u‖         w ← w - lr·r·u

Parameters in ``exclude`` (biases and norms, as in the code of both papers) have r = 1 and no weight
decay. r is also 1 where ‖w‖ or the divisor is zero. You, Gitman, Ginsburg, arXiv 1708.03888,
algorithm 1; You et al., arXiv 1904.00962, algorithm 2 with φ the identity.

A norm is that of a whole parameter. If shards cut through parameters, ``bind(..., reduce=...)``
sums the squares over all shards: two float64 numbers for each parameter and step. The result then
equals serial training only up to rounding, because the order of the sums differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidist.engine.array import Array, module_of, read
from minidist.engine.kernels import wide
from minidist.optim.adam import Adam
from minidist.optim.optimizer import Groups, LearningRate, Part, Rates
from minidist.optim.sgd import Momentum


def norms(part: Part, squares: Array) -> list[list[float]]:
    """The square roots of (2, parameters) sums of squares, added up over all shards."""
    sums = read(squares, 1.0).astype(np.float64, copy=False)
    if part.reduce is not None:
        part.reduce(sums)
    return np.sqrt(sums).tolist()


class LARS(Momentum):
    """Layer-wise adaptive rate scaling: momentum with a rate for each parameter."""

    layerwise = own_decay = True

    def __init__(
        self,
        lr: LearningRate,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        exclude: Sequence[str] = ("*bias",),
        trust: float = 1e-3,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(lr, momentum, weight_decay, exclude, groups)
        self.trust = trust

    def local_rates(
        self, part: Part, data: Array, grad: Array, rates: Sequence[Rates]
    ) -> list[float]:
        xp = module_of(data)
        sums = xp.zeros((2, parameters(part)))
        for piece in part.pieces:
            w, g = wide(data[piece.where]), wide(grad[piece.where])  # squares overflow in float16
            sums[0, piece.parameter] += xp.dot(w, w)
            sums[1, piece.parameter] += xp.dot(g, g)
        norms_w, norms_g = norms(part, sums)
        local = [0.0] * parameters(part)
        for piece in part.pieces:
            index, group = piece.parameter, rates[piece.group]
            norm_w, r = norms_w[index], 1.0
            divisor = norms_g[index] + group.decay * norm_w
            if not piece.excluded and norm_w and divisor:
                r = self.trust * norm_w / divisor
            local[index] = group.lr * r
        return local

    def update(
        self, data: Array, grad: Array, lr: float, decay: float, velocity: Array, scratch: Array
    ) -> None:
        xp = module_of(data)
        xp.multiply(data, decay, out=scratch)
        scratch += grad
        scratch *= lr  # the rate of this step; the paper's v also contains those of past steps
        velocity *= self.momentum
        velocity += scratch
        data -= velocity


class LAMB(Adam):
    """Adam, with the step of each parameter scaled to the length lr · ‖w‖."""

    layerwise = own_decay = True

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
        weight_decay: float = 1e-2,
        exclude: Sequence[str] = ("*bias",),
        groups: Groups | None = None,
    ) -> None:
        super().__init__(lr, betas, epsilon, weight_decay, exclude, groups)

    def local_rates(
        self, part: Part, data: Array, grad: Array, rates: Sequence[Rates]
    ) -> list[float]:
        """First pass: update m and v with the gradient, and compute ‖w‖ and ‖u‖."""
        xp = module_of(data)
        sums = xp.zeros((2, parameters(part)))
        for piece, scratch in part.pieces_and_scratch():
            where, decay = piece.where, rates[piece.group].decay
            w, m, v = data[where], part.state["mean"][where], part.state["square"][where]
            self.moments(grad[where], m, v, scratch)
            d = self.direction(m, v, scratch)
            if decay and not piece.excluded:
                # u = d + λ·w for the direction d. To need no second scratch array:
                # ‖u‖² = ‖d‖² + 2λ·(d·w) + λ²·‖w‖²
                sums[1, piece.parameter] += 2 * decay * xp.dot(d, w) + decay**2 * xp.dot(w, w)
            sums[0, piece.parameter] += xp.dot(w, w)
            sums[1, piece.parameter] += xp.dot(d, d)
        norms_w, norms_u = norms(part, sums)
        local = [0.0] * parameters(part)
        for piece in part.pieces:
            norm_w, norm_u, r = norms_w[piece.parameter], norms_u[piece.parameter], 1.0
            if not piece.excluded and norm_w and norm_u:
                r = norm_w / norm_u
            local[piece.parameter] = rates[piece.group].lr * r
        return local

    def update(
        self, w: Array, g: Array, lr: float, decay: float, m: Array, v: Array, scratch: Array
    ) -> None:
        """Second pass: compute the step u again, instead of storing it, and apply it."""
        self.direction(m, v, scratch, lr)
        if decay:
            w *= 1 - lr * decay
        w -= scratch


def parameters(part: Part) -> int:
    """The number of parameters of the whole model, the same on every shard."""
    assert part.slices is not None  # without them, Part.cut has raised for a layer-wise rule
    return len(part.slices)
