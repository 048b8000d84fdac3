"""Optimizers over flat arrays, in order of increasing complexity."""

from minidist.optim.adam import Adam
from minidist.optim.optimizer import Optimizer
from minidist.optim.sgd import SGD

__all__ = ["SGD", "Adam", "Optimizer"]
