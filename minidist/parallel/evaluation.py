"""Evaluation, sharded: every rank looks at its part of every chunk, and three numbers are summed.

    rank 0   loss, right, count ╮
    rank 1   loss, right, count ┼ all-reduce of 24 bytes: mean loss and accuracy, everywhere
    rank 2   loss, right, count ╯

Sums travel, not means: chunks that do not divide evenly, and ranks that have nothing to do, then
weigh what they should.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from minidist.collectives import all_reduce
from minidist.comm.comm import Comm
from minidist.data.batches import Batch, Dataset
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, no_grad
from minidist.nn.module import Module


def evaluate(
    forward: Callable,
    loss: Module,
    dataset: Dataset,
    comm: Comm,
    chunk: int = 1000,
    model: Module | None = None,
) -> tuple[float, float]:
    """(mean loss, accuracy) over a dataset, each rank evaluating its shard of each chunk.

    Every rank must call it; every rank gets the result. One message: three numbers are summed.
    ``model``, if given, computes as in evaluation meanwhile.
    """
    with as_in_evaluation(model):
        sums = sums_of(forward, loss, dataset, chunk, comm.rank, comm.size)
    return mean_over_ranks(comm, sums)


def sums_of(
    forward: Callable, loss: Module, dataset: Dataset, chunk: int, shard: int, shards: int
) -> np.ndarray:
    """The sum of losses, right guesses and targets of one of so many shards of each chunk."""
    sums = np.zeros(3)
    for whole in dataset.chunks(chunk):
        part = whole.shard(shard, shards)
        sums += counts(forward(part.inputs), loss, part)
    return sums


def counts(output: Tensor, loss: Module, part: Batch) -> list[float]:
    """The sum of losses, right guesses and targets of one shard."""
    ignore = part.dataset.ignore
    counted = part.targets != (-1 if ignore is None else ignore)  # padding: neither right nor wrong
    guess = getattr(loss, "predictions", lambda logits: logits.argmax(axis=-1))
    right = counted & (guess(output.data) == part.targets)  # a loss may see a part of the classes
    return [loss(output, part.targets, 1).item(), int(right.sum()), int(counted.sum())]


def mean_over_ranks(comm: Comm, sums: np.ndarray) -> tuple[float, float]:
    """(mean loss, accuracy) of all ranks' sums together."""
    all_reduce(comm, sums)
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])


@contextmanager
def with_values(data: Array, values: Array) -> Iterator[None]:
    """Other values in an array, and then its own again."""
    own = data.copy()
    data[...] = values
    try:
        yield
    finally:
        data[...] = own


@contextmanager
def as_in_evaluation(model: Module | None) -> Iterator[None]:
    """Without a tape, and each layer of ``model`` as in evaluation; then as they were."""
    modules = list(model.named_modules().values()) if model is not None else []
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        with no_grad():
            yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was
