"""Activation checkpointing: keep a block's input instead of everything inside it.

    y = checkpoint(block, x)      the same y and the same gradients as block(x)

The forward runs without a tape, so nothing inside is kept. The backward runs the block once more,
this time with a tape, and goes back through that. A model of n blocks then keeps n inputs and the
inside of *one* block at a time, for one more forward in time: about a third more.
Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.

The second forward must compute what the first did: dropout's masks are keyed by (seed, step,
name), so they do. Batch norm in training would update its running averages twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from minidist.engine.array import Array
from minidist.engine.seeds import current_draws, draws
from minidist.engine.tensor import Tensor, as_tensor, enable_grad, no_grad


def checkpoint(function: Callable[..., Tensor], *inputs: Any, random: bool = True) -> Tensor:
    """``function(*inputs)``, computed again in the backward instead of remembered.

    The function may use parameters: these get their gradients as they would have. At least one
    input must require gradients for them to be found, since the backward starts from the inputs;
    ``Tensor(x, requires_grad=True)`` makes one that does. ``random=False`` says that the function
    draws nothing, so that the key of the draws need not be kept.
    """
    tensors = [as_tensor(value) for value in inputs]
    if not any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            "checkpoint: no input requires gradients, so the backward would never come here: "
            "leave the first block out, or make its input Tensor(x, requires_grad=True)"
        )
    with no_grad():
        y = function(*tensors)
    keyed = current_draws() if random else None
    held = [(tensor.data, tensor.requires_grad) for tensor in tensors]

    def backward(grad: Array) -> list[Array | None]:
        again = [Tensor(data, requires_grad=wanted) for data, wanted in held]
        same_draws = nullcontext() if keyed is None else draws(*keyed)
        with enable_grad(), same_draws:
            result = function(*again)
        result.backward(grad)
        return [tensor.grad for tensor in again]

    return Tensor.of(y.data, tuple(tensors), backward)
