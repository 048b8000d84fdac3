"""Initial values of parameters. Each initialiser takes a generator and a shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minidist.nn.module import Initialiser


@dataclass(frozen=True)  # a class, so that a model can be pickled with it
class Uniform:
    """Uniform in ±bound."""

    bound: float

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.uniform(-self.bound, self.bound, shape)


@dataclass(frozen=True)
class Constant:
    """Every element is ``value``."""

    value: float

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Normal:
    """Normal with mean 0."""

    std: float

    def __call__(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.normal(0, self.std, shape)


def uniform_fan_in(fan_in: int) -> Initialiser:
    """Uniform in ±1/√fan_in: LeCun's rule, and PyTorch's default for linear layers."""
    return Uniform(1 / np.sqrt(max(1, fan_in)))


def constant(value: float) -> Initialiser:
    """Every element is ``value``."""
    return Constant(value)


def normal(std: float) -> Initialiser:
    """Normal with mean 0: GPT-2's rule with std 0.02."""
    return Normal(std)


def he_normal(fan_in: int) -> Initialiser:
    """Normal with variance 2/fan_in, which keeps the size of activations through ReLUs.

    He et al., arXiv 1502.01852.
    """
    return Normal((2 / max(1, fan_in)) ** 0.5)


def xavier_uniform(fan_in: int, fan_out: int) -> Initialiser:
    """Uniform with variance 2/(fan_in + fan_out): Glorot and Bengio, AISTATS 2010."""
    return Uniform((6 / max(1, fan_in + fan_out)) ** 0.5)
