"""Gradient descent and momentum: steps that also use past gradients.

                     g  the gradient, w the parameters, v the velocity, μ the momentum
    GradientDescent  w ← w - lr · g
    Momentum         v ← μ·v + g;    w ← w - lr · v
    Nesterov         v ← μ·v + g;    w ← w - lr · (g + μ·v)
    SGD              one of the first two, with the gradient of a random batch

Robbins, Monro 1951; Polyak, "Some methods of speeding up the convergence of iteration methods",
1964; Nesterov 1983, in the form of Sutskever et al., "On the importance of initialization and
momentum in deep learning", ICML 2013. The formulas are PyTorch's: lr multiplies v when the step is
made, not g when it is added to v. ``weight_decay`` adds λ·w to the gradient, as an L2 penalty of
λ/2 · ‖w‖² does: see optimizer.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minidist.engine.array import Array, module_of
from minidist.engine.fusion import fused
from minidist.optim.optimizer import Groups, LearningRate, Optimizer


class GradientDescent(Optimizer):
    """w ← w - lr · g."""

    def update(self, data: Array, grad: Array, lr: float, decay: float, scratch: Array) -> None:
        _descend(module_of(data), data, grad, scratch, lr)


@fused
def _descend(xp: Any, w: Array, g: Array, scratch: Array, lr: float) -> None:
    w -= xp.multiply(g, lr, out=scratch)


class Momentum(Optimizer):
    """v ← μ·v + g; w ← w - lr · v. Gradients of one direction add up; alternating ones cancel."""

    slots: tuple[str, ...] = ("velocity",)

    def __init__(
        self,
        lr: LearningRate,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        exclude: Sequence[str] = (),
        groups: Groups | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, exclude, groups)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        self.momentum = momentum

    def update(
        self, data: Array, grad: Array, lr: float, decay: float, velocity: Array, scratch: Array
    ) -> None:
        _momentum(module_of(data), data, grad, velocity, scratch, lr, float(self.momentum))


@fused
def _momentum(
    xp: Any, w: Array, g: Array, v: Array, scratch: Array, lr: float, momentum: float
) -> None:
    v *= momentum
    v += g
    w -= xp.multiply(v, lr, out=scratch)


class Nesterov(Momentum):
    """v ← μ·v + g; w ← w - lr · (g + μ·v): as if the gradient were taken one step ahead."""

    def update(
        self, data: Array, grad: Array, lr: float, decay: float, velocity: Array, scratch: Array
    ) -> None:
        _nesterov(module_of(data), data, grad, velocity, scratch, lr, float(self.momentum))


@fused
def _nesterov(
    xp: Any, w: Array, g: Array, v: Array, scratch: Array, lr: float, momentum: float
) -> None:
    v *= momentum
    v += g
    w -= xp.multiply(g, lr, out=scratch)
    w -= xp.multiply(v, lr * momentum, out=scratch)


class SGD(Momentum):
    """Stochastic gradient descent: Momentum, or without momentum GradientDescent."""

    def __init__(
        self,
        lr: LearningRate,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        exclude: Sequence[str] = (),
        groups: Groups | None = None,
    ) -> None:
        super().__init__(lr, momentum, weight_decay, exclude, groups)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]
        """The velocity, if there is or was momentum: ``momentum`` may change between steps."""
        begun = any("velocity" in part.state for part in self.parts)
        return ("velocity",) if self.momentum or begun else ()

    def update(
        self, data: Array, grad: Array, lr: float, decay: float, *velocity_and_scratch: Array
    ) -> None:
        rule = Momentum if len(velocity_and_scratch) == 2 else GradientDescent
        rule.update(self, data, grad, lr, decay, *velocity_and_scratch)  # type: ignore[arg-type]
