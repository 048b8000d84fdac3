"""What an exercise is: a folder with a stub, a solution, and ``marks.py``: what counts.

    exercises/ring/stub.py       what ``minidist exercise start ring`` writes: drawing, formula
    exercises/ring/solution.py   one right answer
    exercises/ring/marks.py      how an answer is run, and how each mark is given

``marks.py`` is read as data, so a new exercise is a new folder and a line in ``EXERCISES``:

    TITLE, MINUTES, FUNCTIONS     what it is called, how long it takes, what the answer defines
    MARKS                         points for each mark, in the order in which they are shown
    FORBIDDEN                     modules that the answer may not use: they contain the solution
    cases(seed)                   the cases; an instructor's seed gives others than the student saw.
                                  Of each number of ranks, two come again with other data
    prepare(rank, case)           the data that a rank starts from; its memory is not counted
    run(comm, answer, case, given)    run the answer on one rank, and return what was measured
    judge(case, ranks)            yield (mark, None if it is right, else what is wrong), from what
                                  all ranks measured and the reference formula

``run`` happens in a process of its own, beside the answer; ``judge`` happens in the marker, which
never runs the answer's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
AGAIN = 1_000_003  # added to the seed of a case that comes again: no other case has such a seed
Verdict = tuple[str, str | None]  # a mark's name, and what is wrong; None: nothing


@dataclass(frozen=True)
class Case:
    """One run of an answer: on how many ranks, in which world, from which seed, with what."""

    ranks: int = 1
    seed: int = 0
    world: str = "local"  # or "mpi"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def __str__(self) -> str:
        parts = [f"{self.ranks} rank{'s' * (self.ranks > 1)}" + " of MPI" * (self.world == "mpi")]
        return ", ".join(parts + [f"{name} {value}" for name, value in self.settings.items()])


@dataclass(frozen=True)
class Exercise:
    """An exercise, as its folder says."""

    name: str
    title: str
    minutes: int
    functions: tuple[str, ...]
    marks: Mapping[str, int]
    forbidden: tuple[str, ...]
    cases: Callable[[int], Iterable[Case]]
    prepare: Callable[[int, Case], Any]
    run: Callable[[Any, Any, Case, Any], dict[str, Any]]
    judge: Callable[[Case, list[dict[str, Any]]], Iterable[Verdict]]

    @property
    def stub(self) -> Path:
        return FOLDER / self.name / "stub.py"

    @property
    def solution(self) -> Path:
        return FOLDER / self.name / "solution.py"


def find(name: str, names: Iterable[str]) -> Exercise:
    """The exercise of that name. Raises ValueError with all names if there is none."""
    names = list(names)
    if name not in names:
        raise ValueError(f"there is no exercise {name!r}: choose one of {', '.join(names)}")
    marks = import_module(f"minidist.exercises.{name}.marks")
    return Exercise(
        name,
        marks.TITLE,
        marks.MINUTES,
        marks.FUNCTIONS,
        marks.MARKS,
        marks.FORBIDDEN,
        lambda seed: _some_again(list(marks.cases(seed))),
        marks.prepare,
        marks.run,
        marks.judge,
    )


def _some_again(cases: list[Case]) -> list[Case]:
    """The cases, and for each number of ranks two of them on other data.

    An answer that keeps something from one call to the next, under the same sizes, is right once.
    """
    local = [case for case in cases if case.world == "local"]
    by_ranks: dict[int, list[Case]] = {}
    for case in local:
        by_ranks.setdefault(case.ranks, []).append(case)
    for several in by_ranks.values():  # of the first case, and of one in the middle
        again = several[: len(several) // 2 + 1 : max(1, len(several) // 2)]
        local += [replace(case, seed=case.seed + AGAIN) for case in again]
    return local + [case for case in cases if case.world != "local"]
