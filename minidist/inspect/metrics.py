"""Quality of a classifier: all metrics from one table of counts, the confusion matrix.

                      guessed:  no   yes
    confusion =  target no    [ 90    10 ]     precision of yes = 30 / (10 + 30)
                 target yes   [  5    30 ]     recall of yes    = 30 / (5 + 30)

F1 is their harmonic mean. ``average="macro"`` is the mean over classes, so rare classes count as
much as common ones. ``"micro"`` gives each sample the same weight (with one target for each sample,
precision, recall and F1 then all equal the accuracy). ``None`` gives one number for each class. A
class that is never guessed has precision 0; a class that never occurs has recall 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from minidist.data.batches import Dataset
from minidist.engine.array import to_host
from minidist.engine.tensor import Tensor, no_grad

Average = Literal["macro", "micro"] | None
Model = Callable[[Any], Tensor]


def accuracy(model: Model, dataset: Dataset, chunk: int = 500) -> float:
    """The fraction of targets with the largest logit, computed on ``chunk`` samples at a time."""
    right = targets = 0
    with no_grad():
        for batch in dataset.chunks(chunk):
            guesses = model(batch.inputs).data.argmax(axis=-1)
            right += int((guesses == batch.targets).sum())
            targets += batch.targets.size
    return right / targets


def mean_loss(
    model: Model, loss: Callable[..., Tensor], dataset: Dataset, chunk: int = 500
) -> float:
    """The mean loss per target over a whole dataset; for cross-entropy in nats."""
    total, targets = 0.0, 0
    with no_grad():
        for batch in dataset.chunks(chunk):
            total += loss(model(batch.inputs), batch.targets, 1).item()
            targets += batch.count
    return total / targets


def perplexity(nats: float) -> float:
    """e to the mean cross-entropy: as uncertain as among so many equally likely tokens."""
    return math.exp(nats)


def confusion_matrix(targets: Any, guesses: Any, classes: int) -> np.ndarray:
    """Counts (classes, classes): the row is the target, the column is the guess."""
    targets, guesses = to_host(targets).reshape(-1), to_host(guesses).reshape(-1)
    if targets.shape != guesses.shape:
        raise ValueError(f"{targets.size} targets but {guesses.size} guesses")
    for name, values in (("targets", targets), ("guesses", guesses)):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise ValueError(f"{name} must lie in [0, {classes}), found up to {int(values.max())}")
    pairs = targets.astype(np.int64) * classes + guesses
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def confusion(model: Model, dataset: Dataset, chunk: int = 500) -> np.ndarray:
    """The confusion matrix of a classifier on a dataset."""
    counts = np.zeros((dataset.classes, dataset.classes), np.int64)
    with no_grad():
        for batch in dataset.chunks(chunk):
            guesses = model(batch.inputs).data.argmax(axis=-1)
            counts += confusion_matrix(batch.targets, guesses, dataset.classes)
    return counts


def precision(confusion: np.ndarray, average: Average = "macro") -> Any:
    """The fraction of correct guesses among all guesses of a class."""
    return _averaged(confusion, confusion.sum(axis=0), average)


def recall(confusion: np.ndarray, average: Average = "macro") -> Any:
    """The fraction of correct guesses among all samples of a class."""
    return _averaged(confusion, confusion.sum(axis=1), average)


def f1(confusion: np.ndarray, average: Average = "macro") -> Any:
    """2 · precision · recall / (precision + recall), class by class, then averaged."""
    # = 2 · right / (guessed + occurring), which needs no case for precision + recall = 0
    return _averaged(2 * confusion, confusion.sum(axis=0) + confusion.sum(axis=1), average)


def _averaged(right: np.ndarray, of: np.ndarray, average: Average) -> Any:
    if average == "micro":
        return float(np.trace(right) / max(1, of.sum()))
    each = np.diag(right) / np.maximum(1, of)
    if average == "macro":
        return float(each.mean())
    if average is None:
        return each
    raise ValueError(f'average is "macro", "micro" or None, not {average!r}')
