"""Compute as in evaluation: no tape, no dropout, and running averages stand still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minidist.engine.tensor import no_grad
from minidist.nn.module import Module


@contextmanager
def as_in_evaluation(model: Module | None) -> Iterator[None]:
    """Without a tape, and each layer of ``model`` as in evaluation; then as they were."""
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
