"""Collectives as ops: what ranks send each other on the way to one loss, and its gradients back.

Several ranks compute parts of one loss. A value that goes from rank to rank in the forward has a
gradient that goes the other way in the backward: the backward of a collective is a collective too,
its *conjugate*.

    op                  forward                     backward                  its conjugate
    copy_to       (f)   nothing                     all-reduce                reduce_from
    reduce_from   (g)   all-reduce                  nothing                   copy_to
    gather              all-gather                  take the own part         scatter
    scatter             take the own part           all-gather                gather
    all_gather          all-gather                  reduce-scatter            reduce_scatter
    reduce_scatter      reduce-scatter              all-gather                all_gather
    all_to_all          block r goes to rank r      they go back              all_to_all
    send                send                        recv                      recv
    recv                recv                        send                      send

Which one is right depends on what the ranks hold. After ``reduce_from`` and ``gather`` all ranks
hold *one* value, and all compute the same with it: each has its whole gradient, and nothing is to
be sent. After ``all_gather`` each computes something else with the value: the gradients differ, and
have to be summed. ``copy_to`` marks the place where one value begins to be used differently.

Every rank of ``comm`` must call each op, and each backward, in the same order. With n elements on p
ranks, an all-reduce sends 2n(p - 1)/p from each rank, in 2(p - 1) messages; half of it is a
reduce-scatter or an all-gather. All are rings. f and g: Shoeybi et al., "Megatron-LM", arXiv
1909.08053, section 3; all_gather and reduce_scatter (its ḡ and g): Korthikanti et al., arXiv
2205.05198, section 4.2.2.

>>> import numpy as np
>>> from minidist import Tensor, launch
>>> def main(comm):
...     x = Tensor(np.ones(3), requires_grad=True)  # the same on every rank
...     (copy_to(x, comm) * (comm.rank + 1.0)).sum().backward()
...     return x.grad.tolist()
>>> launch(main, ranks=2)
[[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from minidist.collectives import pairwise, ring
from minidist.collectives.partition import chunk_lengths
from minidist.comm.comm import Comm
from minidist.engine.array import Array, module_of
from minidist.engine.tensor import Tensor, as_tensor
from minidist.ops.operands import ShapeError, floating_only

Lengths = Sequence[int]  # of each rank's part of an axis
PartOf = Callable[[Comm, Array, int, Lengths], Array]  # of whole arrays: own_part, sum_of_part


def copy_to(x: Any, comm: Comm) -> Tensor:
    """x, which every rank holds and uses in its own way: Megatron's f. Conjugate: reduce_from."""
    x = floating_only("copy_to", x)
    return Tensor.of(x.data, (x,), lambda grad: (total(comm, grad),))


def reduce_from(x: Any, comm: Comm) -> Tensor:
    """Σ over ranks of x, the same on every rank: Megatron's g. Conjugate: copy_to."""
    x = floating_only("reduce_from", x)
    return Tensor.of(total(comm, x.data), (x,), lambda grad: (grad,))


def gather(x: Any, comm: Comm, axis: int = -1, lengths: Lengths | None = None) -> Tensor:
    """All ranks' parts of ``axis`` side by side, for ranks that compute the same with it.

    ``lengths``: of every rank's part; equal ones if None. Conjugate: scatter.
    """
    return _joined("gather", x, comm, axis, lengths, own_part)


def scatter(x: Any, comm: Comm, axis: int = -1, lengths: Lengths | None = None) -> Tensor:
    """This rank's part of ``axis`` of what every rank holds. Conjugate: gather.

    ``lengths``: of every rank's part; as even as can be if None.
    """
    return _cut_up("scatter", x, comm, axis, lengths, own_part)


def all_gather(x: Any, comm: Comm, axis: int = -1, lengths: Lengths | None = None) -> Tensor:
    """All ranks' parts of ``axis`` side by side; each rank uses it in its own way.

    ``lengths``: of every rank's part; equal ones if None. Conjugate: reduce_scatter.
    """
    return _joined("all_gather", x, comm, axis, lengths, sum_of_part)


def reduce_scatter(x: Any, comm: Comm, axis: int = -1, lengths: Lengths | None = None) -> Tensor:
    """This rank's part of ``axis`` of Σ over ranks of x. Conjugate: all_gather.

    ``lengths``: of every rank's part; as even as can be if None.
    """
    return _cut_up("reduce_scatter", x, comm, axis, lengths, sum_of_part)


def all_to_all(x: Any, comm: Comm, split: int = 0, join: int = 0) -> Tensor:
    """Part r of axis ``split`` goes to rank r; what arrives lies side by side along ``join``.

    All ranks' x have one shape, and their number divides the axis. Conjugate: all_to_all.
    """
    x = floating_only("all_to_all", x)
    split, join = _axis("all_to_all", x, split), _axis("all_to_all", x, join)
    if x.shape[split] % comm.size:
        raise ShapeError(
            f"all_to_all: axis {split} of {x.shape} cannot be cut into {comm.size} equal parts"
        )

    def backward(grad: Array) -> Any:
        return (exchanged(comm, grad, join, split),)

    return Tensor.of(exchanged(comm, x.data, split, join), (x,), backward)


