"""Normalization layers: each keeps its normalized input and the factors that made it."""

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

    In training the statistics are the batch's, and running averages of them are kept for
    evaluation: average ← (1 - momentum) · average + momentum · batch's. The statistics couple the
    samples of a batch: a method that splits the batch normalizes each part by itself, and does
    *not* equal serial training (use layer norm where it must).
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
        variance = variance * (count / (count - 1))  # of the population, estimated from a sample
        for buffer, value in ((self.mean, mean), (self.variance, variance)):
            buffer.data *= 1 - self.momentum
            buffer.data += self.momentum * value
        return y

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost(shape, saved_bytes=(int(np.prod(shape)) + shape[1]) * itemsize)

    def __repr__(self) -> str:
        return f"BatchNorm({self.weight.declared[0]})"


def _row_cost(shape: Shape, itemsize: int) -> LayerCost:
    """Keeps the normalized rows, and a factor for each.

    A later weight gradient keeps the rows, the output's gradient, and ones to sum that with.
    """
    elements, count = int(np.prod(shape)), rows(shape)
    return LayerCost(
        shape,
        saved_bytes=(elements + count) * itemsize,
        deferred_bytes=(2 * elements + count) * itemsize,
    )


def rows(shape: Shape) -> int:
    """How many rows an array of ``shape`` has, of its last axis."""
    return int(np.prod(shape[:-1]))
