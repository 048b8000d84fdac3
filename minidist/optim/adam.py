"""Adam and AdamW: momentum, and a step size of its own for every element.

    m ← β₁·m + (1-β₁)·g        m̂ = m / (1-β₁ᵗ)
    v ← β₂·v + (1-β₂)·g²       v̂ = v / (1-β₂ᵗ)        w ← w - lr · m̂ / (√v̂ + ε)

m̂ and v̂ undo the bias of starting at zero, t counting steps from 1. AdamW first shrinks the weights
themselves, w ← w - lr·λ·w, rather than adding λ·w to the gradient, where the division by √v̂ would
undo most of it. Kingma, Ba, "Adam", arXiv 1412.6980, algorithm 1; Loshchilov, Hutter,
"Decoupled weight decay regularization", arXiv 1711.05101, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minidist.engine.array import Array, fused, module_of
from minidist.optim.optimizer import LearningRate, Optimizer


class Adam(Optimizer):
    """w ← w - lr · m̂ / (√v̂ + ε)."""

    slots = ("mean", "square")

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        exclude: Sequence[str] = (),
    ) -> None:
        if weight_decay and type(self) is Adam:
            raise ValueError("Adam has no weight decay of its own: use AdamW")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), not {betas}")
        super().__init__(lr, weight_decay, exclude)
        self.betas = betas
        self.epsilon = epsilon

    def moments(self, grad: Array, mean: Array, square: Array, scratch: Array) -> None:
        """Take one gradient into the running means m and v."""
        _moments(module_of(grad), grad, mean, square, scratch, *self.weights())

    def direction(self, mean: Array, square: Array, scratch: Array, scale: float = 1.0) -> Array:
        """scale · m̂ / (√v̂ + ε), in ``scratch``."""
        _direction(module_of(mean), mean, square, scratch, *self.corrected(scale))
        return scratch

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
        numbers = *self.weights(), *self.corrected(lr)
        _update(module_of(data), data, grad, mean, square, scratch, *numbers)

    def weights(self) -> tuple[float, float, float, float]:
        """β₁, 1-β₁, β₂, 1-β₂."""
        beta1, beta2 = self.betas
        return beta1, 1 - beta1, beta2, 1 - beta2

    def corrected(self, scale: float) -> tuple[float, float]:
        """ε and the scale with both divisions by 1-βᵗ moved into them, as the paper's section 2
        advises: m̂ / (√v̂ + ε) = m / (√v + ε·√c₂) · √c₂ / c₁ with c = 1-βᵗ.
        """
        c1, c2 = (1 - beta**self.steps for beta in self.betas)
        return self.epsilon * c2**0.5, scale * c2**0.5 / c1


@fused
def _moments(
    xp: Any, grad: Array, mean: Array, square: Array, scratch: Array, *weights: float
) -> None:
    beta1, rest1, beta2, rest2 = weights
    mean *= beta1
    mean += xp.multiply(grad, rest1, out=scratch)
    square *= beta2
    xp.multiply(grad, grad, out=scratch)
    scratch *= rest2
    square += scratch


@fused
def _direction(
    xp: Any, mean: Array, square: Array, scratch: Array, epsilon: float, scale: float
) -> None:
    xp.sqrt(square, out=scratch)
    scratch += epsilon
    xp.divide(mean, scratch, out=scratch)
    scratch *= scale


@fused
def _update(
    xp: Any, data: Array, grad: Array, mean: Array, square: Array, scratch: Array, *numbers: float
) -> None:
    """The whole rule, so that a GPU runs it as one kernel."""
    _moments(xp, grad, mean, square, scratch, *numbers[:4])
    _direction(xp, mean, square, scratch, *numbers[4:])
    data -= scratch


class AdamW(Adam):
    """w ← (1 - lr·λ)·w - lr · m̂ / (√v̂ + ε). λ is ``weight_decay``."""

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 1e-2,
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__(lr, betas, epsilon, weight_decay, exclude)

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
        if decay:
            data *= 1 - lr * decay
        super().update(data, grad, lr, decay, mean, square, scratch)
