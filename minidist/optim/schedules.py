"""Learning-rate schedules: plain functions of the step (0, 1, ...), passed as ``lr``.

Adam(lr=warm_up(100, cosine(1e-3, steps=2000)))
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """Always ``lr``."""
    return lambda step: lr


def step_decay(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """``lr``, multiplied by ``factor`` once every ``every`` steps."""
    _positive("step_decay", "every", every)
    return lambda step: lr * factor ** (step // every)


def linear(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """A straight line from ``lr`` to ``final`` in ``steps`` steps, then ``final``."""
    _positive("linear", "steps", steps)
    return lambda step: lr + (final - lr) * min(step / steps, 1.0)


def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine from ``lr`` to ``final`` in ``steps`` steps (SGDR, arXiv 1608.03983)."""
    _positive("cosine", "steps", steps)
    return lambda step: final + (lr - final) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2


def warm_up(steps: int, schedule: float | Schedule) -> Schedule:
    """Increase in ``steps`` equal steps to the first value of ``schedule``, then follow it.

    Step 0 already has 1/steps of that value, because a step of rate zero would do nothing. The
    schedule's step 0 is the first one after the warm-up.
    """
    _positive("warm_up", "steps", steps)
    after: Schedule = schedule if callable(schedule) else constant(schedule)
    return lambda step: after(0) * (step + 1) / steps if step < steps else after(step - steps)


def linear_scaling(lr: float, batch: int, reference: int) -> float:
    """The rate for a batch of ``batch`` samples, if ``lr`` is right for ``reference`` samples.

    A batch k times as large takes 1/k of the steps, so each step must be k times as long. This
    holds if gradients change little over k small steps. They change fast at first, so use warm-up;
    and k cannot grow without limit. Goyal et al., "Accurate, large minibatch SGD", arXiv
    1706.02677, section 2.1.
    """
    _positive("linear_scaling", "reference", reference)
    return lr * batch / reference


def _positive(schedule: str, name: str, value: int) -> None:
    if value <= 0:
        raise ValueError(f"{schedule}: {name} must be positive, not {value}")
