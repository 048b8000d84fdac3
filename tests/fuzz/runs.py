"""What a run of training is: drawn with the same draws at every size, and then cut to size.

A run draws a row, ranks, a task, an optimizer, batches (also with fewer samples than ranks, and the
same one twice), microbatches, a clip that bites and may change, and whether it is saved in the
middle, to go on by another method on another number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.fuzz.optimizers import Rule, draw_rule
from tests.fuzz.rows import ROWS, Row
from tests.fuzz.tasks import SAMPLES, Task, draw_task

Random = np.random.Generator


@dataclass(frozen=True)
class Part:
    """A method that trains some steps of a run."""

    key: str
    ranks: int
    options: dict[str, Any]
    steps: range


@dataclass(frozen=True)
class Run:
    """All that was drawn."""

    parts: tuple[Part, ...]
    task: Task
    rule: Rule
    batches: tuple[tuple[int, ...], ...]  # indices of samples
    clip: float | None
    later: tuple[int, float] | None  # from this step on, another clip
    seed: int

    def __str__(self) -> str:
        lines = [f"{p.key} on {p.ranks} ranks, steps {[*p.steps]}, {p.options}" for p in self.parts]
        lines += [f"{self.task}", self.rule.what]
        lines += [
            f"batches of {[len(b) for b in self.batches]}, clip {self.clip}, later {self.later}"
        ]
        return "\n".join(lines)


def draw_part(random: Random, size: int, keys: list[str]) -> tuple[str, Row, int, dict[str, Any]]:
    key = str(random.choice(keys))
    row = ROWS[key]
    sizes = [n for n in row.sizes if n <= max(size + 1, row.sizes[0])]
    ranks = int(sizes[int(random.random() * len(sizes))])
    options = row.options(random, ranks)
    accumulated, parts = random.random() < row.accumulates, int(random.integers(2, 6))
    if accumulated and size > 1:
        options["microbatches"] = parts
    return key, row, ranks, options


def draw(random: Random, size: int, keys: list[str]) -> Run:
    key, row, ranks, options = draw_part(random, size, keys)
    mesh = options.get("mesh", {"pp": ranks // options.get("replicas", 1)})
    kinds = dict(row.kinds)
    if ranks > 1 and options.get("microbatches", 1) > 1:
        kinds.pop("sync", None)  # parts that come one after the other are not normalised together
    if "sync" in kinds and "microbatches" in options:
        kinds.pop("sync")
    cut = mesh.get("tp", ranks if key == "tensor" else 1)
    task = draw_task(random, size, kinds, int(row.blocks * mesh["pp"]), cut)
    if task.frozen and not row.freezes and random.random() < 0.8:
        task = Task(task.kind, task.losses, task.build, task.dataset, task.loss)
    whole = task.build(comm=None)  # type: ignore[arg-type]
    names = [name for name in whole.named_parameters() if name != task.frozen]
    rule = draw_rule(random, size, names, row.limit == "linear")
    steps = min(int(random.integers(1, 5)), 1 + size // 2)
    count = int(random.choice([1, 2, 3, 5, 8, 13]))
    if task.kind == "sync":
        count = max(count, 4)  # there is no variance of one sample
    batches = [tuple(int(i) for i in random.integers(0, SAMPLES, count)) for _ in range(4)]
    if random.random() < 0.3:
        batches[1] = batches[0]
    if random.random() < 0.3:
        batches[2] = batches[2][: max(1, count // 2)]
    limit = round(float(10 ** random.uniform(-2.5, 0)), 4)
    clip = limit if random.random() < row.clips and size > 1 else None
    reclips, from_step = random.random() < row.clips / 2, int(random.integers(1, 4))
    later = (from_step, limit * 0.7) if reclips and size > 3 and from_step < steps else None
    saved, seed = random.random() < 0.35, int(random.integers(100))
    other, _, others, settings = draw_part(random, size, keys)
    same, middle = random.random() < 0.5, max(1, steps // 2)
    first = Part(key, ranks, options, range(steps))
    parts = [first]
    if saved and steps > 1 and size > 3 and task.kind != "sync":
        then = Part(other, others, settings, range(middle, steps))
        if same or not follows(row, ROWS[other], task, ranks):
            then = Part(key, ranks, options, range(middle, steps))
        parts = [Part(key, ranks, options, range(middle)), then]
    return Run(tuple(parts), task, rule, tuple(batches[:steps]), clip, later, seed)


def follows(row: Row, other: Row, task: Task, ranks: int) -> bool:
    """Whether another method may go on: it holds as much of serial training, and takes the task."""
    return other.limit == row.limit and task.kind in other.kinds and other.blocks <= row.blocks
