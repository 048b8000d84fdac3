"""Losses: sums over targets, divided by a count of the *global* batch's targets.

``loss(output, targets, count)`` is what every parallel method calls. All parts of a batch are
divided by the same number, so their losses and gradients *add up* to the serial ones. Uneven shards
and unequal token counts need no correction.

What counts is the loss's to say, and only the loss's: ``loss.count(targets)`` is that number, and
``loss.guesses`` says which outputs are right, for accuracies. Targets that a loss ignores are left
out of both. The count is that of PyTorch's mean: the number of targets, or with class weights the
sum of their weights. There is no mean over no targets: a batch of which all are ignored is refused
(PyTorch's loss is NaN then).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.nn.module import LayerCost, Module, Shape
from minidist.ops.losses import check_classes


class Loss(Module):
    """Base of all losses: ``forward(output, targets, count=None)``.

    One of your own defines ``forward`` and ``cost``. If not every target counts alike, it defines
    ``count``, too, and sets ``counts_values``.
    """

    counts_values = False  # whether ``count`` depends on the targets' values, not on their shape

    def count(self, targets: Array) -> float:
        """By how much the loss over these targets is divided, by default their number."""
        return int(np.prod(targets.shape))

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        """(right, all) guesses of classes in an output; (0, 0) if there are no classes to guess."""
        return 0, 0


class CrossEntropy(Loss):
    """Softmax cross-entropy: logits (..., classes), integer targets (...) → a scalar.

    Targets equal to ``ignore_index`` are left out. ``label_smoothing`` is the share of each target
    that is spread equally over all classes.
    """

    def __init__(self, ignore_index: int | None = None, label_smoothing: float = 0.0) -> None:
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    @property
    def counts_values(self) -> bool:  # type: ignore[override]
        return self.ignore_index is not None

    def count(self, targets: Array) -> float:
        if self.ignore_index is None:
            return super().count(targets)
        return int((targets != self.ignore_index).sum())

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        """The largest logit is the guess."""
        guesses = output.data.argmax(axis=-1)
        if self.ignore_index is not None:  # padding is neither right nor wrong
            counted = targets != self.ignore_index
            guesses, targets = guesses[counted], targets[counted]
        check_classes("accuracy", targets, output.shape[-1])
        return int((guesses == targets).sum()), int(targets.size)

    def forward(self, logits: Tensor, targets: Any, count: float | None = None) -> Tensor:
        return ops.cross_entropy(logits, targets, count, self.ignore_index, self.label_smoothing)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the probabilities, and the targets as int64."""
        elements, targets = int(np.prod(shape)), int(np.prod(shape[:-1]))
        return LayerCost((), saved_bytes=elements * itemsize + targets * 8)


class MeanSquaredError(Loss):
    """Σ (output - target)² / count, for outputs and targets of the same shape."""

    def forward(self, output: Tensor, targets: Any, count: float | None = None) -> Tensor:
        return ops.mean_squared_error(output, targets, count)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the differences."""
        return LayerCost((), saved_bytes=int(np.prod(shape)) * itemsize)


class BinaryCrossEntropy(Loss):
    """Cross-entropy of two classes, from logits: targets of the same shape, in [0, 1]."""

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        """A positive logit guesses the class 1."""
        right = (output.data > 0) == (targets > 0.5)
        return int(right.sum()), right.size

    def forward(self, logits: Tensor, targets: Any, count: float | None = None) -> Tensor:
        return ops.binary_cross_entropy(logits, targets, count)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the gradient."""
        return LayerCost((), saved_bytes=int(np.prod(shape)) * itemsize)
