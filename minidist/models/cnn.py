"""A convolutional network for small grey images, similar to LeNet (LeCun et al., 1998).

    28 × 28        image
    channels       3 × 3 kernels, ReLU, then 2 × 2 max pooling: 14 × 14
    2 · channels   the same again: 7 × 7
    hidden         a linear layer over all features of all pixels; ReLU
    classes        linear

A kernel detects the same small pattern at every position, so the first layers need few weights.
There is no batch norm: the statistics of a whole batch differ from those of the parts that parallel
methods compute, so their results would differ from serial training.
"""

from __future__ import annotations

from minidist import nn


def cnn(channels: int = 16, classes: int = 10, size: int = 28, hidden: int = 128) -> nn.Sequential:
    """Two convolutions and two linear layers, for grey images of ``size`` × ``size``.

    Raises ValueError unless the size is a multiple of 4.

    >>> print(cnn(8).blocks["1"])
    Conv2d(1, 8, kernel=3, padding=1)
    """
    if size % 4:
        raise ValueError(f"cnn: the size must be a multiple of 4, for two poolings, not {size}")
    places = (size // 4) ** 2
    return nn.Sequential(
        nn.AddChannel(),
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
