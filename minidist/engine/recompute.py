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
from minidist.engine.mode import current_mode, keep_buffers, watch
from minidist.engine.node import Backward, Gradients, Node
from minidist.engine.seeds import current_draws, draws
from minidist.engine.tape import backward_within
from minidist.engine.tensor import Tensor, as_tensor, enable_grad, no_grad
from minidist.engine.versions import Version, version_of


def checkpoint(function: Callable[..., Tensor], *inputs: Any, random: bool = True) -> Tensor:
    """``function(*inputs)``, computed again in the backward instead of remembered.

    The function may use parameters: these get their gradients as they would have, and are ready
    (``on_ready``) after their last use in the whole backward. Under ``no_grad`` nothing is kept
    anyway, and this is ``function(*inputs)``. Raises ValueError if the function uses a tensor that
    was computed outside: its backward would run in here, and again outside. ``random=False`` says
    that the function draws nothing, so that the key of the draws need not be kept.
    """
    tensors = [as_tensor(value) for value in inputs]
    if not current_mode().recording:
        return function(*tensors)
    used = Used([tensor.node for tensor in tensors])
    with no_grad(), watch(used):
        y = function(*tensors)
    keyed = current_draws() if random else None
    held = [(tensor.data, tensor.requires_grad) for tensor in tensors]
    leaves = list(used.leaves)

    def backward(grad: Array) -> list[Any]:
        again = [Tensor(data, requires_grad=wanted) for data, wanted in held]
        same_draws = nullcontext() if keyed is None else draws(*keyed)
        with enable_grad(), same_draws, keep_buffers():
            result = function(*again)
        parts = {} if result.node is None else backward_within(result.node, grad)
        if unknown := parts.keys() - {*leaves, *(tensor.node for tensor in again)}:
            raise RuntimeError(
                f"checkpoint: the function used {next(iter(unknown)).name} the second time only"
            )
        found: list[Any] = []
        for tensor in again:
            part = together(parts.get(tensor.node, [])) if tensor.node is not None else None
            part = part() if callable(part) else part
            found.append(tensor.grad if part is None else part)
        return [*found, *(together(parts.get(leaf, [])) for leaf in leaves)]

    # A parent for each parameter, so that the tape counts this use of it with the others.
    parents = [*tensors, *(used.leaves[leaf] for leaf in leaves)]
    out = Tensor.of(y.data, tuple(parents), backward)
    if out.node is not None:
        out.node.needs = tuple(used.versions)
    return out


def together(parts: list[Any]) -> Any:
    """The sum of some gradients, each an array or a callable that returns one; None if none."""
    if len(parts) < 2:
        return parts[0] if parts else None

    def total() -> Array:
        first, *rest = (part() if callable(part) else part for part in parts)
        return sum(rest, first)

    return total


class Used:
    """A watcher that notes the leaves, such as parameters, that a forward uses; their versions."""

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
