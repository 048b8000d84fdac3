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
from minidist.engine.array import Array, to_host
from minidist.engine.tensor import Tensor
from minidist.nn.module import LayerCost, Module, Shape
from minidist.ops.cross_entropy import check_classes
from minidist.ops.operands import DTypeError


class Loss(Module):
    """Base of all losses: ``forward(output, targets, count=None)``.

    One of your own defines ``forward`` and ``cost``. If not every target counts alike, it defines
    ``count``, too, and sets ``counts_values``. With ``reduction="none"`` the output is the loss of
    each target, which no method can train on.
    """

    counts_values = False  # whether ``count`` depends on the targets' values, not on their shape
    reduction = "mean"

    def count(self, targets: Array) -> float:
        """By how much the loss over these targets is divided, by default their number."""
        return int(np.prod(targets.shape))

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        """(right, all) guesses of classes in an output; (0, 0) if there are no classes to guess."""
        return 0, 0

    def numbers(self, targets: Any) -> Any:
        """``targets``; DTypeError if they are integers, which stand for classes."""
        kind = getattr(getattr(targets, "dtype", None), "kind", "f")
        if kind in "iu":
            raise DTypeError(
                f"{type(self).__name__} wants numbers, and the targets are {targets.dtype}, as "
                'classes are: make them floats where the data is made, y.astype("float32"), or '
                "take CrossEntropy for classes"
            )
        return targets


class CrossEntropy(Loss):
    """Softmax cross-entropy: logits (..., classes) → a scalar.

    Targets are class numbers, integers (...), or the probability of each class, floats (...,
    classes). Class numbers equal to ``ignore_index`` are left out. ``label_smoothing`` is the share
    of each target that is spread equally over all classes. ``weight`` (classes,) is how much each
    class counts, for example more if it is rare: as in PyTorch, the mean is weighted.

    >>> loss = CrossEntropy(ignore_index=-1, weight=[1.0, 3.0])
    >>> loss.count(np.array([0, 1, -1]))
    4.0
    """

    def __init__(
        self,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        weight: Any = None,
        reduction: str = "mean",
    ) -> None:
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.weight = None if weight is None else checked(weight)
        self.reduction = reduction

    @property
    def counts_values(self) -> bool:  # type: ignore[override]
        return self.ignore_index is not None or self.weight is not None

    def count(self, targets: Array) -> float:
        """The number of targets that are not ignored, or the sum of their weights."""
        if targets.dtype.kind == "f":  # probabilities: one target a row
            return int(np.prod(targets.shape[:-1]))
        if not self.counts_values:
            return super().count(targets)
        if self.ignore_index is not None:
            targets = targets[targets != self.ignore_index]
        if self.weight is None:
            return int(targets.size)
        check_classes("CrossEntropy.count", targets, len(self.weight))
        return float(self.weight[to_host(targets)].sum())

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        """The largest logit is the guess."""
        guesses = output.data.argmax(axis=-1)
        if targets.dtype.kind == "f":
            targets = targets.argmax(axis=-1)
        elif self.ignore_index is not None:  # padding is neither right nor wrong
            counted = targets != self.ignore_index
            guesses, targets = guesses[counted], targets[counted]
        check_classes("accuracy", targets, output.shape[-1])
        return int((guesses == targets).sum()), int(targets.size)

    def forward(self, logits: Tensor, targets: Any, count: float | None = None) -> Tensor:
        ignored, smoothing = self.ignore_index, self.label_smoothing
        return ops.cross_entropy(
            logits, targets, count, ignored, smoothing, self.weight, self.reduction
        )

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the probabilities, the targets as int64, and with weights one for each target.

        Exact for class numbers, unless they have weights and are smoothed.
        """
        elements, targets = int(np.prod(shape)), int(np.prod(shape[:-1]))
        each = 8 if self.weight is None else 8 + max(4, itemsize)
        return LayerCost((), saved_bytes=elements * itemsize + targets * each)


def checked(weight: Any) -> np.ndarray:
    """The weights of classes: (classes,) finite numbers, at least 0."""
    found = np.asarray(weight, np.float64)
    if found.ndim != 1 or not (np.isfinite(found) & (found >= 0)).all():
        raise ValueError(
            f"CrossEntropy: weight is a number for each class, finite and at least 0, not {weight}"
        )
    return found


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
    """Squared error near the target, and from a distance of ``delta`` on the distance alone.

    Outliers pull less than in ``MeanSquaredError``: the gradient is never longer than ``delta``.
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
    """Cross-entropy of two classes, from logits: targets of the same shape, in [0, 1].

    Or truth values: batches make 0 and 1 of them.
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        """A positive logit guesses the class 1."""
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
