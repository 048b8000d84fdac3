"""LARS and LAMB: a separate learning rate for each parameter, for very large batches.

A large batch needs a large rate, but the largest stable rate differs from layer to layer. Both
rules make the step of a layer proportional to the norm ‖w‖ of its weights:

    LARS   r = η·‖w‖ / (‖g‖ + λ·‖w‖)                      v ← μ·v + lr·r·(g + λ·w);  w ← w - v
    LAMB   u = m̂ / (√v̂ + ε) + λ·w,  r = ‖w‖ / ‖u‖         w ← w - lr·r·u

Parameters in ``exclude`` have r = 1 and no weight decay (biases and norms, as in the code of both
papers). A parameter has r = 1 also if its ‖w‖ or its step is zero. You, Gitman, Ginsburg, arXiv
1708.03888, algorithm 1; You et al., arXiv 1904.00962, algorithm 2 with φ the identity.

A norm is that of a whole parameter. If shards cut through parameters, ``bind(..., reduce=...)``
sums the squares over all shards: two float64 numbers for each parameter and step. The result then
equals serial training up to rounding, because the order of the sums differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidist.engine.array import Array, module_of, read
from minidist.engine.kernels import wide
from minidist.optim.adam import Adam
from minidist.optim.optimizer import Groups, LearningRate, Part, Rates
from minidist.optim.sgd import Momentum


def norms(part: Part, pairs: Array) -> list[list[float]]:
    """Two lists of norms of whole parameters, from (2, parameters) sums of squares."""
    sums = read(pairs, 1.0).astype(np.float64, copy=False)
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
            w, g = wide(data[piece.part]), wide(grad[piece.part])  # squares overflow in float16
            sums[0, piece.parameter] += xp.dot(w, w)
            sums[1, piece.parameter] += xp.dot(g, g)
        weights, grads = norms(part, sums)
        found = [0.0] * parameters(part)
        for piece in part.pieces:
            index, own = piece.parameter, rates[piece.group]
            below = grads[index] + own.decay * weights[index]
            adapts = not piece.excluded and weights[index] and below
            found[index] = own.lr * (self.trust * weights[index] / below if adapts else 1.0)
        return found

    def update(
        self, data: Array, grad: Array, lr: float, decay: float, velocity: Array, scratch: Array
    ) -> None:
        xp = module_of(data)
        xp.multiply(data, decay, out=scratch)
        scratch += grad
        scratch *= lr  # here and not when v is applied: a layer's rate changes from step to step
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
            where, decay = piece.part, rates[piece.group].decay
            m, v = part.state["mean"][where], part.state["square"][where]
            self.moments(grad[where], m, v, scratch)
            self.direction(m, v, scratch)
            if decay and not piece.excluded:
                # u = direction + λ·w. Without a second scratch array: ‖u‖² as a sum of three terms
                cross = xp.dot(scratch, data[where]) * (2 * decay)
                weight = xp.dot(data[where], data[where])
                sums[1, piece.parameter] += cross + decay**2 * weight
            sums[0, piece.parameter] += xp.dot(data[where], data[where])
            sums[1, piece.parameter] += xp.dot(scratch, scratch)
        weights, steps = norms(part, sums)
        found = [0.0] * parameters(part)
        for piece in part.pieces:
            index = piece.parameter
            adapts = not piece.excluded and weights[index] and steps[index]
            found[index] = rates[piece.group].lr * (
                weights[index] / steps[index] if adapts else 1.0
            )
        return found

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
    assert part.slices is not None  # pieces of a layer-wise rule require it
    return len(part.slices)
