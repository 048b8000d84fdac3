"""Tasks: a model with its data, optimizer and loss, the same for all methods.

Your own task is a ``Task``, or a function that returns one:

    from minidist.compare import Task, compare

    mine = Task("mine", make_model, load_data, lambda: SGD(0.1))
    compare(task=mine)                           # or: minidist compare --task my_module:mine
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from minidist import nn
from minidist.compare.named import load
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
    """The task of a name in ``TASKS`` or of "module:name", or ``task`` itself; else ValueError."""
    found: object = task
    if isinstance(task, str):
        if ":" not in task and task not in TASKS:
            raise ValueError(
                f"unknown task {task!r}: choose one of {', '.join(TASKS)}, or name your own as "
                "module:name"
            )
        found = TASKS[task] if task in TASKS else load(task)
    if callable(found) and not isinstance(found, Task):
        found = found()
    if not isinstance(found, Task):
        raise ValueError(f"{task} is no Task, and returns none: it is a {type(found).__name__}")
    return found
