"""Low rank: two thin matrices in place of one, by the singular value decomposition.

    W (i, o) = U Σ Vᵀ ≈ (U_r Σ_r) (V_rᵀ) = A (i, r) · B (r, o)

Of all matrices of rank r, this one has the least squared error, Σ_{k>r} σ_k² (Eckart and Young,
1936). The product x A B needs r (i + o) weights, and as many multiply-adds a row, in place of
i · o; this is less if r < i o / (i + o). A convolution is factored in the same way: its kernels, as
a matrix (c · k · k, o), become r kernels, followed by a 1 × 1 convolution.

Layers of large trained networks often have nearly low rank. Fine-tuning afterwards regains most of
the lost quality.

Source: Denton, Zaremba, Bruna, LeCun, Fergus, "Exploiting linear structure within convolutional
networks", arXiv 1404.0736; Jaderberg, Vedaldi, Zisserman, arXiv 1405.3866, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np

from minidist.compress.int8 import channels_back, channels_first
from minidist.compress.rebuild import declared, dtype_of, exchange, filled, refuse_diverged
from minidist.engine.tensor import Tensor
from minidist.nn.convolution import Conv2d
from minidist.nn.layers import Linear
from minidist.nn.module import LayerCost, Module, Shape, in_a_row


class Factored(Module):
    """Two layers in place of one: the first has r outputs, the second all."""

    def __init__(self, first: Linear | Conv2d, second: Linear | Conv2d, rank: int) -> None:
        self.first, self.second, self.rank = first, second, rank

    @property
    def settings(self) -> dict[str, Any]:
        return {"rank": self.rank}

    def forward(self, x: Any) -> Tensor:
        return self.second(self.first(x))

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        first = self.first.cost(shape, itemsize)
        return in_a_row((first, self.second.cost(first.shape, itemsize)), shape, itemsize)


def factored(layer: Linear | Conv2d, rank: int) -> Factored:
    """The declared ``Factored`` layer of this rank in place of ``layer``."""
    biased = layer.bias is not None
    if isinstance(layer, Linear):
        inputs, outputs = layer.weight.declared
        return Factored(Linear(inputs, rank, bias=False), Linear(rank, outputs, biased), rank)
    outputs, inputs, height, width = layer.weight.declared
    settings = layer.stride, layer.padding, 1, False, layer.dilation
    return Factored(
        Conv2d(inputs, rank, (height, width), *settings),
        Conv2d(rank, outputs, 1, bias=biased),
        rank,
    )


def truncated(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A (i, r) and B (r, o) with the least squared error |A B - matrix|²; in float64.

    Each gets a factor √Σ, so that both have similar magnitudes and can use the same learning rate.
    """
    U, sigma, Vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    root = np.sqrt(sigma[:rank])
    return U[:, :rank] * root, root[:, None] * Vt[:rank]


def rank_for(matrix: np.ndarray, energy: float) -> int:
    """The smallest rank whose singular values have at least the share ``energy`` of Σ σ²."""
    squares = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(squares), energy * squares.sum() * (1 - 1e-12))) + 1


def factor(
    model: Module,
    rank: int | None = None,
    energy: float | None = None,
    where: Callable[[str], bool] = lambda path: True,
) -> Module:
    """A new model in which each layer that gets smaller by it is factored.

    Give either ``rank``, or ``energy``: the share of the squared singular values to keep.
    ``where(path)`` selects layers. Raises ValueError for a rank or energy out of range, for weights
    that are not finite, and if no selected layer gets smaller.
    """
    if (rank is None) == (energy is None):
        raise ValueError("factor: give either rank or energy")
    if rank is not None and not (isinstance(rank, Integral) and rank >= 1):
        raise ValueError(f"factor: the rank must be a whole number, at least 1, not {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"factor: the share of energy must be in (0, 1], not {energy}")
    state, dtype = model.state(), dtype_of(model)
    changed = []

    def change(path: str, layer: Module) -> Module | None:
        if not isinstance(layer, (Linear, Conv2d)) or not where(path):
            return None
        weight = state[f"{path}.weight"]
        refuse_diverged(f"factor: {path}.weight", weight)
        matrix = channels_first(weight).T  # (i, o)
        r = rank or rank_for(matrix, energy or 1.0)
        if getattr(layer, "groups", 1) > 1 or r * sum(matrix.shape) >= matrix.size:
            return None
        new = factored(layer, r)
        A, B = truncated(matrix, r)
        del state[f"{path}.weight"]
        for name, part, inner in (("first", A, new.first), ("second", B, new.second)):
            state[f"{path}.{name}.weight"] = channels_back(part.T, inner.weight.declared)
        if layer.bias is not None:
            state[f"{path}.second.bias"] = state.pop(f"{path}.bias")
        changed.append(path)
        return new

    new = exchange(declared(model), change)
    if not changed:
        raise ValueError(
            f"factor: with {f'rank {rank}' if rank else f'energy {energy}'} no selected layer gets "
            "smaller: r (inputs + outputs) must be less than inputs · outputs"
        )
    return filled(new, state, dtype)
