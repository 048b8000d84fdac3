"""Compute as in evaluation: without a tape and dropout, and with unchanging running averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minidist import ops
from minidist.engine.array import Array
from minidist.engine.kernels import accumulator
from minidist.engine.tensor import Tensor, no_grad
from minidist.nn.loss import Loss
from minidist.nn.module import Module


@contextmanager
def as_in_evaluation(model: Module | None) -> Iterator[None]:
    """Inside, nothing is recorded, and the layers of ``model`` compute as in evaluation.

    Afterwards each layer is in training or in evaluation as before.
    """
    modules = list(model.named_modules().values()) if model is not None else []
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        with no_grad():
            yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was


def sum_of_losses(loss: Loss, output: Tensor, targets: Array) -> float:
    """The sum of the losses of all targets; for float16 in float32, since the sum may overflow."""
    return loss(ops.astype(output, accumulator(output.dtype)), targets, 1).item()
