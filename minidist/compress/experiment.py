"""Compare compressed models: one trained model, made smaller by each recipe, and measured.

    trained model ─┬─ recipe ─▸ smaller model ─ quality before ─▸ fine-tuning ─ quality after
                   ├─ recipe ─▸ ...
                   ╰─ ...                            then measure all: bytes, FLOPs, seconds

A recipe has two functions: ``make`` returns a new model from the trained one, and ``tune``
fine-tunes it. Quality is the accuracy of a classifier in percent, or the loss of a language model
in nats, on held-out data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minidist.compress.aware import convert, prepare
from minidist.compress.distillation import Distillation
from minidist.compress.gradual import GradualPruning
from minidist.compress.grouped import quantize_weights
from minidist.compress.int8 import quantize_int8
from minidist.compress.low_rank import factor
from minidist.compress.measuring import seconds_a_sample, sizes
from minidist.compress.pruning import apply_masks, magnitude_masks
from minidist.compress.structured import keep_largest, shrink
from minidist.compress.training import Progress, fit
from minidist.data import Augment, Batches, Dataset, fashion_mnist, shakespeare, token_windows
from minidist.inspect.metrics import accuracy, mean_loss
from minidist.models import cnn, gpt
from minidist.nn.layers import Sequential
from minidist.nn.losses import CrossEntropy
from minidist.nn.module import Module

Report = Callable[[str, int, int, float], None]  # name of the model, steps done, all steps, loss


@dataclass(frozen=True)
class CompressTask:
    """A model, its data, and how it is trained and evaluated."""

    name: str
    model: Callable[[], Sequential]
    small: Callable[[], Sequential]  # a student, with the same inputs and outputs
    data: Callable[[], tuple[Dataset, Dataset]]
    batch: int
    lr: float
    quality: str  # "accuracy", in percent, or "nats"
    augment: Augment | None = None
    timed: int = 100  # samples in a forward that is timed

    def batches(self, seed: int) -> Batches:
        return Batches(self.data()[0], self.batch, seed, self.augment)

    def judge(self, model: Module, chunk: int = 100) -> float:
        """The quality of a model on the held-out data."""
        test = self.data()[1]
        model.eval()
        if self.quality == "accuracy":
            return 100 * accuracy(model, test, chunk)
        return mean_loss(model, CrossEntropy(), test, chunk)

    def lost(self, before: float, after: float) -> float:
        """How much worse ``after`` is than ``before``: points, or nats."""
        return before - after if self.quality == "accuracy" else after - before


CONTEXT = 128


def _text() -> tuple[Dataset, Dataset]:
    """(training, test): every window for training, fewer for the test."""
    training, test = shakespeare(CONTEXT, stride=1)
    return training, token_windows(
        test.name, test.inputs.tokens, CONTEXT, test.classes, stride=4 * CONTEXT
    )


COMPRESS_TASKS = {
    "cnn": CompressTask(
        "cnn", cnn, lambda: cnn(4, hidden=24), fashion_mnist, 100, 3e-3, "accuracy", Augment()
    ),
    "gpt": CompressTask(
        "gpt",
        lambda: gpt(63, CONTEXT),
        lambda: gpt(63, CONTEXT, width=64, layers=2),
        _text,
        16,
        2e-3,
        "nats",
        timed=8,
    ),
}


class Tools:
    """For recipes: the task, inputs for calibration, and the training loop."""

    def __init__(self, task: CompressTask, steps: int, seed: int, report: Report | None) -> None:
        self.task, self.steps, self.seed, self.report = task, steps, seed, report
        self.name = ""  # of the current recipe
        self.batches = task.batches(seed)
        self.calibration = [self.batches[step].inputs for step in range(4)]

    def progress(self) -> Progress | None:
        report, name = self.report, self.name
        return None if report is None else lambda *numbers: report(name, *numbers)

    def fit(self, model: Module, share: float = 0.3, **more: Any) -> Module:
        """Fine-tune in place, with a ``share`` of the learning rate that trained the model."""
        lr = share * self.task.lr
        return fit(model, self.batches, self.steps, lr, progress=self.progress(), **more)


@dataclass(frozen=True)
class Recipe:
    """A way to make a model smaller: ``make(trained, tools)``, and ``tune(model, trained, tools)``.

    Without ``tune``, the model is not fine-tuned.
    """

    name: str
    make: Callable[[Module, Tools], Module]
    tune: Callable[[Module, Module, Tools], Module] | None = None


def _masked(share: float) -> Callable[[Module, Tools], Module]:
    def make(trained: Module, tools: Tools) -> Module:
        model = copy.deepcopy(trained)
        apply_masks(model, magnitude_masks(model, share))
        return model

    return make


def _keep_zeros(model: Module, trained: Module, tools: Tools) -> Module:
    masks = {name: p.data != 0 for name, p in model.named_parameters().items() if p.data.ndim > 1}
    return tools.fit(model, after_step=lambda model, step: apply_masks(model, masks))


def _gradually(final: float) -> Callable[[Module, Module, Tools], Module]:
    def tune(model: Module, trained: Module, tools: Tools) -> Module:
        every = max(1, tools.steps // 60)
        pruning = GradualPruning(
            final, steps=max(1, tools.steps * 2 // 3 // every) * every, every=every
        )
        return tools.fit(copy.deepcopy(trained), 0.5, after_step=pruning.after_step)

    return tune


def _tune(model: Module, trained: Module, tools: Tools) -> Module:
    return tools.fit(model, 0.5)


def _taught(model: Module, trained: Module, tools: Tools) -> Module:
    """Fine-tune with the original as teacher, which helps a model that has lost much quality."""
    return tools.fit(model, 1.0, loss=Distillation(trained))


RECIPES = [
    Recipe("half of the weights zero", _masked(0.5), _keep_zeros),
    Recipe("nine tenths zero, gradually", _masked(0.9), _gradually(0.9)),
    Recipe(
        "half of channels, units, heads",
        lambda trained, tools: shrink(trained, keep_largest(trained, 0.5)),
        _taught,
    ),
    Recipe("low rank, 90 % of energy", lambda trained, tools: factor(trained, energy=0.9), _tune),
    Recipe(
        "int8 per tensor",
        lambda trained, tools: quantize_int8(trained, tools.calibration, "range", False),
    ),
    Recipe(
        "int8 per channel",
        lambda trained, tools: quantize_int8(trained, tools.calibration, "squared error"),
    ),
    Recipe(
        "int8 per channel, trained",
        lambda trained, tools: prepare(trained, tools.calibration),
        lambda model, trained, tools: convert(tools.fit(model, 0.1)),
    ),
    Recipe("int8 weights in groups", lambda trained, tools: quantize_weights(trained, 8)),
    Recipe("int4 weights in groups", lambda trained, tools: quantize_weights(trained, 4)),
    Recipe(
        "half, then int8",
        lambda trained, tools: shrink(trained, keep_largest(trained, 0.5)),
        lambda model, trained, tools: quantize_int8(
            _taught(model, trained, tools), tools.calibration
        ),
    ),
    Recipe("small, distilled", lambda trained, tools: tools.task.small().init(tools.seed), _taught),
]


def _row(name: str, before: float | None, after: float) -> dict[str, Any]:
    """The quality ``before`` and ``after`` fine-tuning; before is None if there is no tuning."""
    return {"name": name, "before": before, "after": after}


def _recipes(names: str) -> list[Recipe]:
    """The recipes whose name contains one of the ``names``, separated by commas; "all" for all.

    Raises ValueError for a name that matches none.
    """
    wanted = [name.strip() for name in names.split(",")]
    for one in wanted:
        if one != "all" and not any(one and one in recipe.name for recipe in RECIPES):
            listed = "; ".join(recipe.name for recipe in RECIPES)
            raise ValueError(f"no recipe has {one!r} in its name: choose among all; {listed}")
    return [r for r in RECIPES if any(one == "all" or one in r.name for one in wanted)]


def compress(
    task: str = "cnn",
    names: str = "all",
    train_steps: int = 1400,
    steps: int = 400,
    trained: dict[str, np.ndarray] | None = None,
    seed: int = 0,
    said: Report | None = None,
) -> tuple[dict[str, Any], dict[str, Module]]:
    """Run the comparison; returns the report (the content of compress.json) and models by name.

    ``names``: parts of recipes' names, separated by commas, or "all". ``trained``: the parameters
    of a trained model; None: train one for ``train_steps``. ``steps``: of fine-tuning, for each
    recipe. ``said``: called after each step, with the model's name. Raises ValueError for unknown
    names.
    """
    if task not in COMPRESS_TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(COMPRESS_TASKS)}")
    if steps < 1 or train_steps < 1:
        raise ValueError(f"compress needs at least one step, not {train_steps} and {steps}")
    recipes, chosen = _recipes(names), COMPRESS_TASKS[task]
    tools = Tools(chosen, steps, seed, said)
    original = chosen.model().init(seed)
    if trained is None:
        tools.name = "the original"
        fit(original, tools.batches, train_steps, chosen.lr, progress=tools.progress())
    else:
        original.load(trained)
    original.eval()
    models: dict[str, Module] = {"the original": original}
    rows: list[dict[str, Any]] = [_row("the original", None, chosen.judge(original))]
    for recipe in recipes:
        tools.name = recipe.name
        model = recipe.make(original, tools).eval()
        before = None
        if recipe.tune is not None:
            before = chosen.judge(model)
            model = recipe.tune(model, original, tools).eval()
        models[recipe.name] = model
        rows.append(_row(recipe.name, before, chosen.judge(model)))
    inputs = chosen.data()[1].batch(np.arange(chosen.timed)).inputs
    seconds = seconds_a_sample(list(models.values()), inputs)
    for row, model, each in zip(rows, models.values(), seconds, strict=True):
        row |= asdict(sizes(model, inputs.shape[1:])) | {
            "seconds": each,
            "lost": chosen.lost(rows[0]["after"], row["after"]),
        }
    report = {
        "task": task,
        "dataset": chosen.data()[0].name,
        "quality": chosen.quality,
        "steps": steps,
        "train_steps": None if trained is not None else train_steps,
        "seed": seed,
        "rows": rows,
    }
    return report, models
