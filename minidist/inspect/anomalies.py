"""Find the op that first produced a NaN or an infinity, in the forward or in the backward.

with detect_anomaly():
    loss(model(x), y).backward()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minidist.engine.array import Array, module_of
from minidist.engine.mode import watch
from minidist.engine.tape import Backward, Gradients, Node
from minidist.engine.tensor import Tensor


class AnomalyError(FloatingPointError):
    """An op produced a NaN or an infinity, or a gradient of the wrong shape."""


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Stop at the first op whose result, or whose gradient, is NaN or infinite, and name it.

    Every array is checked, so a step takes about twice as long: use it to find an error, not for
    training.
    """
    with watch(Checker()):
        yield


class Checker:
    """The tape calls these methods after the forward and after the backward of every op."""

    def after_forward(self, data: Array, parents: tuple[Tensor, ...], backward: Backward) -> None:
        if wrong := _describe(data):
            name = backward.__qualname__.partition(".")[0]
            inputs = ", ".join(
                f"{parent.data.shape} {parent.data.dtype}"
                + (f" with {already}" if (already := _describe(parent.data)) else "")
                for parent in parents
            )
            raise AnomalyError(
                f"forward of {name}: its result, of shape {data.shape}, has {wrong}. "
                f"Inputs: {inputs}"
            )

    def after_backward(self, node: Node, grad: Array, parts: Gradients) -> list[Any]:
        parts = [part() if callable(part) else part for part in parts]
        for position, (parent, part) in enumerate(zip(node.parents, parts, strict=True)):
            if parent is None or part is None:
                continue
            where = f"backward of {node.name}, whose result has shape {node.shape}: its gradient "
            if part.shape != parent.shape:
                raise AnomalyError(
                    f"{where}for input {position} has shape {part.shape}, the input {parent.shape}"
                )
            if wrong := _describe(part):
                raise AnomalyError(f"{where}for input {position} of {parent.shape} has {wrong}")
        return parts


def _describe(array: Array) -> str | None:
    """The NaN and infinite values of ``array``, in words; None if all are finite."""
    if array.dtype.kind != "f":
        return None
    xp = module_of(array)
    if bool(xp.isfinite(array).all()):
        return None
    nan, infinite = int(xp.isnan(array).sum()), int(xp.isinf(array).sum())
    return f"{nan} NaN and {infinite} infinite of {array.size} values"
