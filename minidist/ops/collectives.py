"""Collectives as ops: ranks send values in the forward, and gradients in the backward.

Several ranks compute parts of one loss. A value that goes from rank to rank in the forward has a
gradient that goes the other way in the backward. So the backward of a collective is a collective
too, its *conjugate*.

    op                  forward                     backward                  its conjugate
    copy_to       (f)   nothing                     all-reduce                reduce_from
    reduce_from   (g)   all-reduce                  nothing                   copy_to
    gather              all-gather                  take the own part         scatter
    scatter             take the own part           all-gather                gather
    all_gather          all-gather                  reduce-scatter            reduce_scatter
    reduce_scatter      reduce-scatter              all-gather                all_gather
    all_to_all          part r goes to rank r       the parts go back         all_to_all
    send                send                        recv                      recv
    recv                recv                        send                      send

Which one is right depends on how the ranks use the value. After ``reduce_from`` and ``gather`` all
ranks have the same value, and all compute the same from it: each computes its whole gradient, and
nothing must be sent. After ``all_gather`` each rank computes something else from the value: the
gradients differ, and must be summed. ``copy_to`` marks the place from which on ranks use a value
differently.

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

Lengths = Sequence[int]  # the length of each rank's part of an axis
PartOf = Callable[[Comm, Array, int, Lengths], Array]  # own_part or sum_of_part


def copy_to(x: Any, comm: Comm) -> Tensor:
    """x, which all ranks have, and will use differently: Megatron's f. Conjugate: reduce_from."""
    x = floating_only("copy_to", x)
    return Tensor.of(x.data, (x,), lambda grad: (total(comm, grad),))


def reduce_from(x: Any, comm: Comm) -> Tensor:
    """Σ over ranks of x, the same on every rank: Megatron's g. Conjugate: copy_to."""
    x = floating_only("reduce_from", x)
    return Tensor.of(total(comm, x.data), (x,), lambda grad: (grad,))


def gather(x: Any, comm: Comm, axis: int = -1, lengths: Lengths | None = None) -> Tensor:
    """All ranks' parts joined along ``axis``, for ranks that compute the same from the result.

    ``lengths`` of all ranks' parts; None: all equal. Conjugate: scatter.
    """
    return _joined("gather", x, comm, axis, lengths, own_part)


def scatter(x: Any, comm: Comm, axis: int = -1, lengths: Lengths | None = None) -> Tensor:
    """This rank's part, along ``axis``, of x, which all ranks have. Conjugate: gather.

    ``lengths`` of all ranks' parts; None: as equal as possible.
    """
    return _cut("scatter", x, comm, axis, lengths, own_part)


def all_gather(x: Any, comm: Comm, axis: int = -1, lengths: Lengths | None = None) -> Tensor:
    """All ranks' parts joined along ``axis``, for ranks that use the result differently.

    ``lengths`` of all ranks' parts; None: all equal. Conjugate: reduce_scatter.
    """
    return _joined("all_gather", x, comm, axis, lengths, sum_of_part)


def reduce_scatter(x: Any, comm: Comm, axis: int = -1, lengths: Lengths | None = None) -> Tensor:
    """This rank's part, along ``axis``, of the sum of x over ranks. Conjugate: all_gather.

    ``lengths`` of all ranks' parts; None: as equal as possible.
    """
    return _cut("reduce_scatter", x, comm, axis, lengths, sum_of_part)


def all_to_all(x: Any, comm: Comm, split: int = 0, join: int = 0) -> Tensor:
    """Part r along axis ``split`` goes to rank r; the parts that arrive are joined along ``join``.

    x has the same shape on all ranks, and their number divides axis ``split``. Conjugate:
    all_to_all.
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

    Returns a scalar 0. Add it to this rank's loss, or call its ``backward()``: otherwise this op's
    backward does not run.
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
    """The array that rank ``source`` sends, with the shape and dtype of ``like``. Conjugate: send.

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
    """All ranks' parts, joined along ``axis``: an all-gather."""
    xp = module_of(part)
    moved = xp.moveaxis(part, axis, 0)  # (own length, the rest): each part is then contiguous
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
    """Part r along ``split`` goes to rank r; those that arrive are joined: an all-to-all."""
    xp = module_of(array)
    out = [xp.ascontiguousarray(part) for part in xp.split(array, comm.size, axis=split)]
    arrived = [xp.empty(out[0].shape, array.dtype) for _ in out]
    pairwise.all_to_all(comm, out, arrived)
    return xp.concatenate(arrived, axis=join)


def _rows(lengths: Lengths) -> list[slice]:
    """Each rank's part of the axis."""
    ends = [sum(lengths[: rank + 1]) for rank in range(len(lengths))]
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _elements(rows: Sequence[slice], rest: tuple[int, ...]) -> list[slice]:
    """The same parts as ranges of elements; ``rest`` is the shape of a row."""
    width = math.prod(rest)
    return [slice(part.start * width, part.stop * width) for part in rows]


def _axis(name: str, x: Tensor, axis: int) -> int:
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"{name}: {x.shape} has no axis {axis}")
    return axis % x.ndim


def _joined(
    name: str, x: Any, comm: Comm, axis: int, lengths: Lengths | None, part_of: PartOf
) -> Tensor:
    """All ranks' parts, joined; ``part_of`` makes of their gradient that of this rank's part."""
    x = floating_only(name, as_tensor(x))
    axis = _axis(name, x, axis)
    lengths = [x.shape[axis]] * comm.size if lengths is None else lengths
    if len(lengths) != comm.size or lengths[comm.rank] != x.shape[axis]:
        raise ShapeError(
            f"{name}: axis {axis} of {x.shape} on rank {comm.rank} of {comm.size} does not fit the "
            f"lengths of the parts, {list(lengths)}: they need one for each rank"
        )
    whole = side_by_side(comm, x.data, axis, lengths)
    return Tensor.of(whole, (x,), lambda grad: (part_of(comm, grad, axis, lengths),))


def _cut(
    name: str, x: Any, comm: Comm, axis: int, lengths: Lengths | None, part_of: PartOf
) -> Tensor:
    """This rank's part of the whole, made by ``part_of``; the parts' gradients are joined."""
    x = floating_only(name, as_tensor(x))
    axis = _axis(name, x, axis)
    cuts = chunk_lengths(x.shape[axis], comm.size) if lengths is None else lengths
    if len(cuts) != comm.size or sum(cuts) != x.shape[axis]:
        raise ShapeError(
            f"{name}: lengths {list(cuts)} do not cut axis {axis} of {x.shape} for {comm.size} "
            "ranks"
        )
    part = part_of(comm, x.data, axis, cuts)
    return Tensor.of(part, (x,), lambda grad: (side_by_side(comm, grad, axis, cuts),))
