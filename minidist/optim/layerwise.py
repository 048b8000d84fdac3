"""LARS and LAMB: a learning rate for each parameter, so that very large batches train.

A large batch wants a large rate, but the largest stable rate differs by layer. Both rules make the
step of a layer proportional to the layer's own norm ‖w‖:

    LARS   r = η·‖w‖ / (‖g‖ + λ·‖w‖)                      v ← μ·v + lr·r·(g + λ·w);  w ← w - v
    LAMB   u = m̂ / (√v̂ + ε) + λ·w,  r = ‖w‖ / ‖u‖         w ← w - lr·r·u

Parameters in ``exclude`` (biases and norms, as both papers' code has it) take r = 1 and no decay;
so does one whose ‖w‖ or step is zero. You, Gitman, Ginsburg, arXiv 1708.03888, algorithm 1; You
et al., arXiv 1904.00962, algorithm 2 with φ the identity.

Norms need whole parameters. On a shard that cuts through them, ``bind(..., reduce=...)`` sums the
squares over all shards: two float64 numbers a parameter and step. The result then equals serial
up to rounding (sums in another order), not bitwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidist.engine.array import Array, module_of, to_host
from minidist.optim.adam import Adam
from minidist.optim.optimizer import LearningRate, Optimizer
from minidist.optim.sgd import Momentum


def norms(optimizer: Optimizer, pairs: Array) -> list[list[float]]:
    """Norms of whole parameters, [of the first things, of the second], from sums of squares."""
    sums = to_host(pairs).astype(np.float64, copy=False)
    layout = optimizer.layout
    assert layout is not None  # cutting at parameters has asked for it
    if layout.reduce is not None:
        layout.reduce(sums)
    return np.sqrt(sums).tolist()


class LARS(Momentum):
    """Layer-wise adaptive rate scaling: momentum whose rate is a fixed share of the norm."""

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
        scratch *= lr  # here, not when v is used: the rate of a layer differs from step to step
        velocity *= self.momentum
        velocity += scratch
        data -= velocity


class LAMB(Adam):
    """Adam whose step, for each parameter, is as long as the parameter itself, times lr."""

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
        """First pass: take the gradient into the moments, and measure w and u."""
        xp = module_of(data)
        sums = xp.zeros((2, parameters(self)))
        for piece, scratch in self.pieces():
            part = piece.part
            mean, square = self.state["mean"][part], self.state["square"][part]
            self.moments(grad[part], mean, square, scratch)
            self.direction(mean, square, scratch)
            if self.weight_decay and not piece.excluded:
                # u = direction + λ·w, and no second scratch: ‖u‖² term by term
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
        self,
        data: Array,
        grad: Array,
        lr: float,
        decay: float,
        mean: Array,
        square: Array,
        scratch: Array,
    ) -> None:
        """Second pass: make the step u again (cheaper than storing it) and apply it."""
        self.direction(mean, square, scratch, scale=lr)
        if decay:
            data *= 1 - lr * decay
        data -= scratch


def parameters(optimizer: Optimizer) -> int:
    """How many parameters the whole model has: on every shard the same."""
    assert optimizer.layout is not None
    return len(optimizer.layout.slices)


def adapted(optimizer: Optimizer) -> set[int]:
    """The parameters held here that take a rate of their own."""
    return {piece.parameter for piece, _ in optimizer.pieces() if not piece.excluded}
