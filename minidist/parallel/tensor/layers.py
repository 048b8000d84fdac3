"""Layers cut over ranks: linear by columns and by rows, attention by heads, dropout.

    x ──▶ columns ──▶ GELU ──▶ rows ──▶ y           Y = GELU(X A) B,  A = [A₁ A₂],  B = [B₁; B₂]
    rank 0   X A₁        each     (X A₁)' B₁ ╮
    rank 1   X A₂        alone    (X A₂)' B₂ ┴ Σ    one all-reduce in the forward, after the rows,
                                                    and one in the backward, before the columns

A layer cut by columns gives each rank some of the outputs; elementwise layers then need nothing
from other ranks. A layer cut by rows takes exactly these outputs as inputs, and the ranks' results
are summands of its output. Attention is similar: heads are columns of Q, K and V, and rows of the
last product.

Under sequence parallelism the layers between (norms, dropout, residuals) work on a part of the
sequence. Before the columns there is an all-gather, and after the rows a reduce-scatter in place of
the all-reduce. The bytes are the same, and no activation is repeated on all ranks.

For b samples of s tokens, h features and t ranks, a rank sends 8bsh(t - 1)/t elements in the
forward and backward of a transformer block; 10bsh(t - 1)/t if gathered inputs are not kept.
Shoeybi et al., arXiv 1909.08053, section 3; Korthikanti et al., arXiv 2205.05198, section 4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from minidist import nn, ops
from minidist.engine.tensor import Tensor, as_tensor
from minidist.models.gpt import Block
from minidist.nn.module import LayerCost, Module, Shape, in_a_row
from minidist.ops import collectives as messages
from minidist.parallel.tensor.axis import Axis, Sum, Traffic
from minidist.parallel.tensor.column import gathered, gathered_again, overlapped

SEQUENCE = 1  # the axis of (batch, sequence, features) that sequence parallelism cuts


def columns(x: Any, weight: Tensor, bias: Tensor | None, axis: Axis) -> Tensor:
    """This rank's columns of x @ weight + bias; x is whole, or cut along the sequence."""
    x = as_tensor(x)
    if axis.size == 1:
        return ops.linear(x, weight, bias)
    if axis.sequence and axis.keep:
        return gathered(x, weight, bias, axis.group, SEQUENCE, axis.overlap)
    if axis.sequence:
        return gathered_again(x, weight, bias, axis.group, SEQUENCE)
    if axis.overlap:
        return overlapped(x, weight, bias, axis.group)
    return ops.linear(messages.copy_to(x, axis.group), weight, bias)


def columns_cost(
    shape: Shape, outputs: int, axis: Axis, itemsize: int, trained: bool = True, later: bool = True
) -> LayerCost:
    """The cost of ``columns`` for a rank with this number of ``outputs``.

    ``trained``: whether the weight is trained; ``later``: whether it or the bias is.
    """
    whole = axis.whole(shape)
    count = int(np.prod(whole[:-1]))
    flops = 2 * count * shape[-1] * outputs
    keeps = axis.sequence and axis.keep and axis.size > 1
    extra = int(np.prod(whole)) * itemsize if keeps else 0  # the gathered input
    return LayerCost(
        (*whole[:-1], outputs),
        flops,
        flops,
        weight_flops=flops * trained,
        saves_input=trained and not keeps,
        saved_bytes=extra,
        defers_input=trained and not keeps,
        deferred_bytes=extra + count * outputs * itemsize * later,  # the gradient of the output
    )


def columns_traffic(shape: Shape, axis: Axis, itemsize: int, input_grad: bool) -> Traffic:
    """The collectives of ``columns`` on an input that has ``shape`` on this rank."""
    if axis.size == 1:
        return Traffic()
    n = int(np.prod(axis.whole(shape)))

    def ring(kind: str, hidden: bool) -> Sum:
        return Sum(kind, n, itemsize, axis.size, hidden)

    if not axis.sequence:
        return Traffic([], [ring("all_reduce", axis.overlap)] if input_grad else [])
    again = [] if axis.keep else [ring("all_gather", True)]
    summed = ring("reduce_scatter", axis.overlap or not axis.keep)
    return Traffic([ring("all_gather", False)], again + ([summed] if input_grad else []))


