"""Adam: a step size of its own for every parameter."""

from __future__ import annotations

from minidist.array import Array, module_of
from minidist.optim.optimizer import LearningRate, Optimizer


class Adam(Optimizer):
    """w ← w - lr · m̂ / (√v̂ + ε), from running means m of grad and v of grad².

    m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ) undo the bias of starting at zero.
    Kingma, Ba, "Adam", arXiv 1412.6980, algorithm 1.
    """

    slots = ("mean", "square")

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(lr)
        self.betas = betas
        self.epsilon = epsilon

    def update(self, data: Array, grad: Array, lr: float) -> None:
        beta1, beta2 = self.betas
        mean, square = self.state["mean"], self.state["square"]
        mean *= beta1
        mean += (1 - beta1) * grad
        square *= beta2
        square += (1 - beta2) * grad * grad
        root = module_of(data).sqrt(square / (1 - beta2**self.steps))
        root += self.epsilon
        data -= (lr / (1 - beta1**self.steps)) * mean / root
