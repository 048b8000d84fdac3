"""einsum: a sum of products, described by a letter for each axis.

    einsum("ij,jk->ik", a, b)        a matrix product
    einsum("bij->bji", a)            a transpose
    einsum("i,i->", a, b)            a dot product

Every letter is a loop; letters that are not in the result are summed over. So the gradient of one
operand is also an einsum: of the result's gradient and the other operands, with the letters of this
operand as the result. A letter that only this operand has was summed over; along its axis all
elements have the same gradient.
"""

from __future__ import annotations

import math
import re
from typing import Any

from minidist.engine.arithmetic import work
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor
from minidist.ops.operands import DTypeError, ShapeError, floating_only, same_device
from minidist.ops.sums import dtype_to_add


def einsum(subscripts: str, *operands: Any) -> Tensor:
    """The sum of products described by ``subscripts``, such as "ij,jk->ik", as in NumPy.

    Without "->" the result has the letters that occur once, in alphabetical order. An operand may
    have each letter once; "..." is not supported. Raises ShapeError if the letters do not fit.
    """
    tensors = [floating_only("einsum", operand) for operand in operands]
    inputs, output = _parse(subscripts, tensors)
    same_device("einsum", *tensors)
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise DTypeError(f"einsum: convert to one dtype, not {[str(t.dtype) for t in tensors]}")
    lengths = _lengths(subscripts, inputs, tensors)
    xp, arrays = tensors[0].xp, [tensor.data for tensor in tensors]
    flops = 2 * math.prod(lengths.values()) if len(tensors) > 1 else 0
    work.flops += flops

    def backward(grad: Array) -> list[Array | None]:
        return [
            _gradient(xp, grad, arrays, inputs, output, place, lengths, flops) if wanted else None
            for place, wanted in enumerate(wants)
        ]

    wants = [tensor.node is not None for tensor in tensors]
    y = _einsum(xp, inputs, output, arrays, lengths)
    return Tensor.of(y, tuple(tensors), backward)


def _einsum(
    xp: Any, inputs: list[str], output: str, arrays: list[Array], lengths: dict[str, int]
) -> Array:
    """``xp.einsum``, which adds one product after another: sums.py chooses the dtype for that."""
    dtype = arrays[0].dtype
    added = math.prod(lengths[letter] for letter in set("".join(inputs)) - set(output))
    wider = [array.astype(dtype_to_add(xp, dtype, added), copy=False) for array in arrays]
    return xp.einsum(f"{','.join(inputs)}->{output}", *wider).astype(dtype, copy=False)


def _gradient(
    xp: Any,
    grad: Array,
    arrays: list[Array],
    inputs: list[str],
    output: str,
    place: int,
    lengths: dict[str, int],
    flops: int,
) -> Array:
    """The gradient of the operand at index ``place``."""
    work.flops += flops
    others = [(name, array) for i, (name, array) in enumerate(zip(inputs, arrays, strict=True))
              if i != place]  # fmt: skip
    names = [output, *(name for name, _ in others)]
    letters = inputs[place]
    shared = "".join(letter for letter in letters if any(letter in name for name in names))
    part = _einsum(xp, names, shared, [grad, *(array for _, array in others)], lengths)
    if shared == letters:
        return part
    shape = [lengths[letter] if letter in shared else 1 for letter in letters]
    return xp.broadcast_to(part.reshape(shape), [lengths[letter] for letter in letters])


def _parse(subscripts: str, tensors: list[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand, and of the result."""
    text = subscripts.replace(" ", "")
    if not re.fullmatch(r"[A-Za-z]*(,[A-Za-z]*)*(->[A-Za-z]*)?", text):
        raise ValueError(f'einsum: {subscripts!r} is not like "ij,jk->ik"')
    left, arrow, output = text.partition("->")
    inputs = left.split(",")
    if len(inputs) != len(tensors):
        raise ValueError(f"einsum: {subscripts!r} names {len(inputs)} operands of {len(tensors)}")
    if not arrow:
        joined = "".join(inputs)
        output = "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))
    for name in (*inputs, output):
        if len(set(name)) < len(name):
            raise ValueError(f"einsum: {name!r} of {subscripts!r} has a letter twice")
    if missing := set(output) - set("".join(inputs)):
        raise ValueError(f"einsum: no operand of {subscripts!r} has {sorted(missing)}")
    return inputs, output


def _lengths(subscripts: str, inputs: list[str], tensors: list[Tensor]) -> dict[str, int]:
    """The length of each letter's axis."""
    lengths: dict[str, int] = {}
    shapes = [tensor.shape for tensor in tensors]
    for name, shape in zip(inputs, shapes, strict=True):
        if len(name) != len(shape):
            raise ShapeError(f"einsum: {name!r} of {subscripts!r} does not fit shape {shape}")
        for letter, length in zip(name, shape, strict=True):
            if lengths.setdefault(letter, length) != length:
                raise ShapeError(
                    f"einsum: {letter!r} of {subscripts!r} is {lengths[letter]} and {length} long, "
                    f"in shapes {', '.join(map(str, shapes))}"
                )
    return lengths
