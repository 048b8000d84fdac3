"""Quantization-aware training: train with the rounding of the later int8 model.

    forward    x ─ round to codes and back ─▸ x̂ = S · (clamp(round(x / S) + Z) - Z)
    backward   ∂x̂/∂x ≈ 1 where x was in range, 0 where it was clamped

The derivative of rounding is 0 almost everywhere, so nothing could be learned. The straight-through
estimator uses the derivative of the identity instead. Weights stay float, so that small steps can
change them; the forward computes what the int8 layer will compute.

    prepare    replaces each linear layer and convolution by an ``Aware`` layer
    train      as usual
    convert    replaces them by int8 layers that compute the same numbers

Ranges: for a weight, its current largest magnitude by channel, in each step; for an input, the
range that calibration found in ``prepare``. Training needs about one more array of the size of each
input, and a few passes over it.

Source: Bengio, Léonard, Courville, arXiv 1308.3432, section 4 (straight-through estimator); Jacob
et al., arXiv 1712.05877, section 3 (training with it).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minidist import ops
from minidist.compress.affine import Grid, asymmetric, symmetric
from minidist.compress.calibration import calibration, observe
from minidist.compress.int8 import quantizable, with_ranges
from minidist.compress.rebuild import declared, dtype_of, exchange, filled
from minidist.engine.array import to_host
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.convolution import Conv2d
from minidist.nn.layers import Linear
from minidist.nn.module import Buffer, LayerCost, Module, Shape


def fake_quantize(x: Any, grid: Grid) -> Tensor:
    """x rounded to the grid; the gradient is passed on unchanged where x was in range, else 0."""
    x = as_tensor(x)
    y = grid.rounded(x.data).astype(x.dtype, copy=False)
    inside = grid.inside(x.data)
    xp = x.xp
    return Tensor.of(y, (x,), lambda grad: (xp.where(inside, grad, 0),))


class Aware(Module):
    """A linear layer or convolution whose weight and input are rounded to int8 in each forward."""

    def __init__(self, inner: Linear | Conv2d) -> None:
        self.inner = inner
        self.low = Buffer((1,), 0)  # the range of the input
        self.high = Buffer((1,), 1)

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def forward(self, x: Any) -> Tensor:
        inner, weight = self.inner, self.inner.weight
        x = fake_quantize(x, asymmetric(self.low.data, self.high.data))
        magnitudes = weight.xp.abs(weight.data)
        if isinstance(inner, Linear):
            grid = symmetric(magnitudes.max(axis=0))  # (o,)
            return ops.linear(x, fake_quantize(weight, grid), inner.bias)
        grid = symmetric(magnitudes.max(axis=(1, 2, 3), keepdims=True))  # (o, 1, 1, 1)
        kernels = fake_quantize(weight, grid)
        return ops.conv2d(
            x, kernels, inner.bias, inner.stride, inner.padding, inner.groups, inner.dilation
        )

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """FLOPs of the layer; saves rounded input and weight, and which elements were in range."""
        inner = self.inner.cost(shape, itemsize)
        elements = int(np.prod(shape)) + int(np.prod(self.inner.weight.declared))
        return LayerCost(
            inner.shape,
            inner.flops,
            inner.input_flops,
            inner.weight_flops,
            saved_bytes=elements * (itemsize + 1),
        )


def prepare(model: Module, batches: Iterable[Any], method: str = "range") -> Module:
    """A new model to train, with ``Aware`` layers.

    ``batches``: inputs from which calibration ``method`` finds the ranges of activations. Raises
    ValueError for an unknown method, and for a model without layers to quantize.
    """
    chosen = calibration(method)
    if any(isinstance(layer, Aware) for layer in model.named_modules().values()):
        raise ValueError("prepare: the model was prepared already: train it, and then convert it")
    state, dtype = model.state(), dtype_of(model)
    values = observe(model, quantizable(model), batches)

    def change(path: str, layer: Module) -> Module | None:
        if path not in values or not isinstance(layer, (Linear, Conv2d)):
            return None
        for name in ("weight", "bias"):
            if f"{path}.{name}" in state:
                state[f"{path}.inner.{name}"] = state.pop(f"{path}.{name}")
        low, high = chosen(values[path][None], 8)
        state[f"{path}.low"], state[f"{path}.high"] = low, high
        return Aware(layer)

    return filled(exchange(declared(model), change), state, dtype)


def convert(model: Module) -> Module:
    """The int8 model of a model that was made by ``prepare`` and trained.

    Raises ValueError for a model without ``Aware`` layers.
    """
    state, dtype = model.state(), dtype_of(model)
    ranges = {
        path: (float(to_host(layer.low.data)[0]), float(to_host(layer.high.data)[0]))
        for path, layer in model.named_modules().items()
        if isinstance(layer, Aware)
    }
    if not ranges:
        raise ValueError("convert: the model has no layers that prepare() made")

    def change(path: str, layer: Module) -> Module | None:
        if not isinstance(layer, Aware):
            return None
        del state[f"{path}.low"], state[f"{path}.high"]
        for name in ("weight", "bias"):
            if f"{path}.inner.{name}" in state:
                state[f"{path}.{name}"] = state.pop(f"{path}.inner.{name}")
        return layer.inner

    plain = filled(exchange(declared(model), change), state, dtype)
    return with_ranges(plain, ranges)
