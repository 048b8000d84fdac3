"""How good is it: accuracy, and more to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minidist.data.batches import Dataset
from minidist.tensor import Tensor, no_grad


def accuracy(model: Callable[[Any], Tensor], dataset: Dataset, chunk: int = 500) -> float:
    """The fraction of samples whose largest logit is the target's, ``chunk`` samples at a time."""
    right = 0
    with no_grad():
        for batch in dataset.chunks(chunk):
            guesses = model(batch.inputs).data.argmax(axis=-1)
            right += int((guesses == batch.targets).sum())
    return right / len(dataset)
