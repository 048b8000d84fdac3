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
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np

from minidist.data.dataset import Dataset
from minidist.engine.array import to_host
from minidist.engine.tensor import Tensor
from minidist.nn.cross_entropy import CrossEntropy
from minidist.nn.evaluating import as_in_evaluation, sum_of_losses
from minidist.nn.losses import Loss
from minidist.nn.module import Module

Average = Literal["macro", "micro"] | None
Model = Callable[[Any], Tensor]


def evaluating(model: Model) -> AbstractContextManager[None]:
    """Without a tape; if the model is a Module, with its layers as in evaluation."""
    return as_in_evaluation(model if isinstance(model, Module) else None)


def predict(model: Model, dataset: Dataset, raw: Any) -> np.ndarray:
    """The model's output for raw samples like ``dataset.inputs``, on the host, as in evaluation.

    ``raw``: (n, *input_shape), or one sample, whose output then has no batch axis. They are
    prepared as those that the model was trained on: ``Dataset.inputs_for`` raises for what does not
    look like them.

    >>> predict(model, test, test.inputs[0]).argmax()  # doctest: +SKIP
    9
    """
    one = np.shape(raw) == dataset.input_shape
    with evaluating(model):
        output = to_host(model(dataset.inputs_for(raw)).data)
    return output[0] if one else output


def accuracy(model: Model, dataset: Dataset, chunk: int = 500, loss: Loss | None = None) -> float:
    """The fraction of targets with the largest logit, computed on ``chunk`` samples at a time.

    ``loss`` says what is right, and what is ignored; by default ``CrossEntropy()``. NaN if there
    are no classes to guess.
    """
    loss = CrossEntropy() if loss is None else loss
    right = guesses = 0
    with evaluating(model):
        for batch in dataset.chunks(chunk):
            more_right, more = loss.guesses(model(batch.inputs), batch.targets)
            right, guesses = right + more_right, guesses + more
    return right / guesses if guesses else math.nan


def mean_loss(model: Model, loss: Loss, dataset: Dataset, chunk: int = 500) -> float:
    """The mean loss per target over a whole dataset; for cross-entropy in nats.

    Raises ValueError if the loss ignores all targets.
    """
    total, count = 0.0, 0.0
    with evaluating(model):
        for batch in dataset.chunks(chunk):
            total += sum_of_losses(loss, model(batch.inputs), batch.targets)
            count += batch.own_count(loss)
    if not count > 0:
        raise ValueError("mean_loss: the loss ignores every target, and there is no mean over none")
    return total / count


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


def confusion(
    model: Model, dataset: Dataset, chunk: int = 500, loss: Loss | None = None
) -> np.ndarray:
    """The confusion matrix of a classifier on a dataset, of the targets that ``loss`` counts."""
    if dataset.classes is None:
        raise ValueError(f"confusion: dataset {dataset.name} does not say how many classes it has")
    ignored = getattr(loss, "ignore_index", None)
    counts = np.zeros((dataset.classes, dataset.classes), np.int64)
    with evaluating(model):
        for batch in dataset.chunks(chunk):
            guesses, targets = model(batch.inputs).data.argmax(axis=-1), batch.targets
            if ignored is not None:
                guesses, targets = guesses[targets != ignored], targets[targets != ignored]
            counts += confusion_matrix(targets, guesses, dataset.classes)
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
