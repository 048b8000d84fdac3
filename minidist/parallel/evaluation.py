"""Evaluation, sharded: every rank looks at its part of every chunk, and three numbers are summed.

    rank 0   loss, right, count ╮
    rank 1   loss, right, count ┼ all-reduce of 24 bytes: mean loss and accuracy, everywhere
    rank 2   loss, right, count ╯

Sums travel, not means: chunks that do not divide evenly, and ranks that have nothing to do, then
weigh what they should.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minidist.collectives import all_reduce
from minidist.comm.comm import Comm
from minidist.data.batches import Dataset
from minidist.engine.tensor import no_grad
from minidist.nn.module import Module


def evaluate(
    model: Callable, loss: Module, dataset: Dataset, comm: Comm, chunk: int = 1000
) -> tuple[float, float]:
    """(mean loss, accuracy) over a dataset, of whose every chunk each rank computes its part.

    Every rank must call it; every rank gets the result. One message: three numbers are summed.
    """
    sums = np.zeros(3)  # loss, right guesses, targets
    padding = -1 if dataset.ignore is None else dataset.ignore  # neither right nor wrong
    with no_grad():
        for whole in dataset.chunks(chunk):
            part = whole.shard(comm.rank, comm.size)
            output = model(part.inputs)
            counted = part.targets != padding
            right = counted & (output.data.argmax(axis=-1) == part.targets)
            sums += [loss(output, part.targets, 1).item(), int(right.sum()), int(counted.sum())]
    all_reduce(comm, sums)
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])
