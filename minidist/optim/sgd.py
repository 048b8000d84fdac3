"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from minidist.array import Array
from minidist.optim.optimizer import LearningRate, Optimizer


class SGD(Optimizer):
    """w ← w - lr · v, where v ← momentum · v + grad (Polyak's heavy ball, as PyTorch writes it).

    Without momentum v is the gradient itself and no state is kept.
    """

    def __init__(self, lr: LearningRate, momentum: float = 0.0) -> None:
        super().__init__(lr)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        self.momentum = momentum
        self.slots = ("velocity",) if momentum else ()

    def update(self, data: Array, grad: Array, lr: float) -> None:
        if self.momentum:
            velocity = self.state["velocity"]
            velocity *= self.momentum
            velocity += grad
            grad = velocity
        data -= lr * grad
