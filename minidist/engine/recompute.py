"""Activation checkpointing: save a block's input instead of everything that it computes.

    y = checkpoint(block, x)      the same y and the same gradients as block(x)

The forward runs without a tape, so nothing inside the block is saved. The backward runs the block
again, with a tape, and then the backward of that. A model of n blocks then saves n inputs and the
activations of *one* block at a time. The price is a second forward: about a third more time.
Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.

The second forward must compute what the first did. Dropout's masks are the same, since they are
keyed by (seed, step, name). Only the first forward updates batch norm's running averages. If
parameters were written in between (by an optimizer step), an error is raised: see versions.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from minidist.engine.array import Array
from minidist.engine.mode import current_mode, keep_buffers, watch
from minidist.engine.node import Backward, Gradients, Node
from minidist.engine.seeds import current_draws, draws
from minidist.engine.tape import backward_within
from minidist.engine.tensor import Tensor, as_tensor, enable_grad, no_grad
from minidist.engine.versions import Version, version_of


def checkpoint(function: Callable[..., Tensor], *inputs: Any, random: bool = True) -> Tensor:
    """``function(*inputs)``, computed again in the backward instead of saved.

    The function may use parameters: they get the same gradients as without ``checkpoint``, and are
    ready (``on_ready``) after their last use in the whole backward. Under ``no_grad`` nothing is
    saved anyway, and this is ``function(*inputs)``. Raises ValueError if the function uses a tensor
    that was computed outside and is not an input: its backward would run twice. ``random=False``
    says that the function draws no random numbers, so that the key of the draws is not saved.
    """
    tensors = [as_tensor(value) for value in inputs]
    if not current_mode().recording:
        return function(*tensors)
    used = Used([tensor.node for tensor in tensors])
    with no_grad(), watch(used):
        y = function(*tensors)
    keyed = current_draws() if random else None
    saved = [(tensor.data, tensor.requires_grad) for tensor in tensors]
    leaves = list(used.leaves)

    def backward(grad: Array) -> list[Any]:
        again = [Tensor(data, requires_grad=requires_grad) for data, requires_grad in saved]
        same_draws = nullcontext() if keyed is None else draws(*keyed)
        with enable_grad(), same_draws, keep_buffers():
            result = function(*again)
        parts = {} if result.node is None else backward_within(result.node, grad)
        if unknown := parts.keys() - {*leaves, *(tensor.node for tensor in again)}:
            raise RuntimeError(
                f"checkpoint: the function used {next(iter(unknown)).name} the second time only: "
                "it must compute the same each time"
            )
        grads: list[Any] = []
        for tensor in again:
            part = total_of(parts.get(tensor.node, [])) if tensor.node is not None else None
            part = part() if callable(part) else part
            grads.append(tensor.grad if part is None else part)
        return [*grads, *(total_of(parts.get(leaf, [])) for leaf in leaves)]

    # Each parameter is a parent, so that the tape counts this use of it.
    parents = [*tensors, *(used.leaves[leaf] for leaf in leaves)]
    out = Tensor.of(y.data, tuple(parents), backward)
    if out.node is not None:
        out.node.needs = tuple(used.versions)
    return out


def total_of(parts: list[Any]) -> Any:
    """The sum of gradients, each an array or a callable that returns one; None if empty."""
    if len(parts) < 2:
        return parts[0] if parts else None

    def total() -> Array:
        first, *rest = (part() if callable(part) else part for part in parts)
        return sum(rest, first)

    return total


class Used:
    """A watcher that records the leaves, such as parameters, that a forward uses, and versions."""

    def __init__(self, inputs: list[Node | None]) -> None:
        self.inputs = inputs
        self.leaves: dict[Node, Tensor] = {}
        self.versions: set[Version] = set()

    def after_forward(self, data: Array, parents: tuple[Tensor, ...], backward: Backward) -> None:
        for parent in parents:
            version, node = version_of(parent.data), parent.node
            if version is not None:
                self.versions.add(version)
            if node is None or any(node is known for known in self.inputs):
                continue
            if node.leaf is None:
                raise ValueError(
                    f"checkpoint: the function uses the result of {node.name}, of shape "
                    f"{node.shape}, which was computed outside: pass it as an input"
                )
            self.leaves[node] = parent

    def after_backward(self, node: Node, grad: Array, parts: Gradients) -> Gradients:
        return parts
