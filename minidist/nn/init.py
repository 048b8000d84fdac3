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


def normal(std: float) -> Initialiser:
    """Normal with mean 0: GPT-2's rule with std 0.02."""
    return lambda generator, shape: generator.normal(0, std, shape)


def he_normal(fan_in: int) -> Initialiser:
    """Normal with variance 2/fan_in, which keeps a signal's size through ReLUs (1502.01852)."""
    return normal((2 / max(1, fan_in)) ** 0.5)


def xavier_uniform(fan_in: int, fan_out: int) -> Initialiser:
    """Uniform with variance 2/(fan_in + fan_out): Glorot and Bengio, AISTATS 2010."""
    bound = (6 / max(1, fan_in + fan_out)) ** 0.5
    return lambda generator, shape: generator.uniform(-bound, bound, shape)