def send(x: Any, comm: Comm, to: int, tag: int = 0) -> Tensor:
    """Send x to rank ``to``; its backward receives the gradient. Conjugate: recv.

    Returns a scalar 0 that stands for x in this rank's loss: go backward from it, or add it to
    the loss, so that the backward comes here.
    """
    x = floating_only("send", x)
    xp, shape, dtype = x.xp, x.data.shape, x.dtype
    comm.send(xp.ascontiguousarray(x.data), to, tag)

    def backward(grad: Array) -> Any:
        arrived = xp.empty(shape, dtype)
        comm.recv(arrived, to, tag)
        return (arrived,)

    return Tensor.of(xp.zeros((), dtype), (x,), backward)


def recv(like: Array, comm: Comm, source: int, tag: int = 0) -> Tensor:
    """What rank ``source`` sends, of the shape and dtype of the array ``like``. Conjugate: send.

    The result requires gradients: its backward sends them to ``source``, which waits for them.
    """
    xp = module_of(like)
    arrived = xp.empty(like.shape, like.dtype)
    comm.recv(arrived, source, tag)

    def backward(grad: Array) -> Any:
        comm.send(xp.ascontiguousarray(grad), source, tag)
        return (None,)

    start = Tensor(xp.zeros((), like.dtype), requires_grad=True)  # so that the op is recorded
    return Tensor.of(arrived, (start,), backward)


# The same on arrays, without gradients


def total(comm: Comm, array: Array) -> Array:
    """Σ over ranks of ``array``, in new memory."""
    result = array.copy()
    ring.all_reduce(comm, result)
    return result


def side_by_side(comm: Comm, part: Array, axis: int, lengths: Lengths) -> Array:
    """All ranks' parts along ``axis``: an all-gather."""
    xp = module_of(part)
    moved = xp.moveaxis(part, axis, 0)  # a part is then contiguous: (own length, the rest)
    rest = moved.shape[1:]
    rows = _rows(lengths)
    whole = xp.empty((sum(lengths), *rest), part.dtype)
    whole[rows[comm.rank]] = moved
    ring.all_gather(comm, whole, _elements(rows, rest))
    return xp.ascontiguousarray(xp.moveaxis(whole, 0, axis))


def sum_of_part(comm: Comm, whole: Array, axis: int, lengths: Lengths) -> Array:
    """This rank's part along ``axis`` of the sum over ranks: a reduce-scatter."""
    xp = module_of(whole)
    moved = xp.moveaxis(whole, axis, 0).copy()
    rest = moved.shape[1:]
    own = ring.reduce_scatter(comm, moved, parts=_elements(_rows(lengths), rest))
    # Copied, so that the memory of the whole is free.
    return xp.moveaxis(own.reshape(lengths[comm.rank], *rest), 0, axis).copy()


def own_part(comm: Comm, whole: Array, axis: int, lengths: Lengths) -> Array:
    """This rank's part along ``axis``, copied."""
    index: list[slice] = [slice(None)] * whole.ndim
    index[axis] = _rows(lengths)[comm.rank]
    return whole[tuple(index)].copy()


def exchanged(comm: Comm, array: Array, split: int, join: int) -> Array:
    """Part r of axis ``split`` goes to rank r, and the parts that come are joined: all-to-all."""
    xp = module_of(array)
    out = [xp.ascontiguousarray(part) for part in xp.split(array, comm.size, axis=split)]
    arrived = [xp.empty(out[0].shape, array.dtype) for _ in out]
    pairwise.all_to_all(comm, out, arrived)
    return xp.concatenate(arrived, axis=join)


def _rows(lengths: Lengths) -> list[slice]:
    ends = [sum(lengths[: rank + 1]) for rank in range(len(lengths))]
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _elements(rows: Sequence[slice], rest: tuple[int, ...]) -> list[slice]:
    """The same parts, counted in elements."""
    width = math.prod(rest)
    return [slice(part.start * width, part.stop * width) for part in rows]


def _axis(name: str, x: Tensor, axis: int) -> int:
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"{name}: {x.shape} has no axis {axis}")
    return axis % x.ndim


def _joined(
    name: str, x: Any, comm: Comm, axis: int, lengths: Lengths | None, back: PartOf
) -> Tensor:
    """All ranks' parts of an axis side by side; ``back`` takes the gradient of this rank's part."""
    x = floating_only(name, as_tensor(x))
    axis = _axis(name, x, axis)
    lengths = [x.shape[axis]] * comm.size if lengths is None else lengths
    if len(lengths) != comm.size or lengths[comm.rank] != x.shape[axis]:
        raise ShapeError(
            f"{name}: axis {axis} of {x.shape} on rank {comm.rank} of {comm.size} is not that of "
            f"parts of lengths {list(lengths)}"
        )
    whole = side_by_side(comm, x.data, axis, lengths)
    return Tensor.of(whole, (x,), lambda grad: (back(comm, grad, axis, lengths),))


def _cut_up(
    name: str, x: Any, comm: Comm, axis: int, lengths: Lengths | None, take: PartOf
) -> Tensor:
    """This rank's part of a whole axis, as ``take`` makes it; its gradients side by side."""
    x = floating_only(name, as_tensor(x))
    axis = _axis(name, x, axis)
    cuts = chunk_lengths(x.shape[axis], comm.size) if lengths is None else lengths
    if len(cuts) != comm.size or sum(cuts) != x.shape[axis]:
        raise ShapeError(
            f"{name}: lengths {list(cuts)} do not cut axis {axis} of {x.shape} for {comm.size} "
            "ranks"
        )
    part = take(comm, x.data, axis, cuts)
    return Tensor.of(part, (x,), lambda grad: (side_by_side(comm, grad, axis, cuts),))
