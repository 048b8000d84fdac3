"""The contract of losses: sums over targets, divided by a count of the *global* batch's targets.

Every parallel method calls ``loss(output, targets, count)``. All parts of a batch are divided by
the same count, so their losses and gradients *add up* to the serial ones. Uneven shards and unequal
token counts need no correction.

Only the loss defines which targets count: ``loss.count(targets)`` returns their count, and
``loss.guesses`` how many outputs are right, for accuracies. Both leave out targets that the loss
ignores. The count is that of PyTorch's mean: the number of targets, or with class weights the sum
of their weights. A batch all of whose targets are ignored has no mean, and is refused (PyTorch's
loss is NaN then).
"""

from __future__ import annotations

import math
from typing import Any

from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.nn.module import Module
from minidist.ops.operands import DTypeError


class Loss(Module):
    """Base of all losses: ``forward(output, targets, count=None)``.

    A loss of your own defines ``forward`` and ``cost``. If targets count differently, it also
    defines ``count`` and sets ``counts_values``. With ``reduction="none"`` the output is the loss
    of each target; methods cannot train on it.
    """

    counts_values = False  # whether ``count`` depends on the targets' values, not on their shape
    reduction = "mean"

    def count(self, targets: Array) -> float:
        """What the sum of the losses of these targets is divided by; by default their number."""
        return math.prod(targets.shape)

    def guesses(self, output: Tensor, targets: Array) -> tuple[int, int]:
        """(right guesses, all guesses) of classes; (0, 0) if the targets are not classes."""
        return 0, 0

    def numbers(self, targets: Any) -> Any:
        """``targets``; DTypeError if they are integers, which stand for classes."""
        kind = getattr(getattr(targets, "dtype", None), "kind", "f")
        if kind in "iu":
            raise DTypeError(
                f"{type(self).__name__} takes floating numbers, and the targets are "
                f'{targets.dtype}, as class numbers are: convert them with y.astype("float32") '
                "where the data is made, or use CrossEntropy for classes"
            )
        return targets
