"""Random things to train: a model, data for it, and a loss. All small: what matters is variety.

A task is drawn with the same draws at every size, and then cut to size, so that a smaller case is
the same one with less in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from minidist import ops
from minidist.data import Dataset
from minidist.engine.recompute import checkpoint
from minidist.models import gpt
from minidist.nn import (
    GELU,
    AddChannel,
    BinaryCrossEntropy,
    CausalSelfAttention,
    Conv2d,
    CrossEntropy,
    Dropout,
    Flatten,
    Huber,
    LayerCost,
    LayerNorm,
    Linear,
    Loss,
    MaxPool2d,
    MeanSquaredError,
    Module,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    SyncBatchNorm,
    Tanh,
)

Random = np.random.Generator
Build = Callable[..., Module]  # (comm=...): the communicator is for synchronised batch norm alone
SAMPLES = 30


@dataclass(frozen=True)
class Task:
    """``build(comm=comm)`` declares the model; ``kind`` and ``losses`` say what it is."""

    kind: str
    losses: str
    build: Build
    dataset: Dataset = field(repr=False)
    loss: Callable[[], Loss] = field(repr=False)
    frozen: str = ""


class Twice(Module):
    """A user's own module: one layer used twice, another with a way around it."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        self.first, self.inner = Linear(inputs, width), Linear(width, width)
        self.last, self.drop = Linear(width, outputs), Dropout(0.2)

    def forward(self, x):
        x = self.drop(ops.tanh(self.first(x)))
        x = x + ops.relu(self.inner(x))
        return self.last(self.inner(x))

    def cost(self, shape, itemsize=4):
        outputs = self.last.bias.declared[0]
        return LayerCost((shape[0], outputs), *[1000 * shape[0]] * 3, saved_bytes=1)


class Around(Sequential):
    """Blocks with a forward of their own: a way around those in the middle."""

    def forward(self, x):
        first, *middle, last = self.blocks.values()
        x = y = first(x)
        for block in middle:
            y = block(y)
        return last(x + y)

    def cost(self, shape, itemsize=4):
        outputs = [*self.blocks.values()][-1].bias.declared[0]
        return LayerCost((shape[0], outputs), *[1000 * shape[0]] * 3, saved_bytes=1)


class Recomputed(Module):
    """x + tanh(layer(x)), computed again in the backward, dropout and all."""

    def __init__(self, layer: Linear) -> None:
        self.layer, self.drop = layer, Dropout(0.2)

    def inside(self, x):
        return self.drop(ops.tanh(self.layer(x)))

    def forward(self, x):
        return x + checkpoint(self.inside, x)

    def cost(self, shape, itemsize=4):
        return LayerCost(shape, *[1000 * shape[0]] * 3, saves_input=True, saved_bytes=1)


def mlp(widths, inner, outputs, inputs, comm):
    """Linear layers with what ``inner`` says between them."""
    blocks, width = [], inputs
    for next_width, what in zip(widths, inner, strict=True):
        # before batch norm the gradient of a bias is 0, and LARS divides by its length
        blocks.append(Linear(width, next_width, bias=what != "sync"))
        width = next_width
        if what == "drop":
            blocks.append(Dropout(0.3))
        elif what == "norm" and width > 2:  # of two numbers a norm leaves the sign alone
            blocks.append(LayerNorm(width))
        elif what == "rms":
            blocks.append(RMSNorm(width))
        elif what == "residual":
            blocks.append(Residual(Linear(width, width), GELU()))
        elif what == "sync":
            blocks.append(SyncBatchNorm(width, comm))
        blocks.append((ReLU, Tanh, GELU)[width % 3]())
    return Sequential(*blocks, Linear(width, outputs), input_shape=(inputs,))


def shared(width, uses, how, outputs, inputs, comm):
    """One layer several times, by object or by assigned weights; between blocks, or inside."""
    first, blocks = Linear(width, width), []
    for number in range(uses):
        layer = first
        if how == "assigned" and number:
            layer = Linear(width, width)
            layer.weight = first.weight
        blocks += [Residual(layer) if how == "inside" else layer, Tanh()]
    return Sequential(Linear(inputs, width), *blocks, Linear(width, outputs), input_shape=(inputs,))


def recomputed(width, uses, same, outputs, inputs, comm):
    layer = Linear(width, width)
    blocks = [Recomputed(layer if same else Linear(width, width)) for _ in range(uses)]
    return Sequential(Linear(inputs, width), *blocks, Linear(width, outputs), input_shape=(inputs,))


def own(width, outputs, inputs, comm):
    if width % 2:
        blocks = Linear(inputs, width), Tanh(), Linear(width, width), Linear(width, outputs)
        return Around(*blocks, input_shape=(inputs,))
    return Twice(inputs, width, outputs)


def cnn(channels, hidden, outputs, inputs, comm):
    return Sequential(
        AddChannel(), Conv2d(1, channels, kernel=3, padding=1), Tanh(), MaxPool2d(2), Flatten(),
        Linear(channels * 4, hidden), ReLU(), Linear(hidden, outputs), input_shape=(4, 4),
    )  # fmt: skip


