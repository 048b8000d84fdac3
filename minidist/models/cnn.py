"""A convolutional network for small grey images, in the manner of LeNet (LeCun et al., 1998).

    28 × 28        image
    channels       3 × 3 kernels, ReLU, then the largest of each 2 × 2: 14 × 14
    2 · channels   the same again: 7 × 7
    hidden         every feature at every place, weighed together; ReLU
    classes        linear

A kernel looks for the same small pattern everywhere, so the first layers need few weights: a
pattern learned at one place is known at all. There is no batch norm: its statistics would differ
between a batch and the parts of it that a parallel method computes, and so would the results.
"""

from __future__ import annotations

from minidist import nn
from minidist.array import Array
from minidist.nn.module import LayerCost, Module, Shape
from minidist.ops import ShapeError
from minidist.tensor import Tensor, as_tensor


class AddChannel(Module):
    """(n, height, width) → (n, 1, height, width): grey images have one channel."""

    def forward(self, x: Tensor | Array) -> Tensor:
        x = as_tensor(x)
        if x.ndim != 3:
            raise ShapeError(f"cnn: images must be (n, height, width), not {x.shape}")
        return x.reshape(x.shape[0], 1, *x.shape[1:])

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost((shape[0], 1, *shape[1:]), view=True)


def cnn(channels: int = 16, classes: int = 10, size: int = 28, hidden: int = 128) -> nn.Sequential:
    """Two convolutions and two linear layers, for grey images of ``size`` × ``size``.

    >>> print(cnn(8).blocks["1"])
    Conv2d(1, 8, kernel=3, padding=1)
    """
    if size % 4:
        raise ValueError(f"cnn: the size must be a multiple of 4, for two poolings, not {size}")
    places = (size // 4) ** 2
    return nn.Sequential(
        AddChannel(),
        nn.Conv2d(1, channels, kernel=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, kernel=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * places, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
        input_shape=(size, size),
    )
