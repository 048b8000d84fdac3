"""How parameters start. Each initialiser takes a generator and a shape."""

from __future__ import annotations

import numpy as np

from minidist.nn.module import Initialiser


def uniform_fan_in(fan_in: int) -> Initialiser:
    """Uniform in ±1/√fan_in: LeCun's rule, and PyTorch's default for linear layers."""
    bound = 1 / np.sqrt(max(1, fan_in))
    return lambda generator, shape: generator.uniform(-bound, bound, shape)


def constant(value: float) -> Initialiser:
    """Every element the same."""
    return lambda generator, shape: np.full(shape, value)