def small_gpt(layers, heads, groups, dropout, outputs, context, comm):
    model = gpt(outputs, context, 8, layers, heads, dropout)
    for block in [*model.blocks.values()][1:-1] if groups < heads else ():
        block.attention = CausalSelfAttention(8, heads, groups)
    return model


LOSSES = ("classes", "ignored", "smoothed", "weighted", "soft", "squares", "huber", "binary")


def draw_loss(
    random: Random, kind: str, shape: tuple[int, ...], classes: int
) -> tuple[np.ndarray, Callable[[], Loss]]:
    """Targets (*shape) of classes, or (*shape, classes) of numbers, and a loss for them."""
    targets = random.integers(0, classes, shape)
    ignored = random.random(shape) < 0.3
    weights = random.uniform(0.2, 3, classes).round(3)
    numbers = random.standard_normal((*shape, classes))
    smooth = round(float(random.uniform(0.05, 0.5)), 3)
    if kind in ("ignored", "all") or (kind == "smoothed" and smooth > 0.3):
        targets = np.where(ignored, -1, targets)
        return targets, partial(CrossEntropy, -1, smooth if kind == "smoothed" else 0.0)
    if kind == "smoothed":
        return targets, partial(CrossEntropy, None, smooth)
    if kind == "weighted":
        return np.where(ignored, -1, targets), partial(CrossEntropy, -1, weight=weights)
    if kind == "soft":
        return np.exp(numbers) / np.exp(numbers).sum(axis=-1, keepdims=True), CrossEntropy
    if kind == "squares":
        return numbers, MeanSquaredError
    if kind == "huber":
        return numbers, partial(Huber, 0.5)
    if kind == "binary":
        return (numbers > 0).astype(float), BinaryCrossEntropy
    return targets, CrossEntropy


def draw_task(
    random: Random, size: int, kinds: dict[str, float], blocks: int, cut: int = 1
) -> Task:
    """A task of a kind drawn with these weights.

    There are ``blocks`` blocks at least, where a model is cut into such, and enough classes and
    heads to cut them in ``cut``.
    """
    weights = np.array([*kinds.values()])
    kind = str(random.choice([*kinds], p=weights / weights.sum()))
    losses = str(random.choice(LOSSES))
    outputs, inputs = int(random.integers(2, 6)), int(random.integers(1, 8))
    widths = [int(w) for w in random.integers(1, 10, 12)]
    if random.random() < 0.3:  # the same layer again and again
        widths = widths[:1] * len(widths)
    inner = [str(w) for w in random.choice(["", "drop", "norm", "rms", "residual"], len(widths))]
    layers = max(blocks, min(int(random.integers(1, 5)), size))
    uses, how = int(random.integers(2, 4)), str(random.choice(["object", "assigned", "inside"]))
    context, heads = int(random.integers(2, 6)), int(random.choice([1, 2, 4]))
    if cut > 1:
        outputs, heads = max(outputs, cut), 4
        context = cut * max(1, context // cut)  # a sequence is cut into equal parts
        if random.random() < 0.8 or losses == "soft":  # others need the last layer whole
            losses = str(random.choice(["classes", "ignored", "smoothed", "weighted"]))
    rate = float(random.choice([0.0, 0.2]))
    seed, freezes, place = random.integers(1 << 30), random.random() < 0.2, random.random()
    values = np.random.default_rng(seed)
    width = max(3, widths[0])
    build: Build
    if kind == "gpt":
        tokens = values.integers(0, outputs, (SAMPLES, context))
        targets, loss = draw_loss(values, losses, (SAMPLES, context), outputs)
        groups = max(1, heads // int(values.choice([1, 2, 4])))
        build = partial(small_gpt, max(1, blocks - 2, layers % 3), heads, groups, rate, outputs,
                        context)  # fmt: skip
        dataset = Dataset("fuzz", tokens, targets)
    else:
        shape = (4, 4) if kind == "cnn" else (inputs,)
        features = values.standard_normal((SAMPLES, *shape))
        targets, loss = draw_loss(values, losses, (SAMPLES,), outputs)
        dataset = Dataset("fuzz", features, targets)
        last = {"outputs": outputs, "inputs": inputs}
        build = {
            "mlp": partial(mlp, widths[:layers], inner[:layers], **last),
            "sync": partial(mlp, [width], ["sync"], **last),
            "shared": partial(shared, width, max(uses, blocks // 2), how, **last),
            "recomputed": partial(recomputed, width, max(uses, blocks), how != "object", **last),
            "own": partial(own, width, **last),
            "cnn": partial(cnn, 1 + uses, width, **last),
        }[kind]
    frozen = ""
    if freezes and size > 2 and kind != "sync":
        names = [*build(comm=None).named_parameters()]
        frozen = names[int(place * len(names))]
    return Task(kind, losses, build, dataset, loss, frozen)
