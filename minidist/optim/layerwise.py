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
from minidist.optim.adam import Adam
from minidist.optim.optimizer import LearningRate, Optimizer
from minidist.optim.sgd import Momentum


def norms(optimizer: Optimizer, pairs: Array) -> list[list[float]]:
    """Two lists of norms of whole parameters, from (2, parameters) sums of squares."""
    sums = read(pairs, 1.0).astype(np.float64, copy=False)
    layout = optimizer.layout
    assert layout is not None  # pieces of a layer-wise rule require it
    if layout.reduce is not None:
        layout.reduce(sums)
    return np.sqrt(sums).tolist()


class LARS(Momentum):
    """Layer-wise adaptive rate scaling: momentum with a rate for each parameter."""

    layerwise = True

    def __init__(
        self,
        lr: LearningRate,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        exclude: Sequence[str] = ("*bias",),
        trust: float = 1e-3,
    ) -> None:
        super().__init__(lr, momentum, weight_decay, exclude)
        self.trust = trust

    def local_rates(self, data: Array, grad: Array, lr: float) -> list[float]:
        xp = module_of(data)
        sums = xp.zeros((2, parameters(self)))
        for piece, _ in self.pieces():
            sums[0, piece.parameter] += xp.dot(data[piece.part], data[piece.part])
            sums[1, piece.parameter] += xp.dot(grad[piece.part], grad[piece.part])
        rates = [lr] * parameters(self)
        weights, grads = norms(self, sums)
        for index in adapted(self):
            below = grads[index] + self.weight_decay * weights[index]
            if weights[index] and below:
                rates[index] = lr * self.trust * weights[index] / below
        return rates

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

    layerwise = True

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
        weight_decay: float = 1e-2,
        exclude: Sequence[str] = ("*bias",),
    ) -> None:
        super().__init__(lr, betas, epsilon, weight_decay, exclude)

    def local_rates(self, data: Array, grad: Array, lr: float) -> list[float]:
        """First pass: update m and v with the gradient, and compute ‖w‖ and ‖u‖."""
        xp = module_of(data)
        sums = xp.zeros((2, parameters(self)))
        for piece, scratch in self.pieces():
            part = piece.part
            m, v = self.state["mean"][part], self.state["square"][part]
            self.moments(grad[part], m, v, scratch)
            self.direction(m, v, scratch)
            if self.weight_decay and not piece.excluded:
                # u = direction + λ·w. Without a second scratch array: ‖u‖² as a sum of three terms
                cross = xp.dot(scratch, data[part]) * (2 * self.weight_decay)
                weight = xp.dot(data[part], data[part])
                sums[1, piece.parameter] += cross + self.weight_decay**2 * weight
            sums[0, piece.parameter] += xp.dot(data[part], data[part])
            sums[1, piece.parameter] += xp.dot(scratch, scratch)
        rates = [lr] * parameters(self)
        weights, steps = norms(self, sums)
        for index in adapted(self):
            if weights[index] and steps[index]:
                rates[index] = lr * weights[index] / steps[index]
        return rates

    def update(
        self, w: Array, g: Array, lr: float, decay: float, m: Array, v: Array, scratch: Array
    ) -> None:
        """Second pass: compute the step u again, instead of storing it, and apply it."""
        self.direction(m, v, scratch, lr)
        if decay:
            w *= 1 - lr * decay
        w -= scratch


def parameters(optimizer: Optimizer) -> int:
    """The number of parameters of the whole model, the same on every shard."""
    assert optimizer.layout is not None
    return len(optimizer.layout.slices)


def adapted(optimizer: Optimizer) -> set[int]:
    """The parameters in this array that have their own rate, by index."""
    return {piece.parameter for piece, _ in optimizer.pieces() if not piece.excluded}
