"""Modules: parameters declared first, then initialised into one flat array."""

from minidist.nn.layers import Flatten, Linear, ReLU, Sequential
from minidist.nn.losses import CrossEntropy
from minidist.nn.module import Flat, LayerCost, Module, Parameter, UninitialisedError

__all__ = [
    "CrossEntropy",
    "Flat",
    "Flatten",
    "LayerCost",
    "Linear",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "UninitialisedError",
]
