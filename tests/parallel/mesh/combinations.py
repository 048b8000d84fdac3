"""The matrix of compositions: every mesh with every choice that applies to it, as data.

    dp × pp × tp in {1, 2}³ · ZeRO 0 to 3 (where dp is 2) · 4 schedules · MLP and GPT
    · whole, along the sequence, and along it with gathered inputs kept (where tp is 2, GPT)
    · SGD with momentum, AdamW                                                  = 480 combinations

The GPT has a tied table, dropout, label smoothing, z-loss and ignored targets, far more of them in
some samples than in others; the batch of 9 does not divide; and each step's gradient is clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from tests.pairs import covering
from tests.parallel.tensor.checks import MLP, Task, adamw, momentum, small_gpt

GPT = partial(small_gpt, layers=2)
OPTIMIZERS = {"momentum": momentum, "adamw": adamw}
SCHEDULES = ["gpipe", "1f1b", "interleaved", "zero_bubble_h1"]
WHOLE, SEQUENCE, KEPT = range(3)


@dataclass(frozen=True)
class Combination:
    """One cell of the matrix."""

    dp: int
    pp: int
    tp: int
    zero: int
    schedule: str
    sequence: int
    optimizer: str
    model: str = "gpt"

    def __str__(self) -> str:
        along = ("whole", "sequence", "sequence kept")[self.sequence]
        return (
            f"dp={self.dp} pp={self.pp} tp={self.tp} zero {self.zero}, {self.schedule}, {along}, "
            f"{self.optimizer}, {self.model}"
        )

    @property
    def ranks(self) -> int:
        return self.dp * self.pp * self.tp

    @property
    def applies(self) -> bool:
        """Whether each choice says something on this mesh."""
        cuts = self.tp > 1 and self.model == "gpt"
        return (self.dp > 1 or not self.zero) and (cuts or not self.sequence)

    def task(self, **more: Any) -> Task:
        """What is trained; choices that do not apply are left out."""
        options: dict[str, Any] = {
            "mesh": {"dp": self.dp, "pp": self.pp, "tp": self.tp},
            "schedule": self.schedule,
            "microbatches": 2,
            "zero": self.zero if self.dp > 1 else 0,
            "sequence": self.sequence > 0 and self.tp > 1 and self.model == "gpt",
            "keep": self.sequence == KEPT,
        }
        model: dict[str, Any] = MLP if self.model == "mlp" else {"model": GPT}
        return Task(**model, optimizer=OPTIMIZERS[self.optimizer], options=options | more)


def ranks_of(mesh: dict[str, int]) -> int:
    return math.prod(mesh.values())


AXES: tuple[list[Any], ...] = (
    [1, 2],
    [1, 2],
    [1, 2],
    [0, 1, 2, 3],
    SCHEDULES,
    [WHOLE, SEQUENCE, KEPT],
    list(OPTIMIZERS),
    ["gpt", "mlp"],
)


def every() -> list[Combination]:
    """The whole matrix."""
    return [one for one in (Combination(*cell) for cell in product(*AXES)) if one.applies]


def covering_pairs(ranks: int | None = None) -> list[Combination]:
    """Combinations, on that many ranks, in which every pair of choices occurs that can occur."""
    listed = [one for one in every() if ranks in (None, one.ranks)]
    numbers = [
        tuple(axis.index(choice) for axis, choice in zip(AXES, vars(one).values(), strict=True))
        for one in listed
    ]
    chosen = covering(numbers)
    return [one for one, number in zip(listed, numbers, strict=True) if number in chosen]
