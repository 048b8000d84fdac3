"""Checks of what a method is made from: model, optimizer, loss, microbatches and clip."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.nn.losses import Loss
from minidist.nn.module import Module
from minidist.optim.optimizer import Optimizer


def check_unused(model: Module, optimizer: Optimizer) -> None:
    """Raise ValueError if the model is initialised, or the optimizer has made a step."""
    if model.initialised:
        raise ValueError(
            "the model is initialised already: pass a declared one, built by each rank itself, "
            "without init: the method decides which part of it a rank holds (to continue from "
            "saved parameters, call method.load)"
        )
    if optimizer.steps or optimizer.arrays() or optimizer.owner:
        raise ValueError(
            f"the optimizer has made steps, or belongs to {optimizer.owner or 'another loop'}: "
            "each rank must make its own, and a new one for each method"
        )


def check_argument(method: str, name: str, value: Any) -> None:
    """Raise TypeError or ValueError if ``value`` cannot be the argument ``name`` of any method.

    ``method`` is the name of the method that was called. Arguments that are not named here are not
    checked.
    """
    if name == "loss":
        if not isinstance(value, Loss):
            raise TypeError(
                f"{method}: the loss is a {type(value).__name__}, which does not say by how much "
                "it is divided: make it a subclass of minidist.nn.Loss"
            )
        if value.reduction != "mean":
            raise ValueError(
                f'{method}: the loss has reduction="{value.reduction}", and a step needs one '
                'number: make it with reduction="mean"'
            )
    elif name == "microbatches":
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(
                f"{method} needs a whole number of microbatches, at least one microbatch, not "
                f"{value!r}"
            )
    elif name == "clip":
        number = isinstance(value, (int, float, np.number))
        if value is not None and not (number and value > 0):
            raise ValueError(f"{method}: the norm to clip to must be positive, not {value!r}")
