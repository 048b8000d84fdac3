"""Activation checkpointing: keep a block's input instead of everything inside it.

    y = checkpoint(block, x)      the same y and the same gradients as block(x)

The forward runs without a tape, so nothing inside is kept. The backward runs the block once more,
this time with a tape, and goes back through that. A model of n blocks then keeps n inputs and the
inside of *one* block at a time, for one more forward in time: about a third more.
Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.

The second forward must compute what the first did. Dropout's masks do: they are keyed by (seed,
step, name). Batch norm's running averages are updated by the first forward alone. Parameters that
have been written in between (by an optimizer step) are an error: see versions.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from minidist.engine.array import Array
from minidist.engine.mode import keep_buffers, watch
from minidist.engine.seeds import current_draws, draws
from minidist.engine.tape import Backward, Gradients, Node
from minidist.engine.tensor import Tensor, as_tensor, enable_grad, no_grad
from minidist.engine.versions import Version


def checkpoint(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``function(*inputs)``, computed again in the backward instead of remembered.

    The function may use parameters: these get their gradients as they would have. At least one
    input must require gradients for them to be found, since the backward starts from the inputs;
    ``Tensor(x, requires_grad=True)`` makes one that does.
    """
    tensors = [as_tensor(value) for value in inputs]
    if not any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            "checkpoint: no input requires gradients, so the backward would never come here: "
            "leave the first block out, or make its input Tensor(x, requires_grad=True)"
        )
    used = Used()
    with no_grad(), watch(used):
        y = function(*tensors)
    keyed = current_draws()
    held = [(tensor.data, tensor.requires_grad) for tensor in tensors]

    def backward(grad: Array) -> list[Array | None]:
        again = [Tensor(data, requires_grad=wanted) for data, wanted in held]
        same_draws = nullcontext() if keyed is None else draws(*keyed)
        with enable_grad(), same_draws, keep_buffers():
            result = function(*again)
        result.backward(grad)
        return [tensor.grad for tensor in again]

    out = Tensor.of(y.data, tuple(tensors), backward)
    if out.node is not None:
        out.node.saved = tuple(used.versions.items())
    return out


class Used:
    """A watcher that notes the versions of the parameters that a forward uses."""

    def __init__(self) -> None:
        self.versions: dict[Version, int] = {}

    def after_forward(self, data: Array, parents: tuple[Tensor, ...], backward: Backward) -> None:
        for parent in parents:
            if parent.version is not None:
                self.versions.setdefault(parent.version, parent.version.count)

    def after_backward(self, node: Node, grad: Array, parts: Gradients) -> Gradients:
        return parts
