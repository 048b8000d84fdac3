"""AdaGrad and RMSprop: divide each element's step by the size of its past gradients.

    AdaGrad   s ← s + g²               w ← w - lr · g / (√s + ε)
    RMSprop   s ← ρ·s + (1-ρ)·g²       w ← w - lr · g / (√s + ε)

AdaGrad suits sparse features: an element whose gradient is often zero keeps large steps. But s
never shrinks, so the steps become smaller and smaller. RMSprop's s is a running average instead,
which forgets old gradients. Duchi, Hazan, Singer, JMLR 12, 2011; Tieleman, Hinton, Coursera lecture
6.5, 2012.

``weight_decay`` adds λ·w to the gradient g, as PyTorch's rules of these names do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minidist.engine.array import Array, module_of
from minidist.engine.fusion import fused
from minidist.optim.optimizer import Groups, LearningRate, Optimizer


class AdaGrad(Optimizer):
    """s ← s + g²; w ← w - lr · g / (√s + ε)."""

    slots = ("square",)

    def __init__(
        self,
        lr: LearningRate = 1e-2,
        epsilon: float = 1e-10,
        weight_decay: float = 0.0,
        exclude: Sequence[str] = (),
        groups: Groups | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, exclude, groups)
        self.epsilon = epsilon

    def update(
        self, data: Array, grad: Array, lr: float, decay: float, square: Array, scratch: Array
    ) -> None:
        _adagrad(module_of(data), data, grad, square, scratch, lr, float(self.epsilon))


@fused
def _adagrad(
    xp: Any, w: Array, g: Array, s: Array, scratch: Array, lr: float, epsilon: float
) -> None:
    s += xp.multiply(g, g, out=scratch)
    _step(xp, w, g, s, scratch, lr, epsilon)


@fused
def _step(xp: Any, w: Array, g: Array, s: Array, scratch: Array, lr: float, epsilon: float) -> None:
    # w ← w - lr · g / (√s + ε)
    xp.sqrt(s, out=scratch)
    scratch += epsilon
    xp.divide(g, scratch, out=scratch)
    scratch *= lr
    w -= scratch


class RMSprop(Optimizer):
    """s ← ρ·s + (1-ρ)·g²; w ← w - lr · g / (√s + ε)."""

    slots = ("square",)

    def __init__(
        self,
        lr: LearningRate = 1e-2,
        decay_rate: float = 0.99,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        exclude: Sequence[str] = (),
        groups: Groups | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, exclude, groups)
        self.decay_rate = decay_rate
        self.epsilon = epsilon

    def update(
        self, data: Array, grad: Array, lr: float, decay: float, square: Array, scratch: Array
    ) -> None:
        xp, epsilon, rho = module_of(data), float(self.epsilon), float(self.decay_rate)
        _rmsprop(xp, data, grad, square, scratch, lr, epsilon, rho, 1 - rho)


@fused
def _rmsprop(
    xp: Any,
    w: Array,
    g: Array,
    s: Array,
    scratch: Array,
    lr: float,
    epsilon: float,
    rho: float,
    one_minus_rho: float,
) -> None:
    # s ← ρ·s + (1-ρ)·g²
    s *= rho
    xp.multiply(g, g, out=scratch)
    scratch *= one_minus_rho
    s += scratch
    _step(xp, w, g, s, scratch, lr, epsilon)
