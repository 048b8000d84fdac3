"""The parts of a training step, each alone: the model's blocks, the loss, the optimizer.

``calibration.py`` times them before any step is measured. They have the sizes that occur in the
step, but no method, no other block and no other rank has anything to do with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minidist import nn
from minidist.data import Dataset
from minidist.engine import array as arrays
from minidist.engine.tensor import Tensor
from minidist.models import cnn, gpt, mlp
from minidist.optim import Adam


@dataclass(frozen=True)
class Job:
    """A model, its data, and the global batch that a step takes."""

    model: Callable[[], nn.Sequential]
    dataset: Dataset
    batch: int


@dataclass(frozen=True)
class Part:
    """``make(device)`` gives a function that computes it; a step does that ``times`` times."""

    make: Callable[[str], Callable[[], object]]
    times: int


def jobs(tiny: bool = False) -> dict[str, Job]:
    """By name. ``tiny`` is for tests."""
    random = np.random.default_rng(0)
    pixels = random.standard_normal((256, 784), np.float32)
    images, labels = pixels.reshape(-1, 28, 28), random.integers(0, 10, 256)
    tokens = random.integers(0, 64, (64, 65))
    flat, square = Dataset("pixels", pixels, labels, 10), Dataset("images", images, labels, 10)
    text = Dataset("text", tokens[:, :-1], tokens[:, 1:], 64)
    if tiny:
        small = random.integers(0, 8, (16, 9))
        return {
            "MLP": Job(lambda: mlp((784, 16, 10)), flat, 8),
            "CNN": Job(lambda: cnn(2, hidden=8), square, 8),
            "GPT": Job(
                lambda: gpt(8, 8, 8, 2, 2), Dataset("text", small[:, :-1], small[:, 1:], 8), 8
            ),
        }
    return {
        "MLP": Job(lambda: mlp((784, 512, 512, 512, 10)), flat, 128),
        "CNN": Job(lambda: cnn(8), square, 64),
        "GPT": Job(lambda: gpt(64, 64, 128, 4, 4), text, 8),
    }


def parts(job: Job, rows: int, count: int) -> list[Part]:
    """The parts of a step on ``rows`` samples, whose optimizer steps ``count`` parameters.

    Blocks that are alike are one part.
    """
    found: dict[Any, Part] = {}
    x, grad_of_input = job.dataset.inputs[:rows], False
    blocks = list(job.model().blocks)
    for name in blocks:
        block = job.model().blocks[name].init(0)
        with_parameters = bool(block.named_parameters())
        if with_parameters or grad_of_input:
            key = repr(block), x.shape
            made = partial(_block, job.model, name, x, grad_of_input)
            found[key] = Part(made, found[key].times + 1 if key in found else 1)
        x, grad_of_input = block(Tensor(x)).data, grad_of_input or with_parameters
    found["loss"] = Part(partial(_loss, x, job.dataset.targets[:rows]), 1)
    found["optimizer"] = Part(partial(_optimizer, count), 1)
    return list(found.values())


def _block(
    model: Callable[[], nn.Sequential], name: str, x: Any, grad_of_input: bool, device: str
) -> Callable[[], object]:
    """Forward and backward of a block."""
    block, xp = model().blocks[name].init(0, device=device), arrays.module(device)
    x = arrays.to_device(x, device)
    grad = xp.ones(block(Tensor(x)).shape, np.float32)

    trained = bool(block.trained())

    def run() -> None:
        if trained:
            block.zero_grad()
        block(Tensor(x, requires_grad=grad_of_input)).backward(grad)

    return run


def _loss(output: Any, targets: Any, device: str) -> Callable[[], object]:
    loss = nn.CrossEntropy()
    output, targets = arrays.to_device(output, device), arrays.to_device(targets, device)
    return lambda: loss(Tensor(output, requires_grad=True), targets).backward()


def _optimizer(count: int, device: str) -> Callable[[], object]:
    optimizer, xp = Adam(), arrays.module(device)
    data, grad = xp.zeros(count, np.float32), xp.zeros(count, np.float32)
    return lambda: optimizer.step(data, grad)
