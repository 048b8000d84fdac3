"""Nonlinearities and dropout as layers: no parameters; each saves what its op saves."""

from __future__ import annotations

import numpy as np

from minidist import ops
from minidist.engine.tensor import Tensor
from minidist.nn.module import LayerCost, Module, Shape


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost(shape, saves_output=True)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost(shape, saves_output=True)


class Sigmoid(Module):
    """1 / (1 + e⁻ˣ)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        return LayerCost(shape, saves_output=True)


class GELU(Module):
    """x · Φ(x): by default GPT-2's tanh approximation, with ``exact=True`` the error function."""

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x, self.exact)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the derivative."""
        return LayerCost(shape, saved_bytes=int(np.prod(shape)) * itemsize)

    def __repr__(self) -> str:
        return "GELU(exact=True)" if self.exact else "GELU()"


class SiLU(Module):
    """x · sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.silu(x)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the derivative."""
        return LayerCost(shape, saved_bytes=int(np.prod(shape)) * itemsize)


class Dropout(Module):
    """In training, zero each element with probability ``rate`` and scale the others up.

    The mask is keyed by the seed and step of the enclosing ``minidist.engine.draws`` and by this
    layer's full name, so call each Dropout only once in a forward. In evaluation it returns x.
    """

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate {rate} is not in [0, 1)")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.rate, self.path) if self.training else x

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        """Saves the mask: one byte for each element."""
        if not self.training or self.rate == 0:
            return LayerCost(shape, view=True)
        return LayerCost(shape, saved_bytes=int(np.prod(shape)))

    def __repr__(self) -> str:
        return f"Dropout({self.rate})"
