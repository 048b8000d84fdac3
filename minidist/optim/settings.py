"""An optimizer's settings: learning rate and weight decay, of all parameters and of groups.

Settings are read in every step, so they may be changed between two: ``optimizer.lr = 0.01``. Some
parameters may have settings of their own. ``groups`` maps patterns of names to these settings:

    AdamW(1e-3, groups={"*bias": {"weight_decay": 0.0}, "head.*": {"lr": 1e-4}})

The first pattern that a name matches decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LearningRate = float | Callable[[int], float]
Groups = Mapping[str, dict[str, Any]]  # pattern of names -> {"lr": ..., "weight_decay": ...}


@dataclass(frozen=True)
class Rates:
    """The learning rate and the weight decay of a group, in one step."""

    lr: float
    decay: float


def checked_rate(rule: str, lr: Any) -> LearningRate:
    """``lr``, if it can be a learning rate; otherwise TypeError or ValueError."""
    if not callable(lr) and not isinstance(lr, (int, float, np.number)):
        raise TypeError(
            f"{rule}: the first argument is the learning rate, a number or a schedule, not a "
            f"{type(lr).__name__}: parameters are passed to step(model.flat.data, model.flat.grad)"
        )
    if not callable(lr) and not lr >= 0:
        raise ValueError(f"the learning rate must be at least 0, not {lr}")
    return lr


def checked_decay(weight_decay: Any) -> float:
    """``weight_decay``, if it is at least 0; otherwise ValueError."""
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")
    return weight_decay


def check_group(rule: str, pattern: str, group: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError if a group has an unknown setting, or a wrong value."""
    if unknown := sorted(set(group) - {"lr", "weight_decay"}):
        raise ValueError(
            f"{rule}: the group {pattern!r} has settings {unknown}, and a group has 'lr' and "
            "'weight_decay'"
        )
    checked_rate(rule, group.get("lr", 0.0))
    checked_decay(group.get("weight_decay", 0.0))
