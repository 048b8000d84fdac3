"""The contract of losses: sums over targets, divided by a count of the *global* batch's targets.

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

import math
from typing import Any

from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.nn.module import Module
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
        return math.prod(targets.shape)

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
