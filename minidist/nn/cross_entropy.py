"""Cross-entropy: the loss of classifiers and of language models. See loss.py for the count."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.array import Array, to_host
from minidist.engine.tensor import Tensor
from minidist.nn.loss import Loss
from minidist.nn.module import LayerCost, Shape
from minidist.ops.class_numbers import check_classes


class CrossEntropy(Loss):
    """Softmax cross-entropy: logits (..., classes) → a scalar.

    Targets are class numbers, integers (...), or the probability of each class, floats (...,
    classes). Class numbers equal to ``ignore_index`` are left out. ``label_smoothing`` is the share
    of each target that is distributed equally over all classes. ``z_loss`` adds z_loss · (log Σ exp
    logits)² for each target that counts, which keeps the logits from drifting (arXiv 2204.02311,
    section 5). ``weight`` (classes,) is the weight of each class, for example larger for rare
    classes: as in PyTorch, the mean is weighted.

    >>> loss = CrossEntropy(ignore_index=-1, weight=[1.0, 3.0])
    >>> loss.count(np.array([0, 1, -1]))
    4.0
    """

    def __init__(
        self,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        weight: Any = None,
        reduction: str = "mean",
    ) -> None:
        if not z_loss >= 0:
            raise ValueError(f"CrossEntropy: z_loss must be at least 0, not {z_loss}")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.weight = None if weight is None else checked(weight)
        self.reduction = reduction

    @property
    def counts_values(self) -> bool:  # type: ignore[override]
        return self.ignore_index is not None or self.weight is not None

    def count(self, targets: Array) -> float:
        """The number of targets that are not ignored, or the sum of their weights."""
        if targets.dtype.kind == "f":  # probabilities: each row is a target
            return math.prod(targets.shape[:-1])
        if not self.counts_values:
            return super().count(targets)
        if self.ignore_index is not None:
            targets = targets[targets != self.ignore_index]
        if self.weight is None:
            return int(targets.size)
        check_classes("CrossEntropy.count", targets, len(self.weight))
        return float(self.weight[to_host(targets)].sum())

    def predictions(self, logits: Array) -> Array:
        """The class of the largest logit: (..., classes) → (...)."""
        return logits.argmax(axis=-1)

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        guesses = self.predictions(output.data)
        if targets.dtype.kind == "f":
            targets = targets.argmax(axis=-1)
        elif self.ignore_index is not None:  # padding is neither right nor wrong
            counted = targets != self.ignore_index
            guesses, targets = guesses[counted], targets[counted]
        check_classes("accuracy", targets, self.classes_of(output))
        return int((guesses == targets).sum()), int(targets.size)

    def classes_of(self, output: Tensor) -> int:
        """How many classes there are."""
        return output.shape[-1]

    def forward(self, logits: Tensor, targets: Any, count: float | None = None) -> Tensor:
        ignored, smoothing = self.ignore_index, self.label_smoothing
        loss = ops.cross_entropy(
            logits, targets, count, ignored, smoothing, self.weight, self.reduction
        )
        return loss + self._z_loss(logits, targets, count) if self.z_loss else loss

    def _z_loss(self, logits: Tensor, targets: Any, count: float | None) -> Tensor:
        xp = logits.xp
        targets = xp.asarray(targets.data if isinstance(targets, Tensor) else targets)
        soft = targets.dtype.kind == "f"
        weights = xp.ones(logits.shape[:-1], logits.dtype)  # of each row
        if self.weight is not None and not soft:
            classes = xp.clip(targets, 0, len(self.weight) - 1)  # ignored ones may be out of range
            weights *= xp.asarray(self.weight, logits.dtype)[classes]
        if self.ignore_index is not None:  # the logits of ignored rows may be NaN
            counted = targets != self.ignore_index
            weights *= counted
            logits = ops.where(counted[..., None], logits, 0.0)
        normalizer = ops.logsumexp(logits, axis=-1)  # log Σ exp, of each row
        losses = normalizer * normalizer * weights
        if self.reduction == "none":
            return losses * self.z_loss
        count = self.count(targets) if count is None else count
        return losses.sum() * (self.z_loss / count)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the probabilities, the targets as int64, and with weights one for each target.

        With z-loss also the logits, and for each row log Σ exp, its weight, and whether it is
        ignored. Exact for class numbers, except with both weights and label smoothing.
        """
        elements, targets = int(np.prod(shape)), int(np.prod(shape[:-1]))
        each = 8 if self.weight is None else 8 + max(4, itemsize)
        saved = elements * itemsize + targets * each
        if self.z_loss:
            saved += (elements + 2 * targets) * itemsize
            saved += targets * (self.ignore_index is not None)  # truth values
        return LayerCost((), saved_bytes=saved)


def checked(weight: Any) -> np.ndarray:
    """The weights of classes: (classes,) finite numbers, at least 0."""
    weights = np.asarray(weight, np.float64)
    if weights.ndim != 1 or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(
            f"CrossEntropy: weight is a number for each class, finite and at least 0, not {weight}"
        )
    return weights
