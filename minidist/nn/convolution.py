"""Layers for images, (n, channels, height, width), and sequences: convolution and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.init import uniform_fan_in
from minidist.nn.module import LayerCost, Module, Parameter, Shape
from minidist.ops.convolution import Pair, as_pair, convolved_length


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
    """Slide ``outputs`` kernels over each image: (n, inputs, h, w) → (n, outputs, oh, ow).

    Kernel, stride, padding and dilation are numbers, or pairs (height, width).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Pair = 1,
    ) -> None:
        name = type(self).__name__
        self._declare(inputs, outputs, as_pair(name, "kernel", kernel, 1), groups, bias)
        self.stride: Any = as_pair(name, "stride", stride, 1)
        self.padding: Any = as_pair(name, "padding", padding, 0)
        self.dilation: Any = as_pair(name, "dilation", dilation, 1)

    def _declare(
        self, inputs: int, outputs: int, kernel: tuple[int, ...], groups: int, bias: bool
    ) -> None:
        if groups < 1 or inputs % groups or outputs % groups:
            raise ValueError(
                f"{type(self).__name__}: {groups} groups must divide {inputs} and {outputs} "
                "channels"
            )
        start = uniform_fan_in(inputs // groups * int(np.prod(kernel)))
        self.weight = Parameter((outputs, inputs // groups, *kernel), start)
        self.bias = Parameter((outputs,), start) if bias else None
        self.groups = groups

    def forward(self, x: Any) -> Tensor:
        return ops.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.groups, self.dilation
        )

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        outputs, *inner = self.weight.declared  # (o, c/groups, *kernel)
        places = tuple(
            convolved_length(length, *settings)
            for length, *settings in zip(
                shape[2:], inner[1:], self.stride, self.padding, self.dilation, strict=True
            )
        )
        out = (shape[0], outputs, *places)
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
        outputs, inputs, *kernel = self.weight.declared
        usual = {"stride": 1, "padding": 0, "dilation": 1}
        extra = "".join(
            f", {name}={_short(getattr(self, name))}"
            for name, value in usual.items()
            if set(getattr(self, name)) != {value}
        )
        extra += f", groups={self.groups}" if self.groups != 1 else ""
        shown = _short(tuple(kernel))
        return f"{type(self).__name__}({inputs * self.groups}, {outputs}, kernel={shown}{extra})"


class Conv1d(Conv2d):
    """Slide ``outputs`` kernels over each sequence: (n, inputs, l) → (n, outputs, ol)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int = 1,
    ) -> None:
        # as_pair checks a pair, of which the second is the only axis here.
        self._declare(
            inputs, outputs, as_pair("Conv1d", "kernel", (1, kernel), 1)[1:], groups, bias
        )
        self.stride = as_pair("Conv1d", "stride", (1, stride), 1)[1:]
        self.padding = as_pair("Conv1d", "padding", (0, padding), 0)[1:]
        self.dilation = as_pair("Conv1d", "dilation", (1, dilation), 1)[1:]

    def forward(self, x: Any) -> Tensor:
        (stride,), (padding,), (dilation,) = self.stride, self.padding, self.dilation
        return ops.conv1d(x, self.weight, self.bias, stride, padding, self.groups, dilation)


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


def _short(value: tuple[int, ...]) -> str:
    """The values as text; one number if all are equal."""
    return str(value[0] if len(set(value)) == 1 else value)
