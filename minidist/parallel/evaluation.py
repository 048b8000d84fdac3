"""Sharded evaluation: every rank evaluates its shard of each chunk, and four numbers are summed.

    rank 0   loss, count, right, guesses ╮
    rank 1   loss, count, right, guesses ┼ all-reduce of 32 bytes: mean loss and accuracy
    rank 2   loss, count, right, guesses ╯

The loss defines which targets count and which guesses are right: see nn/loss.py. Sums are sent, and
divided only at the end. So uneven shards and ranks without samples get their correct weight.
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
    """(mean loss, accuracy) over a dataset; each rank evaluates its shard of each chunk.

    The accuracy is NaN if there are no classes to guess. Every rank must call it, and gets the
    result. It costs one all-reduce of 32 bytes. ``model``, if given, is in evaluation mode
    meanwhile. Raises ValueError if the loss ignores every target.
    """
    with as_in_evaluation(model):
        sums = sums_of(forward, loss, dataset, chunk, comm.rank, comm.size)
    return mean_over_ranks(comm, sums)


def sums_of(
    forward: Callable, loss: Loss, dataset: Dataset, chunk: int, shard: int, shards: int
) -> np.ndarray:
    """The sum of ``counts`` over the chunks; of each chunk, shard number ``shard``."""
    sums = np.zeros(4)
    for whole in dataset.chunks(chunk):
        part = whole.shard(shard, shards)
        sums += counts(forward(part.inputs), loss, part)
    return sums


def counts(output: Tensor, loss: Loss, part: Batch) -> list[float]:
    """(sum of losses, number to divide it by, right guesses, all guesses) of a part."""
    total = sum_of_losses(loss, output, part.targets)
    return [total, part.own_count(loss), *loss.guesses(output, part.targets)]


def mean_over_ranks(comm: Comm, sums: np.ndarray) -> tuple[float, float]:
    """(mean loss, accuracy) from all ranks' sums. Every rank must call it."""
    all_reduce(comm, sums)
    return means(sums)


def means(sums: np.ndarray) -> tuple[float, float]:
    """(mean loss, accuracy) from summed ``counts``. Raises ValueError if no target counts."""
    loss, count, right, guesses = sums.tolist()
    if not count > 0:
        raise ValueError("evaluate: the loss ignores every target, so there is no mean loss")
    return loss / count, right / guesses if guesses else float("nan")


@contextmanager
def with_values(data: Array, values: Array) -> Iterator[None]:
    """Put ``values`` in an array inside the block; then restore its own."""
    own = data.copy()
    data[...] = values
    try:
        yield
    finally:
        data[...] = own
