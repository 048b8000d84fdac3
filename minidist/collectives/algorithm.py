"""An algorithm of a collective: one object, which runs it and says what it costs.

    @algorithm("ring")
    def all_reduce(comm, array, op="sum"): ...

    @all_reduce.costs
    def all_reduce_cost(length, itemsize, rank, size, machine): ...

Then ``all_reduce(comm, array)`` runs it, ``all_reduce.cost(length, itemsize, rank, size, machine)``
is its formula, and ``all_reduce.name`` is the name by which the dictionaries in ``tables.py`` have
it. An algorithm of your own is made in the same way, or by ``Algorithm(name, run, cost)``.

A call compares its arguments over the ranks (``Comm.compares``), and then calls ``run``, the plain
function. A collective made of others, such as a reduce-scatter and an all-gather, calls their
``run``: its own arguments have been compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from inspect import signature
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

import numpy as np

from minidist.collectives.cost import Cost
from minidist.comm.checks import HOST, check_array, check_root, no_comm

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
        self.operation = getattr(run, "__name__", "collective")
        try:
            parameters = list(signature(run).parameters)[1:]  # without comm
        except ValueError:  # written in C
            parameters = []
        self.parameters = tuple(parameters)
        self.root = parameters.index("root") + 1 if "root" in parameters else None  # its place
        self.cost = cost or self._no_cost

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> R:
        comm: Any = arguments[0] if arguments else options["comm"]
        try:
            compares = comm.compares  # as all folded ranks do
        except AttributeError:
            raise no_comm(comm, f"{self.operation} by {self.name}") from None
        # A call of a few numbers takes some microseconds: the usual case goes by quickly.
        if (
            not compares
            and not options
            and self.root is None
            and len(arguments) > 1
            and type(arguments[1]) is HOST
        ):
            return self.run(*arguments)  # type: ignore[call-arg]  # there are no options
        array = arguments[1] if len(arguments) > 1 else None
        if isinstance(array, (int, float, complex, np.generic)):
            check_array(f"rank {comm.rank}: {self.operation}", array)  # refuses it
        if self.root is not None:
            root = arguments[self.root] if len(arguments) > self.root else options.get("root", 0)
            check_root(comm.rank, comm.size, self.operation, root)
        if comm.folded:  # one rank stands for all: see comm/local/folded.py
            return comm.run_folded(self, *arguments[1:], **options)
        if comm.compares and comm.size > 1:
            named = dict(zip(self.parameters, arguments[1:], strict=False)) | options
            named.pop("comm", None)
            comm._compare(describe_call(self.operation, self.name, named))
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


def describe_call(operation: str, algorithm: str, arguments: Mapping[str, Any]) -> str:
    """What must be the same on all ranks: "all_reduce by ring of float32[10], op='sum'"."""
    arrays = [_described(value) for value in arguments.values() if not _is_plain(value)]
    others = [f", {name}={value!r}" for name, value in arguments.items() if _is_plain(value)]
    return f"{operation} by {algorithm} of {' and '.join(arrays)}{''.join(others)}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _described(value: Any) -> str:
    """An array by dtype and shape; a list of arrays by length: its parts may differ over ranks."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    return f"{len(value)} arrays" if isinstance(value, Sequence) else type(value).__name__


def algorithm(name: str) -> Callable[[Callable[P, R]], Algorithm[P, R]]:
    """Decorates the function that runs an algorithm."""

    def made(run: Callable[P, R]) -> Algorithm[P, R]:
        return Algorithm(name, run)

    return made


def find(table: Mapping[str, Algorithm[..., Any]], choice: Choice) -> Algorithm[..., Any]:
    """What to call: the algorithm that ``choice`` names in ``table``, or ``choice`` itself."""
    if callable(choice):
        return choice if isinstance(choice, Algorithm) else own(choice)
    if choice not in table:
        raise ValueError(
            f"unknown algorithm {choice!r}: choose one of {', '.join(table)}, or pass a function"
        )
    return table[choice]


def own(function: Callable[..., Any]) -> Algorithm[..., Any]:
    """A function of the user's as an algorithm: checked like ours, and without a formula."""
    return Algorithm(getattr(function, "__name__", repr(function)), function)


def cost_of(table: Mapping[str, Algorithm[..., Any]], choice: Choice) -> Callable[..., Cost]:
    """The formula of that algorithm; one that raises UnknownCost for a function that has none."""
    return find(table, choice).cost