class ColumnParallel(nn.Linear):
    """This rank's columns of a linear layer: (..., inputs) → (..., own outputs)."""

    def __init__(self, linear: nn.Linear, axis: Axis) -> None:
        self.weight, self.bias, self.axis = linear.weight, linear.bias, axis

    def forward(self, x: Any) -> Tensor:
        return columns(x, self.weight, self.bias, self.axis)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        trained = self.weight.requires_grad
        later = trained or (self.bias is not None and self.bias.requires_grad)
        return columns_cost(shape, self.weight.declared[1], self.axis, itemsize, trained, later)

    def traffic(self, shape: Shape, itemsize: int, input_grad: bool = True) -> Traffic:
        return columns_traffic(shape, self.axis, itemsize, input_grad)

    def __repr__(self) -> str:
        return f"ColumnParallel{self.weight.declared}"


class RowParallel(nn.Linear):
    """This rank's rows of a linear layer, summed over ranks: (..., own inputs) → (..., outputs).

    The bias is added after the sum: before it, it would be added once for each rank.
    """

    def __init__(self, linear: nn.Linear, axis: Axis) -> None:
        self.weight, self.bias, self.axis = linear.weight, linear.bias, axis

    def forward(self, x: Any) -> Tensor:
        axis = self.axis
        y = ops.linear(x, self.weight)  # this rank's summand
        if axis.size > 1 and axis.sequence:
            y = messages.reduce_scatter(y, axis.group, SEQUENCE)
        elif axis.size > 1:
            y = messages.reduce_from(y, axis.group)
        return y if self.bias is None else ops.add(y, self.bias)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        inputs, outputs = self.weight.declared
        count = int(np.prod(shape[:-1]))
        flops = 2 * count * inputs * outputs
        return LayerCost(
            self.axis.own((*shape[:-1], outputs)),
            flops,
            flops,
            weight_flops=flops * self.weight.requires_grad,
            saves_input=self.weight.requires_grad,
            defers_input=self.weight.requires_grad,
            deferred_bytes=count * outputs * itemsize * self.weight.requires_grad,
        )

    def traffic(self, shape: Shape, itemsize: int, input_grad: bool = True) -> Traffic:
        axis = self.axis
        if axis.size == 1:
            return Traffic()
        n = int(np.prod(shape[:-1])) * self.weight.declared[1]
        if not axis.sequence:
            return Traffic([Sum("all_reduce", n, itemsize, axis.size)])
        return Traffic(
            [Sum("reduce_scatter", n, itemsize, axis.size)],
            [Sum("all_gather", n, itemsize, axis.size)],
        )

    def __repr__(self) -> str:
        return f"RowParallel{self.weight.declared}"


