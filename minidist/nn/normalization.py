"""Normalization layers: each saves its normalized input and the factors 1/σ."""

from __future__ import annotations

import numpy as np

from minidist import ops
from minidist.collectives import all_reduce
from minidist.comm.comm import Comm
from minidist.engine.array import Array
from minidist.engine.mode import current_mode
from minidist.engine.tensor import Tensor
from minidist.nn.init import constant
from minidist.nn.module import Buffer, LayerCost, Module, Parameter, Shape


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axis, then a learned scale and shift."""

    def __init__(self, width: int, bias: bool = True, epsilon: float = 1e-5) -> None:
        self.weight = Parameter((width,), constant(1))
        self.bias = Parameter((width,), constant(0)) if bias else None
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.epsilon)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return _row_cost(shape, itemsize)

    def __repr__(self) -> str:
        return f"LayerNorm({self.weight.declared[0]})"


class RMSNorm(Module):
    """Mean square 1 over the last axis, then a learned scale."""

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        self.weight = Parameter((width,), constant(1))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.epsilon)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return _row_cost(shape, itemsize)

    def __repr__(self) -> str:
        return f"RMSNorm({self.weight.declared[0]})"


class BatchNorm(Module):
    """Mean 0 and variance 1 of each channel over the batch, then a learned scale and shift.

    In training the statistics are those of the batch. Their running averages are used in
    evaluation: average ← (1 - momentum) · average + momentum · statistic. A forward that is not a
    step of training (a recomputation, a measurement) does not change them, and neither does an
    empty batch.

    In parallel training a method cuts the global batch into parts, and each part (a rank's shard, a
    microbatch) is normalized by *its own* statistics. That is not the function of serial training,
    so no method equals serial training then, and the sizes of the parts matter. The running
    averages differ between ranks, too. ``SyncBatchNorm`` normalizes by the whole batch; layer norm
    does not depend on other samples.
    """

    def __init__(self, channels: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        self.weight = Parameter((channels,), constant(1))
        self.bias = Parameter((channels,), constant(0))
        self.mean = Buffer((channels,), 0)
        self.variance = Buffer((channels,), 1)
        self.momentum = momentum
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            statistics = self.mean.data, self.variance.data
            return ops.batch_norm(x, self.weight, self.bias, statistics, self.epsilon)[0]
        y, mean, variance = ops.batch_norm(x, self.weight, self.bias, None, self.epsilon)
        self._average(mean, variance, x.size // max(1, x.shape[1]))
        return y

    def _average(self, mean: Array, variance: Array, count: int) -> None:
        """Update the running averages with the statistics of ``count`` values per channel."""
        if count < 2 or not current_mode().updating:
            return
        variance = variance * (count / (count - 1))  # the unbiased estimate
        for buffer, value in ((self.mean, mean), (self.variance, variance)):
            buffer.data *= 1 - self.momentum
            buffer.data += self.momentum * value

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost(shape, saved_bytes=(int(np.prod(shape)) + shape[1]) * itemsize)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.weight.declared[0]})"


class SyncBatchNorm(BatchNorm):
    """Batch norm whose statistics are those of all ranks of ``comm`` together.

    In data parallelism, with one microbatch, each rank then normalizes its shard as serial training
    normalizes the global batch, and the running averages are the same on every rank. It costs three
    small all-reduces, which ``Method.cost`` does not include: for c channels, of 8c + 8 and 16c
    bytes in the forward, and of 16c in the backward. Every rank of ``comm`` must call it, even on
    an empty shard. Microbatches, which are computed one after another, still have their own
    statistics.

        model = Sequential(Linear(4, 8), SyncBatchNorm(8, comm), ReLU(), Linear(8, 2))
    """

    def __init__(
        self, channels: int, comm: Comm, momentum: float = 0.1, epsilon: float = 1e-5
    ) -> None:
        super().__init__(channels, momentum, epsilon)
        self.comm = comm

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        counts: list[int] = []

        def total(numbers: Array) -> None:
            with self.comm.step("synchronise batch norm"):
                all_reduce(self.comm, numbers)

        y, mean, variance = ops.batch_norm(
            x, self.weight, self.bias, None, self.epsilon, total, counts
        )
        self._average(mean, variance, counts[0])
        return y


def _row_cost(shape: Shape, itemsize: int) -> LayerCost:
    """Saves the normalized rows, and one factor for each row.

    A weight gradient that is computed later keeps the rows and the gradient of the output.
    """
    elements, count = int(np.prod(shape)), rows(shape)
    return LayerCost(
        shape,
        saved_bytes=(elements + count) * itemsize,
        deferred_bytes=2 * elements * itemsize,
    )


def rows(shape: Shape) -> int:
    """The number of rows (along the last axis) of an array of ``shape``."""
    return int(np.prod(shape[:-1]))
