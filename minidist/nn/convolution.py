"""Layers for images, (n, channels, height, width): convolution and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.init import uniform_fan_in
from minidist.nn.module import LayerCost, Module, Parameter, Shape
from minidist.ops.convolution import convolved_length


class AddChannel(Module):
    """(n, height, width) → (n, 1, height, width): grey images have one channel."""

    def forward(self, x: Any) -> Tensor:
        x = as_tensor(x)
        if x.ndim != 3:
            raise ops.ShapeError(f"AddChannel: images must be (n, height, width), not {x.shape}")
        return x.reshape(x.shape[0], 1, *x.shape[1:])

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost((shape[0], 1, *shape[1:]), view=True)


class Conv2d(Module):
    """Slide ``outputs`` kernels over each image: (n, inputs, h, w) → (n, outputs, oh, ow)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if inputs % groups or outputs % groups:
            raise ValueError(f"Conv2d: {groups} groups must divide {inputs} and {outputs} channels")
        fan_in = inputs // groups * kernel * kernel
        self.weight = Parameter((outputs, inputs // groups, kernel, kernel), uniform_fan_in(fan_in))
        self.bias = Parameter((outputs,), uniform_fan_in(fan_in)) if bias else None
        self.stride, self.padding, self.groups = stride, padding, groups

    def forward(self, x: Any) -> Tensor:
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.groups)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        outputs, *inner = self.weight.declared  # (o, c/groups, k, k)
        out = (shape[0], outputs, *_windows(shape, inner[-1], self.stride, self.padding))
        flops = 2 * int(np.prod(out)) * int(np.prod(inner))
        trained = self.weight.requires_grad
        later = trained or (self.bias is not None and self.bias.requires_grad)
        return LayerCost(
            out,
            flops,
            flops,
            weight_flops=flops * trained,
            saves_input=trained,
            defers_input=trained,
            deferred_bytes=int(np.prod(out)) * itemsize * later,  # the gradient of the output
        )

    def __repr__(self) -> str:
        outputs, inputs, kernel, _ = self.weight.declared
        extra = "".join(
            f", {name}={getattr(self, name)}"
            for name, usual in (("stride", 1), ("padding", 0), ("groups", 1))
            if getattr(self, name) != usual
        )
        return f"Conv2d({inputs * self.groups}, {outputs}, kernel={kernel}{extra})"


class MaxPool2d(Module):
    """The largest element of each window; the stride is the kernel's length if not given."""

    def __init__(self, kernel: int, stride: int | None = None, padding: int = 0) -> None:
        self.kernel, self.stride, self.padding = kernel, stride or kernel, padding

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.kernel, self.stride, self.padding)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the position of the largest element in each window: one byte for each output."""
        out = (*shape[:2], *_windows(shape, self.kernel, self.stride, self.padding))
        return LayerCost(out, saved_bytes=int(np.prod(out)))

    def __repr__(self) -> str:
        return f"MaxPool2d({self.kernel}, stride={self.stride})"


class AvgPool2d(Module):
    """The average of each window; the stride is the kernel's length if not given."""

    def __init__(self, kernel: int, stride: int | None = None, padding: int = 0) -> None:
        self.kernel, self.stride, self.padding = kernel, stride or kernel, padding

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(x, self.kernel, self.stride, self.padding)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost((*shape[:2], *_windows(shape, self.kernel, self.stride, self.padding)))

    def __repr__(self) -> str:
        return f"AvgPool2d({self.kernel}, stride={self.stride})"


def _windows(shape: Shape, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    return (
        convolved_length(shape[2], kernel, stride, padding),
        convolved_length(shape[3], kernel, stride, padding),
    )
