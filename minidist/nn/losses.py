"""Losses: sums over targets, divided by the *global* number of targets.

``loss(output, targets, count)`` is what every parallel method calls. It divides by ``count``, the
number of targets in the global batch, so the losses and gradients of the parts of a batch *add
up* to the serial ones. Uneven shards and unequal token counts need no correction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.tensor import Tensor
from minidist.nn.module import LayerCost, Module, Shape


class CrossEntropy(Module):
    """Softmax cross-entropy: logits (..., classes), integer targets (...) → a scalar.

    Targets equal to ``ignore_index`` are left out. ``label_smoothing`` is the share of each target
    that is spread equally over all classes. ``z_loss`` adds z_loss · (log Σ exp logits)² for each
    target that counts, which keeps the logits from drifting (arXiv 2204.02311, section 5).
    """

    def __init__(
        self,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        if not z_loss >= 0:
            raise ValueError(f"CrossEntropy: z_loss must be at least 0, not {z_loss}")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def forward(self, logits: Tensor, targets: Any, count: int | None = None) -> Tensor:
        loss = ops.cross_entropy(logits, targets, count, self.ignore_index, self.label_smoothing)
        return loss + self._z_loss(logits, targets, count) if self.z_loss else loss

    def _z_loss(self, logits: Tensor, targets: Any, count: int | None) -> Tensor:
        kept = logits.xp.ones(targets.shape, bool)
        if self.ignore_index is not None:
            kept = logits.xp.asarray(targets) != self.ignore_index
        count = int(kept.sum()) if count is None else count
        normalizer = ops.logsumexp(logits, axis=-1)  # log Σ exp, of each row
        kept = kept.astype(logits.dtype)
        return (normalizer * normalizer * kept).sum() * (self.z_loss / max(1, count))

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the probabilities, and the targets as int64.

        With z-loss also the logits, and for each row log Σ exp and whether it counts.
        """
        elements, targets = int(np.prod(shape)), int(np.prod(shape[:-1]))
        saved = elements * itemsize + targets * 8
        if not self.z_loss:
            return LayerCost((), saved_bytes=saved)
        return LayerCost((), saved_bytes=saved + (elements + 2 * targets) * itemsize)


class MeanSquaredError(Module):
    """Σ (output - target)² / count, for outputs and targets of the same shape."""

    def forward(self, output: Tensor, targets: Any, count: int | None = None) -> Tensor:
        return ops.mean_squared_error(output, targets, count)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the differences."""
        return LayerCost((), saved_bytes=int(np.prod(shape)) * itemsize)


class BinaryCrossEntropy(Module):
    """Cross-entropy of two classes, from logits: targets of the same shape, in [0, 1]."""

    def forward(self, logits: Tensor, targets: Any, count: int | None = None) -> Tensor:
        return ops.binary_cross_entropy(logits, targets, count)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the gradient."""
        return LayerCost((), saved_bytes=int(np.prod(shape)) * itemsize)
