"""Optimizers over flat arrays, in order of increasing complexity; schedules and clipping.

Read them in this order: sgd.py, adaptive.py, adam.py, layerwise.py, mixed.py.
"""

from minidist.optim import schedules
from minidist.optim.adam import Adam, AdamW
from minidist.optim.adaptive import AdaGrad, RMSprop
from minidist.optim.clip import clip_by_global_norm, global_norm
from minidist.optim.layerwise import LAMB, LARS
from minidist.optim.mixed import MixedPrecision
from minidist.optim.optimizer import Optimizer
from minidist.optim.schedules import linear_scaling
from minidist.optim.sgd import SGD, GradientDescent, Momentum, Nesterov

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "GradientDescent",
    "MixedPrecision",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "RMSprop",
    "clip_by_global_norm",
    "global_norm",
    "linear_scaling",
    "schedules",
]
