"""Normalization layers: each saves its normalized input and the factors 1/σ."""

from __future__ import annotations

import numpy as np

from minidist import ops
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
    evaluation: average ← (1 - momentum) · average + momentum · statistic. The statistics depend
    on all samples of a batch. So a method that splits the batch normalizes each part separately,
    and does *not* equal serial training (use layer norm if it must).
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
        count = x.size // x.shape[1]
        variance = variance * (count / (count - 1))  # the unbiased estimate
        for buffer, value in ((self.mean, mean), (self.variance, variance)):
            buffer.data *= 1 - self.momentum
            buffer.data += self.momentum * value
        return y

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost(shape, saved_bytes=(int(np.prod(shape)) + shape[1]) * itemsize)

    def __repr__(self) -> str:
        return f"BatchNorm({self.weight.declared[0]})"


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
