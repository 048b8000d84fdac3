"""Checks of targets that are class numbers, 0 to classes - 1."""

from __future__ import annotations

import numpy as np

from minidist.engine.array import Array, DType
from minidist.ops.operands import DTypeError

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by the bytes of a number


def holds_classes(name: str, dtype: DType, classes: int) -> None:
    """Raise DTypeError if class numbers up to ``classes`` - 1 overflow an integer ``dtype``.

    Larger class numbers overflowed when the array was made, and became those of other classes.
    """
    if dtype.kind in "iu" and dtype.itemsize <= 2 and np.iinfo(dtype).max < classes - 1:
        raise DTypeError(
            f"{name}: {dtype} targets hold at most {np.iinfo(dtype).max}, and there are {classes} "
            "classes: larger targets have overflowed. Make them int64 from the start"
        )


def check_classes(name: str, targets: Array, classes: int) -> None:
    """Raise ValueError unless all targets are class numbers, 0 to ``classes`` - 1."""
    # Read as unsigned numbers, negative ones are the largest of all: one pass finds both.
    if targets.size and int(targets.view(UNSIGNED[targets.itemsize]).max()) >= classes:
        raise ValueError(
            f"{name}: targets must lie in [0, {classes}), found {int(targets.min())} to "
            f"{int(targets.max())} among {targets.size}: the model makes {classes} logits for "
            "each; if such a target is padding, say so to the loss: CrossEntropy(ignore_index=...)"
        )
