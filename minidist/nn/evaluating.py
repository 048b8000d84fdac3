"""Compute as in evaluation: no tape, no dropout, and running averages stand still."""

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
    """Without a tape, and each layer of ``model`` as in evaluation; then as they were."""
    modules = model.named_modules().values() if model is not None else ()
    changed = [module for module in modules if module.training]
    for module in changed:
        module.training = False
    try:
        with no_grad():
            yield
    finally:
        for module in changed:
            module.training = True


def sum_of_losses(loss: Loss, output: Tensor, targets: Array) -> float:
    """The losses of all targets together; of float16 in float32, where the sum has room."""
    return loss(ops.astype(output, accumulator(output.dtype)), targets, 1).item()
