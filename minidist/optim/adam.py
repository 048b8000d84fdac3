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

from minidist.array import Array, module_of
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
        xp = module_of(grad)
        beta1, beta2 = self.betas
        mean *= beta1
        mean += xp.multiply(grad, 1 - beta1, out=scratch)
        square *= beta2
        xp.multiply(grad, grad, out=scratch)
        scratch *= 1 - beta2
        square += scratch

    def direction(self, mean: Array, square: Array, scratch: Array, scale: float = 1.0) -> Array:
        """scale · m̂ / (√v̂ + ε), in ``scratch``.

        Both divisions by 1-βᵗ are moved into the two scalars, as the paper's section 2 advises:
        m̂ / (√v̂ + ε) = m / (√v + ε·√c₂) · √c₂ / c₁ with c = 1-βᵗ.
        """
        xp = module_of(mean)
        c1, c2 = (1 - beta**self.steps for beta in self.betas)
        xp.sqrt(square, out=scratch)
        scratch += self.epsilon * c2**0.5
        xp.divide(mean, scratch, out=scratch)
        scratch *= scale * c2**0.5 / c1
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
        self.moments(grad, mean, square, scratch)
        data -= self.direction(mean, square, scratch, scale=lr)


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
