"""An algorithm of a collective: one object, which runs it and says what it costs.

    @algorithm("ring")
    def all_reduce(comm, array, op="sum"): ...

    @all_reduce.costs
    def all_reduce_cost(length, itemsize, rank, size, machine): ...

Then ``all_reduce(comm, array)`` runs it, ``all_reduce.cost(length, itemsize, rank, size, machine)``
is its formula, and ``all_reduce.name`` is the name by which the dictionaries in ``tables.py`` have
it. An algorithm of your own is made in the same way, or by ``Algorithm(name, run, cost)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

from minidist.collectives.cost import Cost

P = ParamSpec("P")
R = TypeVar("R")
Formula = TypeVar("Formula", bound=Callable[..., Cost])

# What ``algorithm=`` takes everywhere: a name in a dictionary, an ``Algorithm``, or any function
# with the same arguments.
Choice = str | Callable[..., Any]


class UnknownCost(ValueError):
    """Somebody asked what an algorithm costs that has no formula."""


class Algorithm(Generic[P, R]):
    """``run`` does it; ``cost(length, itemsize, rank, size, machine)`` is its formula.

    A collective with a root has that as the formula's last argument. Without a formula, asking for
    the cost raises UnknownCost.
    """

    def __init__(
        self, name: str, run: Callable[P, R], cost: Callable[..., Cost] | None = None
    ) -> None:
        update_wrapper(self, run)  # help() shows the function's own text and arguments
        self.name = name
        self.run = run
        self.cost = cost or self._no_cost

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> R:
        comm = arguments[0] if arguments else None
        if getattr(comm, "folded", False):  # one rank stands for all: see comm/local/folded.py
            return comm.run_folded(self, *arguments[1:], **options)  # type: ignore[attr-defined]
        return self.run(*arguments, **options)

    def costs(self, formula: Formula) -> Formula:
        """Decorates the function that is this algorithm's formula."""
        self.cost = formula
        return formula

    def _no_cost(self, *arguments: Any, **options: Any) -> NoReturn:
        raise UnknownCost(
            f"what {self.name} costs is unknown: it has no formula. Give it one, "
            "Algorithm(name, run, cost), or measure it"
        )

    def __repr__(self) -> str:
        return f"<{getattr(self.run, '__name__', 'collective')} by {self.name}>"


def algorithm(name: str) -> Callable[[Callable[P, R]], Algorithm[P, R]]:
    """Decorates the function that runs an algorithm."""

    def made(run: Callable[P, R]) -> Algorithm[P, R]:
        return Algorithm(name, run)

    return made


def find(table: Mapping[str, Callable[..., Any]], choice: Choice) -> Callable[..., Any]:
    """What to call: the algorithm that ``choice`` names in ``table``, or ``choice`` itself."""
    if callable(choice):
        return choice
    if choice not in table:
        raise ValueError(
            f"unknown algorithm {choice!r}: choose one of {', '.join(table)}, or pass a function"
        )
    return table[choice]


def cost_of(table: Mapping[str, Callable[..., Any]], choice: Choice) -> Callable[..., Cost]:
    """The formula of that algorithm; one that raises UnknownCost for a function that has none."""
    found = find(table, choice)
    if not isinstance(found, Algorithm):
        found = Algorithm(getattr(found, "__name__", repr(found)), found)
    return found.cost
