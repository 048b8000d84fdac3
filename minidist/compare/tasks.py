"""Tasks: a model with its data, optimizer and loss, the same for all methods.

Your own task is a ``Task``, or a function that returns one:

    from minidist.compare import Task, compare

    mine = Task("mine", make_model, load_data, lambda: SGD(0.1))
    compare(task=mine)                           # or: minidist compare --task my_module:mine
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from minidist import nn
from minidist.compare.named import load, suggestion
from minidist.data import Dataset, fashion_mnist, shakespeare, waves
from minidist.models import cnn, gpt, mlp
from minidist.nn import CrossEntropy, Loss, MeanSquaredError
from minidist.nn.layers import Sequential
from minidist.optim import SGD, Optimizer


@dataclass(frozen=True)
class Task:
    """``data`` returns (training, test). Every function is called again for every method."""

    name: str
    model: Callable[[], Sequential]
    data: Callable[[], tuple[Dataset, Dataset]]
    optimizer: Callable[[], Optimizer]
    loss: Callable[[], Loss] = CrossEntropy
    sequences: bool = False  # inputs are (batch, length); adds the rows that cut the sequence


def residual_mlp(width: int = 96, blocks: int = 7) -> Sequential:
    """An MLP of equal blocks, x + linear(gelu(linear(norm(x)))), for images of 28 × 28.

    Methods that keep a part of the model on each rank save memory only if no block is much larger
    than the others. In a plain MLP the first layer is.
    """
    return Sequential(
        nn.Flatten(),
        nn.Linear(784, width),
        *(
            nn.Residual(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
            )
            for _ in range(blocks)
        ),
        nn.Linear(width, 10),
        input_shape=(784,),
    )


def small_gpt() -> Sequential:
    return gpt(63, context=32, width=64, layers=4, heads=8, dropout=0.1)


def momentum(rate: float) -> Callable[[], Optimizer]:
    return partial(SGD, rate, momentum=0.9)


DEFAULT_TASK = "residual_mlp"
TASKS = {
    "residual_mlp": Task("residual_mlp", residual_mlp, fashion_mnist, momentum(0.02)),
    "mlp": Task("mlp", mlp, fashion_mnist, momentum(0.05)),
    "cnn": Task("cnn", partial(cnn, 8, hidden=64), fashion_mnist, momentum(0.05)),
    "gpt": Task(
        "gpt",
        small_gpt,
        partial(shakespeare, 32, held_out=0.01, stride=32),
        momentum(0.2),
        sequences=True,
    ),
    "regression": Task(
        "regression",
        lambda: mlp((8, 64, 64, 64, 2)),
        waves,
        momentum(0.05),
        MeanSquaredError,
    ),
}


def task_of(task: str | Task | Callable[[], Task]) -> Task:
    """The task of a name in ``TASKS`` or of "module:name", or ``task`` itself, checked.

    Raises ValueError if there is no such task, or if one of its functions returns something else
    than it should.
    """
    found: object = task
    if isinstance(task, str):
        if ":" not in task and task not in TASKS:
            raise ValueError(
                f"unknown task {task!r}{suggestion(task, list(TASKS))}: choose one of "
                f"{', '.join(TASKS)}, or name your own as module:name"
            )
        found = TASKS[task] if task in TASKS else load(task)
    if callable(found) and not isinstance(found, Task):
        if needed := _needed(found):
            raise ValueError(
                f"{task} is called without arguments, to return a Task; it needs {needed}"
            )
        found = found()
    if not isinstance(found, Task):
        raise ValueError(f"{task} is no Task, and returns none: its type is {type(found).__name__}")
    if TASKS.get(found.name) is not found:
        _check(found)
    return found


def _needed(function: Callable[..., object]) -> str:
    """The parameters that a function cannot be called without, separated by commas."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return ""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return ", ".join(p.name for p in parameters if p.default is p.empty and p.kind not in kinds)


def _check(task: Task) -> None:
    """Call each function of a user's task once; raises ValueError if one returns the wrong type."""
    for field, kind in (("model", Sequential), ("optimizer", Optimizer), ("loss", Loss)):
        function = getattr(task, field)
        what = f"task {task.name!r}: {field} must be a function that returns a new {kind.__name__}"
        if isinstance(function, kind):
            raise ValueError(f"{what} for each method; it is one itself")
        if not callable(function) or (needed := _needed(function)):
            lacks = f"it needs {needed}" if callable(function) else f"its type is {_type(function)}"
            raise ValueError(f"{what}, without arguments; {lacks}")
        if not isinstance(found := function(), kind):
            raise ValueError(f"{what}; it returns a {_type(found)}")
    what = f"task {task.name!r}: data must be a function that returns a (train, test) of Datasets"
    if not callable(task.data):
        raise ValueError(f"{what}; its type is {_type(task.data)}")
    sets = task.data()
    pair = isinstance(sets, tuple | list) and len(sets) == 2
    if not pair or not all(isinstance(one, Dataset) for one in sets):
        raise ValueError(f"{what}; it returns a {_type(sets)}")


def _type(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {', '.join(type(one).__name__ for one in value)}"
    return type(value).__name__
