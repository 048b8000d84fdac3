"""Losses of numbers and of probabilities. See loss.py for their contract."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.nn.cross_entropy import CrossEntropy
from minidist.nn.loss import Loss
from minidist.nn.module import LayerCost, Shape

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Huber",
    "KLDivergence",
    "Loss",
    "MeanSquaredError",
]


class MeanSquaredError(Loss):
    """Σ (output - target)² / count, for outputs and targets of the same shape."""

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def forward(self, output: Tensor, targets: Any, count: float | None = None) -> Tensor:
        return ops.mean_squared_error(output, self.numbers(targets), count, self.reduction)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the differences."""
        return LayerCost((), saved_bytes=int(np.prod(shape)) * itemsize)


class Huber(Loss):
    """Squared error within ``delta`` of the target, and beyond it linear in the distance.

    Outliers have less influence than in ``MeanSquaredError``: the gradient is limited to ±delta.
    """

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        self.delta = delta
        self.reduction = reduction

    def forward(self, output: Tensor, targets: Any, count: float | None = None) -> Tensor:
        return ops.huber(output, self.numbers(targets), count, self.delta, self.reduction)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the gradient."""
        return LayerCost((), saved_bytes=int(np.prod(shape)) * itemsize)


class BinaryCrossEntropy(Loss):
    """Cross-entropy of two classes, from logits; targets of the same shape, in [0, 1].

    Targets may be booleans: batches convert them to 0 and 1.
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        """The guess is class 1 for a positive logit."""
        right = (output.data > 0) == (targets > 0.5)
        return int(right.sum()), right.size

    def forward(self, logits: Tensor, targets: Any, count: float | None = None) -> Tensor:
        return ops.binary_cross_entropy(logits, self.numbers(targets), count, self.reduction)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the gradient."""
        return LayerCost((), saved_bytes=int(np.prod(shape)) * itemsize)


class KLDivergence(Loss):
    """Σ t (log t - x) / count: from log-probabilities x, which ``log_softmax`` gives, to t.

    Targets are probabilities of the same shape (..., classes), or their logarithms with
    ``log_target``; the count is the number of distributions, as in PyTorch's "batchmean".
    """

    def __init__(self, log_target: bool = False, reduction: str = "mean") -> None:
        self.log_target = log_target
        self.reduction = reduction

    def count(self, targets: Array) -> float:
        return int(np.prod(targets.shape[:-1]))

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        """The most probable class is the guess."""
        right = output.data.argmax(axis=-1) == targets.argmax(axis=-1)
        return int(right.sum()), right.size

    def forward(self, output: Tensor, targets: Any, count: float | None = None) -> Tensor:
        targets = self.numbers(targets)
        return ops.kl_divergence(output, targets, count, self.log_target, self.reduction)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the probabilities."""
        return LayerCost((), saved_bytes=int(np.prod(shape)) * itemsize)
