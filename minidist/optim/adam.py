"""Adam and AdamW: momentum, and a separate step size for every element.

Algorithm 1 of the paper, with w for the parameters θ, and lr for the step size α:

    m ← 0,  v ← 0,  t ← 0
    in every step:
        t ← t + 1
        g ← the gradient at w
        m ← β₁·m + (1-β₁)·g
        v ← β₂·v + (1-β₂)·g²
        m̂ ← m / (1-β₁ᵗ)
        v̂ ← v / (1-β₂ᵗ)
        w ← w - lr · m̂ / (√v̂ + ε)

m and v start at zero, so at first they are too small; m̂ and v̂ correct this. The end of section 2
gives the last three lines in another order, which needs fewer operations, and is what runs here:

        lrₜ ← lr · √(1-β₂ᵗ) / (1-β₁ᵗ)
        ε̂ ← ε · √(1-β₂ᵗ)
        w ← w - lrₜ · m / (√v + ε̂)

``weight_decay`` of Adam adds λ·w to the gradient, but then the division by √v̂ cancels most of it.
AdamW shrinks the weights themselves instead, before the step: w ← w - lr·λ·w. Kingma, Ba, "Adam",
arXiv 1412.6980; Loshchilov, Hutter, "Decoupled weight decay regularization", arXiv 1711.05101,
algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minidist.engine.array import Array, module_of
from minidist.engine.fusion import fused
from minidist.optim.optimizer import Groups, LearningRate, Optimizer


class Adam(Optimizer):
    """w ← w - lr · m̂ / (√v̂ + ε)."""

    slots = ("mean", "square")  # m and v: the running means of g and of g²

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        exclude: Sequence[str] = (),
        groups: Groups | None = None,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), not {betas}")
        super().__init__(lr, weight_decay, exclude, groups)
        self.betas = betas
        self.epsilon = epsilon

    def update(
        self, w: Array, g: Array, lr: float, decay: float, m: Array, v: Array, scratch: Array
    ) -> None:
        _update(module_of(w), w, g, m, v, scratch, *self.coefficients(), *self.corrected(lr))

    def moments(self, g: Array, m: Array, v: Array, scratch: Array) -> None:
        """Update m and v with a gradient."""
        _moments(module_of(g), g, m, v, scratch, *self.coefficients())

    def direction(self, m: Array, v: Array, scratch: Array, lr: float = 1.0) -> Array:
        """lr · m̂ / (√v̂ + ε), in ``scratch``."""
        _direction(module_of(m), m, v, scratch, *self.corrected(lr))
        return scratch

    def coefficients(self) -> tuple[float, float, float, float]:
        """β₁, 1-β₁, β₂, 1-β₂."""
        beta1, beta2 = self.betas
        return beta1, 1 - beta1, beta2, 1 - beta2

    def corrected(self, lr: float) -> tuple[float, float]:
        """lrₜ and ε̂, which contain the corrections of m̂ and v̂. t is ``steps``."""
        c1, c2 = (1 - beta**self.steps for beta in self.betas)  # 1-β₁ᵗ, 1-β₂ᵗ
        lr_t = lr * c2**0.5 / c1
        epsilon_hat = self.epsilon * c2**0.5
        return lr_t, epsilon_hat


@fused
def _update(
    xp: Any,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    scratch: Array,
    beta1: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
    lr_t: float,
    epsilon_hat: float,
) -> None:
    """The whole step in one function, so that a GPU runs it as one kernel."""
    _moments(xp, g, m, v, scratch, beta1, one_minus_beta1, beta2, one_minus_beta2)
    _direction(xp, m, v, scratch, lr_t, epsilon_hat)
    w -= scratch


@fused
def _moments(
    xp: Any,
    g: Array,
    m: Array,
    v: Array,
    scratch: Array,
    beta1: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
) -> None:
    # m ← β₁·m + (1-β₁)·g
    m *= beta1
    m += xp.multiply(g, one_minus_beta1, out=scratch)
    # v ← β₂·v + (1-β₂)·g²
    v *= beta2
    xp.multiply(g, g, out=scratch)
    scratch *= one_minus_beta2
    v += scratch


@fused
def _direction(xp: Any, m: Array, v: Array, out: Array, lr_t: float, epsilon_hat: float) -> None:
    # out ← lrₜ · m / (√v + ε̂) = lr · m̂ / (√v̂ + ε)
    xp.sqrt(v, out=out)
    out += epsilon_hat
    xp.divide(m, out, out=out)
    out *= lr_t


class AdamW(Adam):
    """w ← (1 - lr·λ)·w - lr · m̂ / (√v̂ + ε). λ is ``weight_decay``."""

    own_decay = True

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 1e-2,
        exclude: Sequence[str] = (),
        groups: Groups | None = None,
    ) -> None:
        super().__init__(lr, betas, epsilon, weight_decay, exclude, groups)

    def update(
        self, w: Array, g: Array, lr: float, decay: float, m: Array, v: Array, scratch: Array
    ) -> None:
        if decay:
            w *= 1 - lr * decay
        super().update(w, g, lr, decay, m, v, scratch)
