"""AdaGrad and RMSprop: divide each element's step by the size of its past gradients.

    AdaGrad   s ← s + g²               w ← w - lr · g / (√s + ε)
    RMSprop   s ← ρ·s + (1-ρ)·g²       w ← w - lr · g / (√s + ε)

AdaGrad suits sparse features: an element whose gradient is often zero keeps large steps. But its
sum never shrinks, so its steps become smaller and smaller. RMSprop forgets old gradients. Duchi,
Hazan, Singer, JMLR 12, 2011; Tieleman, Hinton, Coursera lecture 6.5, 2012.

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
        numbers = lr, float(self.epsilon)
        _adagrad(module_of(data), data, grad, square, scratch, *numbers)


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
        rate = float(self.decay_rate)
        numbers = lr, float(self.epsilon), rate, 1 - rate
        _rmsprop(module_of(data), data, grad, square, scratch, *numbers)


@fused
def _rmsprop(
    xp: Any, w: Array, g: Array, s: Array, scratch: Array, lr: float, epsilon: float, *rates: float
) -> None:
    rate, rest = rates  # ρ and 1-ρ
    s *= rate
    xp.multiply(g, g, out=scratch)
    scratch *= rest
    s += scratch
    _step(xp, w, g, s, scratch, lr, epsilon)