class HeadParallel(nn.CausalSelfAttention):
    """This rank's heads of attention. Heads are independent, so only the two products send.

    With fewer heads of keys than ranks, several ranks need the same head of keys and values. Each
    computes some of its features, and they all-gather them; so no weight is on two ranks.
    """

    def __init__(self, attention: nn.CausalSelfAttention, axis: Axis, d: int) -> None:
        vars(self).update(vars(attention))
        self.axis, self.d = axis, d
        self.sharers = max(1, axis.size // attention.groups)  # ranks that need one head of keys
        self.qkv = ColumnParallel(attention.qkv, axis)  # of which the weight is cut already
        self.out = RowParallel(attention.out, axis)
        self.heads = self.out.weight.declared[0] // self.d
        keys = self.qkv.weight.declared[1] - self.heads * self.d
        self.groups = max(1, keys // (2 * self.d))

    def forward(self, x: Tensor, cache: Any = None, mask: Any = None) -> Tensor:
        if mask is not None:
            raise ValueError(
                "tensor parallelism takes no mask: load method.parameters() into a serial model"
            )
        if cache is not None and self.axis.sequence:
            raise ValueError(
                "a cache has whole sequences, and sequence parallelism cuts them: cut the model "
                "without sequence=True to sample from it"
            )
        return super().forward(x, cache)

    def project(self, x: Tensor) -> Tensor:
        return self.with_all_keys(self.qkv(x))

    def with_all_keys(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values side by side, with all features of the shared keys."""
        if self.sharers == 1:
            return qkv
        q = self.heads * self.d
        queries, keys = ops.split(qkv, (q, qkv.shape[-1] - q), axis=-1)
        comm = self.axis.sharers(self.sharers)
        b, s, f = keys.shape  # own features of k, then of v
        together = messages.all_gather(keys, comm, -1)  # (b, s, k₀ v₀ k₁ v₁ ...)
        together = together.reshape(b, s, self.sharers, 2, f // 2).transpose(0, 1, 3, 2, 4)
        return ops.concatenate([queries, together.reshape(b, s, 2 * self.d)], axis=-1)

    def cost(self, shape: Shape, itemsize: int = 4) -> LayerCost:
        first = self.qkv.cost(shape, itemsize)
        batch, length, _ = first.shape
        width = self.heads * self.d
        core = self.core_cost((batch, length, width + 2 * self.groups * self.d), itemsize)
        if self.sharers > 1:  # the input with all keys is a new array
            whole = batch * length * (width + 2 * self.d) * itemsize
            kept = whole if core.saves_input else 0  # else a rotated copy is kept, and counted
            core = replace(
                core,
                saves_input=False,
                saved_bytes=core.saved_bytes + kept,
                splitting_bytes=core.splitting_bytes and core.splitting_bytes + kept,
                backward_bytes=core.backward_bytes and core.backward_bytes + kept,
            )
        return in_a_row((first, core, self.out.cost(core.shape, itemsize)), shape, itemsize)

    def traffic(self, shape: Shape, itemsize: int, input_grad: bool = True) -> Traffic:
        first = self.qkv.cost(shape, itemsize).shape
        found = traffic_of(self.qkv, shape, itemsize, input_grad)
        if self.sharers > 1:
            n = first[0] * first[1] * 2 * self.d
            found += Traffic(
                [Sum("all_gather", n, itemsize, self.sharers)],
                [Sum("reduce_scatter", n, itemsize, self.sharers)],
            )
        return found + traffic_of(self.out, (*first[:2], self.heads * self.d), itemsize)


class CutDropout(nn.Dropout):
    """Dropout of this rank's part of each sample, with that part of serial training's mask.

    ``columns``: (start, stop, whole length) of the last axis; None: the sequence is cut.
    """

    def __init__(
        self, dropout: nn.Dropout, axis: Axis, columns: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__(dropout.rate)
        self.axis, self.columns = axis, columns

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.columns is not None:
            start, stop, length = self.columns
            part = (*[slice(None)] * (x.ndim - 2), slice(start, stop))
            return ops.dropout(x, self.rate, self.path, part, (*x.shape[1:-1], length))
        length = x.shape[SEQUENCE] * self.axis.size
        part = self.axis.part_of_sequence(length), *[slice(None)] * (x.ndim - 2)
        return ops.dropout(x, self.rate, self.path, part, (length, *x.shape[2:]))


def traffic_of(module: Module, shape: Shape, itemsize: int, input_grad: bool = True) -> Traffic:
    """The collectives of a module on an input that has ``shape`` on this rank; none if uncut."""
    if hasattr(module, "traffic"):
        return module.traffic(shape, itemsize, input_grad)
    found = Traffic()
    for layer in layers_in_a_row(module):
        found += traffic_of(layer, shape, itemsize, input_grad)
        input_grad = input_grad or bool(layer.trained())
        shape = layer.cost(shape, itemsize).shape
    return found


def layers_in_a_row(module: Module) -> list[Module]:
    """The layers that a container applies one after the other."""
    if isinstance(module, nn.Residual):
        return list(module.inner.blocks.values())
    if isinstance(module, nn.Sequential):
        return list(module.blocks.values())
    if isinstance(module, Block):
        return [module.norm1, module.attention, module.norm2, module.up, module.gelu, module.down]
    return []
