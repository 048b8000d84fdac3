"""Evaluation, sharded: every rank looks at its part of every chunk, and four numbers are summed.

    rank 0   loss, count, right, guesses ╮
    rank 1   loss, count, right, guesses ┼ all-reduce of 32 bytes: mean loss and accuracy
    rank 2   loss, count, right, guesses ╯

What counts, and what is right, the loss says: see nn/loss.py. Sums travel, not means: chunks that
do not divide evenly, and ranks that have nothing to do, then weigh what they should.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from minidist.collectives import all_reduce
from minidist.comm.comm import Comm
from minidist.data.batches import Batch, Dataset
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.nn.evaluating import as_in_evaluation, sum_of_losses
from minidist.nn.losses import Loss
from minidist.nn.module import Module


def evaluate(
    forward: Callable,
    loss: Loss,
    dataset: Dataset,
    comm: Comm,
    chunk: int = 1000,
    model: Module | None = None,
) -> tuple[float, float]:
    """(mean loss, accuracy) over a dataset, each rank evaluating its shard of each chunk.

    The accuracy is NaN if there are no classes to guess. Every rank must call it; every rank gets
    the result. One message: four numbers are summed.
    ``model``, if given, computes as in evaluation meanwhile.
    """
    with as_in_evaluation(model):
        sums = sums_of(forward, loss, dataset, chunk, comm.rank, comm.size)
    return mean_over_ranks(comm, sums)


def sums_of(
    forward: Callable, loss: Loss, dataset: Dataset, chunk: int, shard: int, shards: int
) -> np.ndarray:
    """``counts`` of one of so many shards of each chunk, summed."""
    sums = np.zeros(4)
    for whole in dataset.chunks(chunk):
        part = whole.shard(shard, shards)
        sums += counts(forward(part.inputs), loss, part)
    return sums


def counts(output: Tensor, loss: Loss, part: Batch) -> list[float]:
    """The sum of losses, what it is to be divided by, right guesses and all guesses of a part."""
    total = sum_of_losses(loss, output, part.targets)
    return [total, part.own_count(loss), *loss.guesses(output, part.targets)]


def mean_over_ranks(comm: Comm, sums: np.ndarray) -> tuple[float, float]:
    """(mean loss, accuracy) of all ranks' sums together."""
    all_reduce(comm, sums)
    return means(sums)


def means(sums: np.ndarray) -> tuple[float, float]:
    """(mean loss, accuracy) of ``counts``, summed."""
    loss, count, right, guesses = sums.tolist()
    if not count > 0:
        raise ValueError("evaluate: the loss ignores every target, and there is no mean over none")
    return loss / count, right / guesses if guesses else float("nan")


@contextmanager
def with_values(data: Array, values: Array) -> Iterator[None]:
    """Other values in an array, and then its own again."""
    own = data.copy()
    data[...] = values
    try:
        yield
    finally:
        data[...] = own
