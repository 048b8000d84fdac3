"""Random optimizers: rules, rates, schedules, decay, groups, and what changes in the middle.

The small number ε that rules divide by is at least 1e-4. A gradient that is 0 on paper is 1e-18 in
one method and -1e-18 in another, and a rule with ε = 1e-8 would make 1e-10 times a rate of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minidist.optim import (
    LAMB,
    LARS,
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    GradientDescent,
    Momentum,
    Nesterov,
    Optimizer,
    RMSprop,
)
from minidist.optim.schedules import cosine, linear, step_decay, warm_up

LINEAR: dict[str, Callable[..., Optimizer]] = {
    "gradient descent": GradientDescent,
    "sgd": partial(SGD, momentum=0.9),
    "momentum": partial(Momentum, momentum=0.7),
    "nesterov": partial(Nesterov, momentum=0.8),
}
OTHERS: dict[str, Callable[..., Optimizer]] = {
    "adagrad": partial(AdaGrad, epsilon=1e-3),
    "rmsprop": partial(RMSprop, epsilon=1e-3),
    "adam": partial(Adam, betas=(0.8, 0.9), epsilon=1e-3),
    "adamw": partial(AdamW, epsilon=1e-3),
    "lars": partial(LARS, trust=0.1),
    "lamb": partial(LAMB, epsilon=1e-3),
}


@dataclass(frozen=True)
class Rule:
    """``make()`` gives a new optimizer. At step ``at`` the user sets ``change`` on it."""

    what: str
    make: Callable[[], Optimizer]
    change: tuple[str, float] | None
    at: int

    def before(self, optimizer: Optimizer, step: int) -> None:
        """What a user does to the optimizer before a step; also after going on from a state."""
        if self.change is not None and step >= self.at:
            setattr(optimizer, *self.change)


def draw_rule(random: np.random.Generator, size: int, names: list[str], only_linear: bool) -> Rule:
    rules = LINEAR if only_linear else LINEAR | OTHERS
    rule = str(random.choice([*rules]))
    rate = round(float(10 ** random.uniform(-2, -0.7)), 4)
    makes = [linear(rate, 3), cosine(rate, 4), step_decay(rate, 2), warm_up(2, rate)]
    schedule = makes[int(random.integers(4))]
    scheduled, decayed, grouped, excluded, changed = random.random(5) < (0.3, 0.5, 0.3, 0.3, 0.4)
    decay = round(float(random.uniform(0.01, 0.3)), 3)
    name, other = (str(n) for n in random.choice(names, 2))
    group = [{"lr": rate / 3}, {"weight_decay": 0.4}, {"lr": 0.0, "weight_decay": 0.1}]
    chosen, at = group[int(random.integers(3))], int(random.integers(1, 4))
    change = [("lr", rate / 2), ("weight_decay", 0.2), ("lr", rate * 1.5)][int(random.integers(3))]
    options: dict[str, Any] = {"lr": schedule if scheduled and size > 1 else rate}
    if decayed and size > 1:
        options["weight_decay"] = decay
    if grouped and size > 2:
        options["groups"] = {name: chosen}
    if excluded and size > 2:
        options["exclude"] = (other,)
    shown = {k: "schedule" if callable(v) else v for k, v in options.items()}
    said = f"{rule} {shown}" + (f", then {change} at {at}" if changed and size > 3 else "")
    make = partial(rules[rule], **options)
    return Rule(said, make, change if changed and size > 3 else None, at)
