"""Gradual pruning: remove weights during training, many at first, then fewer and fewer.

    share ▏          ▁▁▂▂▃▃▃▃    sₜ = s_f + (s_i - s_f) · (1 - (t - t₀) / (n Δt))³
          ▏     ▂▄▅▆▇████████    for t = t₀, t₀ + Δt, ..., t₀ + n Δt; constant after that
          ▏  ▂▆██████████████
          ▏▁▇████████████████    s_i: initial share of zeros, s_f: final, Δt: steps between
          ╰──────────────────    two prunings, n: how many follow the first one
                          step

At first many weights are unnecessary; later each removal costs more, and the model needs steps in
between to recover. The masks are computed again each time. A pruned weight has magnitude 0, so it
stays pruned.

Source: Zhu, Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
compression", arXiv 1710.01878, section 3, equation 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from minidist.compress.pruning import Masks, apply_masks, magnitude_masks
from minidist.nn.module import Module


def cubic(step: int, final: float, steps: int, start: int = 0, initial: float = 0.0) -> float:
    """The share of zeros at ``step``: from ``initial`` to ``final`` within ``steps`` steps."""
    done = min(1.0, max(0.0, (step - start) / steps))
    return final + (initial - final) * (1 - done) ** 3


@dataclass
class GradualPruning:
    """Call ``after_step(model, step)`` after each step of the optimizer, on every rank.

    From step ``start`` on, every ``every`` steps, ``magnitude_masks`` removes the share ``cubic``;
    after ``start + steps`` it is ``final``. Replicas of a model have equal weights, so ranks agree
    on the masks without a message.
    """

    final: float
    steps: int
    every: int = 10
    start: int = 0
    initial: float = 0.0
    scope: Literal["model", "layer"] = "model"
    masks: Masks = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1:
            raise ValueError(
                f"GradualPruning: need 0 <= initial <= final < 1, not {self.initial} and "
                f"{self.final}"
            )
        if self.steps < 1 or not 1 <= self.every <= self.steps or self.steps % self.every:
            raise ValueError(
                f"GradualPruning: {self.steps} steps must be a multiple of every={self.every}, "
                "and both at least 1"
            )

    def after_step(self, model: Module, step: int) -> None:
        since = step - self.start
        if 0 <= since <= self.steps and since % self.every == 0:
            share = cubic(step, self.final, self.steps, self.start, self.initial)
            self.masks = magnitude_masks(model, share, self.scope)
        apply_masks(model, self.masks)
