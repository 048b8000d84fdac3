"""A column-parallel product whose backward overlaps communication with computation.

    backward, plain        dX = dY Wᵀ   ──all-reduce dX──   dW = Xᵀ dY
    backward, overlapped   dX = dY Wᵀ   dW = Xᵀ dY
                                        ──all-reduce dX──                on the rank's stream

dX is a sum over ranks, because every rank has only some columns of W. dW does not need this sum. So
the all-reduce starts when the rank's summand of dX is computed, and is waited for only when the
layer before needs it. Under sequence parallelism it is a reduce-scatter.

Then each rank has a part of X, and gathers X for the product. For the backward there is a choice,
with b samples of s tokens and h features on t ranks:

    keep=True    keep the gathered X: bsh elements of memory
    keep=False   keep only the rank's part, bsh/t, and gather X again for dW, while dX is computed:
                 bsh(t - 1)/t more elements are sent for each product

Korthikanti et al., arXiv 2205.05198, section 4.2.2, use keep=False.
"""

from __future__ import annotations

import math
from typing import Any

from minidist.comm.comm import Comm, Future
from minidist.engine.array import Array, work
from minidist.engine.mode import current_mode
from minidist.engine.products import product
from minidist.engine.tensor import Into, Tensor
from minidist.ops import collectives as messages
from minidist.ops.matmul import column_sums, linear


def overlapped(x: Tensor, weight: Tensor, bias: Tensor | None, comm: Comm) -> Tensor:
    """``linear(copy_to(x, comm), weight, bias)``, whose all-reduce overlaps with dW.

    Shapes: x (..., i), the same on every rank, weight (i, o/t), bias (o/t,) → (..., o/t).
    """
    sums: list[Future] = []
    entered = Tensor.of(x.data, (x,), lambda grad: (sums.pop().wait(),))
    y = linear(entered, weight, bias)
    if entered.node is not None:
        start_with(y, lambda grad: sums.append(comm.spawn(messages.total, grad)))
    return y


def gathered(
    x: Tensor, weight: Tensor, bias: Tensor | None, comm: Comm, axis: int, overlap: bool
) -> Tensor:
    """``linear(all_gather(x, comm, axis), weight, bias)``, which keeps the gathered x.

    Shapes: x (b, s/t, i), this rank's part of axis 1, weight (i, o/t), bias (o/t,) → (b, s, o/t).
    """
    if not overlap:
        return linear(messages.all_gather(x, comm, axis), weight, bias)
    sums: list[Future] = []
    lengths = [x.shape[axis]] * comm.size
    whole = messages.side_by_side(comm, x.data, axis, lengths)
    entered = Tensor.of(whole, (x,), lambda grad: (sums.pop().wait(),))
    y = linear(entered, weight, bias)
    if entered.node is not None:
        start_with(
            y, lambda grad: sums.append(comm.spawn(messages.sum_of_part, grad, axis, lengths))
        )
    return y


def start_with(y: Tensor, start: Any) -> None:
    """Call ``start(dX)`` in the backward of the product, after dX and before dW is computed."""
    assert y.node is not None
    inner = y.node.backward
    assert inner is not None

    def backward(grad: Array) -> Any:
        grad_x, *of_weights = inner(grad)
        start(grad_x)
        return (grad_x, *of_weights)  # the tape computes dW before the backward of x

    y.node.backward = backward


def gathered_again(x: Tensor, weight: Tensor, bias: Tensor | None, comm: Comm, axis: int) -> Tensor:
    """As ``gathered``, but keeps only this rank's part of x, and gathers x again for dW."""
    lengths = [x.shape[axis]] * comm.size
    mine, matrix, xp = x.data, weight.data, x.xp
    inputs, outputs = weight.shape
    whole = messages.side_by_side(comm, mine, axis, lengths)  # (b, s, i)
    shape, count = whole.shape, math.prod(whole.shape[:-1])
    y = xp.empty((count, outputs), matrix.dtype)
    product(xp, whole.reshape(count, inputs), matrix, y)  # (n, i) @ (i, o) -> (n, o)
    if bias is not None:
        y += bias.data  # in place is safe: nothing else refers to this array yet
    flops = 2 * count * inputs * outputs
    work.flops += flops
    sums: list[Future] = []
    entered = Tensor.of(whole, (x,), lambda grad: (sums.pop().wait(),))
    wants_input_grad, biased = entered.node is not None, bias is not None
    del whole

    def backward(grad: Array) -> Any:
        grad = grad.reshape(count, outputs)  # (n, o)
        gathering: list[Future] = []
        if current_mode().deferred is None:  # dW is next, not deferred: gather during dX
            gathering.append(comm.spawn(messages.side_by_side, mine, axis, lengths))
        grad_x = None
        if wants_input_grad:
            work.flops += flops
            grad_x = xp.empty((count, inputs), grad.dtype)
            product(xp, grad, matrix.T, grad_x)  # (n, o) @ (o, i) -> (n, i)
            grad_x = grad_x.reshape(shape)
            sums.append(comm.spawn(messages.sum_of_part, grad_x, axis, lengths))

        def weight_grad(out: Array | None) -> Array:
            if not gathering:
                again = messages.side_by_side(comm, mine, axis, lengths)
            else:
                again = gathering.pop().wait()
            work.flops += flops
            out = xp.empty((inputs, outputs), grad.dtype) if out is None else out
            product(xp, again.reshape(count, inputs).T, grad, out)  # (i, n) @ (n, o) -> (i, o)
            return out

        if not biased:
            return grad_x, Into(weight_grad)
        return grad_x, Into(weight_grad), Into(lambda out: column_sums(grad, out))

    parents = (entered, weight) if bias is None else (entered, weight, bias)
    return Tensor.of(y.reshape(*shape[:-1], outputs), parents, backward)
