"""The multilayer perceptron: linear layers with a nonlinearity between them."""

from __future__ import annotations

from itertools import pairwise

from minidist.nn.activations import ReLU
from minidist.nn.layers import Flatten, Linear, Sequential
from minidist.nn.module import Module


def mlp(widths: tuple[int, ...] = (784, 256, 256, 256, 10)) -> Sequential:
    """Flatten, then Linear and ReLU alternately; ``widths`` lists the widths, input to output.

    >>> len(mlp((784, 64, 10)))
    4
    """
    if len(widths) < 2:
        raise ValueError(f"an MLP needs at least an input and an output width, not {widths}")
    blocks: list[Module] = [Flatten()]
    for inputs, outputs in pairwise(widths):
        blocks += [Linear(inputs, outputs), ReLU()]
    return Sequential(*blocks[:-1], input_shape=(widths[0],))
