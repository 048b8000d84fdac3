"""Check the operands of an op, and convert them to tensors of fitting dtypes; or raise an error.

If NumPy broadcasts an input to a larger shape, its elements are used several times. Its gradient is
the sum over these uses: see ``unbroadcast``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array, DeviceError, default_dtype, module_of
from minidist.engine.tensor import Tensor, as_tensor
from minidist.ops.sums import summed

Shape = tuple[int, ...]


class ShapeError(ValueError):
    """Shapes do not fit an op; the message gives the op and the shapes."""


class DTypeError(TypeError):
    """An op does not accept these dtypes; the message gives the op, the dtypes, and what to do."""


def constant(value: Any, like: Tensor) -> Tensor:
    """``value`` as a tensor that fits ``like`` in an op.

    Numbers, integer arrays and NumPy's float64 scalars take the dtype of ``like``, so that
    nothing silently becomes float64.
    """
    floating = like.data.dtype.kind == "f"
    if isinstance(value, Tensor):
        if value.dtype.kind in "iub" and floating:
            return Tensor(value.data.astype(like.dtype))
        return value
    out = Tensor.__new__(Tensor)
    out.grad = out.node = None
    if isinstance(value, (bool, int, float, np.generic)):
        # A NumPy scalar works with an array on any device, without a copy.
        out.data = _number(value, like)
        return out
    if not hasattr(value, "dtype"):
        data = Tensor(value).data  # TypeError if these are no numbers
        out.data = data.astype(like.dtype) if floating else data
    elif floating and value.dtype.kind in "iub":
        out.data = value.astype(like.dtype)
    else:
        out.data = value
    return out


def _number(value: Any, like: Tensor) -> Any:
    """A number in the dtype of ``like``; unchanged if it is of a higher kind, as in PyTorch.

    The kinds in order: booleans, integers, floating numbers.
    """
    kind, dtype = like.dtype.kind, like.dtype
    if kind in "iu" and not isinstance(value, np.generic) and not isinstance(value, float):
        if not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            raise DTypeError(
                f"{value} does not fit {dtype}, the dtype of the tensor {like.shape}: convert the "
                "tensor first, for example with .data.astype(int)"
            )
    elif kind != "f":
        return np.asarray(value)[()]
    elif dtype.itemsize < 4 and np.isfinite(value) and abs(value) > float(np.finfo(dtype).max):
        raise DTypeError(
            f"{value} does not fit {dtype}, the dtype of the tensor {like.shape}, whose largest "
            f'number is {np.finfo(dtype).max}: convert the tensor first, with .astype("float32")'
        )
    return dtype.type(value)


def match_number(x: Tensor, number: Any) -> Tensor:
    """``x``; integers with a number such as 1.5 become the default dtype, as in PyTorch."""
    if x.data.dtype.kind not in "iub" or (hasattr(number, "shape") and not np.isscalar(number)):
        return x
    return floating(x) if np.asarray(number).dtype.kind == "f" else x


def floating(x: Any) -> Tensor:
    """``x`` as a tensor of floating numbers: integers become the default dtype, as in PyTorch.

    NumPy would turn them into float64.
    """
    x = as_tensor(x)
    if x.data.dtype.kind in "iub":
        return Tensor(x.data.astype(default_dtype()))
    return x


def floating_only(name: str, x: Any) -> Tensor:
    """``x`` as a tensor; DTypeError if its dtype is not floating."""
    x = as_tensor(x)
    if x.data.dtype.kind in "iub":
        raise DTypeError(
            f"{name}: the input {x.shape} is {x.dtype}, and must be floating numbers: convert it "
            f'first, for example with .astype("{default_dtype()}")'
        )
    return x


def same_device(name: str, first: Tensor, *others: Tensor) -> None:
    """Raise DeviceError unless all arrays are of one library. NumPy scalars fit any."""
    for other in others:
        if type(other.data) is type(first.data):
            continue
        if isinstance(first.data, np.generic) or isinstance(other.data, np.generic):
            continue
        one, two = module_of(first.data).__name__, module_of(other.data).__name__
        if one != two:
            raise DeviceError(
                f"{name}: one input {first.shape} is an array of {one}, another {other.shape} of "
                f"{two}: move them to one device with minidist.engine.to_device"
            )


def same_kind(name: str, x: Tensor, weight: Tensor) -> None:
    """Raise DeviceError or DTypeError unless a layer's input has its weights' device and dtype.

    NumPy would compute in the wider of two dtypes: float64 data, or integers, would silently make a
    float32 model slow.
    """
    if type(x.data) is not type(weight.data):
        same_device(name, x, weight)
    if x.data.dtype != weight.data.dtype:
        of = f"{name}: the input {x.shape} is {x.dtype}, the weight {weight.shape} {weight.dtype}: "
        if (
            x.dtype.kind != "f"
        ):  # if they were only converted, and not scaled, results would be wrong
            raise DTypeError(
                of + "if these are raw samples, such as pixels, prepare them as those that the "
                "model was trained on: dataset.inputs_for(raw), or predict(model, dataset, raw); "
                f'if they are numbers, convert them with .astype("{weight.dtype}")'
            )
        raise DTypeError(
            of + f'convert the input with .astype("{weight.dtype}"), or make the model with '
            f'init(dtype="{x.dtype}")'
        )


def pair(name: str, x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Both operands of a binary op as tensors on one device; their shapes broadcast."""
    if not isinstance(x, Tensor):
        y = match_number(as_tensor(y), x)
        x = constant(x, y)
    elif not isinstance(y, Tensor):
        x = match_number(x, y)
        y = constant(y, x)
    if y.data.dtype != x.data.dtype:
        x, y = _promoted(name, x, y)
    if type(x.data) is not type(y.data):
        same_device(name, x, y)
    if x.data.shape != y.data.shape:
        try:
            np.broadcast_shapes(x.data.shape, y.data.shape)
        except ValueError:
            raise ShapeError(
                f"{name}: shapes {x.shape} and {y.shape} do not broadcast: from the last axis "
                "back, lengths must be equal or 1"
            ) from None
    return x, y


def _promoted(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Operands of two dtypes, converted so that NumPy's result has PyTorch's dtype."""
    x, y = constant(x, y), constant(y, x)
    kinds = {x.data.dtype.kind, y.data.dtype.kind}
    if kinds == {"f"} and (x.data.ndim == 0) != (y.data.ndim == 0):
        # A 0-d tensor counts as a number: the result has the dtype of the other.
        if x.data.ndim == 0:
            return _as(x, y.data.dtype), y
        return x, _as(y, x.data.dtype)
    if kinds == {"i", "u"} and np.result_type(x.dtype, y.dtype).kind == "f":
        raise DTypeError(
            f"{name}: no integer dtype has all numbers of {x.dtype} {x.shape} and {y.dtype} "
            f"{y.shape}: convert one of them, for example with .data.astype(int)"
        )
    return x, y


def _as(x: Tensor, dtype: Any) -> Tensor:
    """``x`` in another floating dtype, on the tape."""
    old = x.data.dtype
    return Tensor.of(x.data.astype(dtype), (x,), lambda grad: (grad.astype(old),))


def grad_shape(x: Tensor) -> Shape | None:
    """The shape of the gradient of ``x``, or None if ``x`` needs no gradient."""
    return x.data.shape if x.node is not None else None


def unbroadcast(grad: Array | None, shape: Shape | None) -> Any:
    """Sum ``grad`` over the axes along which ``shape`` was broadcast; None if one is None."""
    if grad is None or shape is None or grad.shape == shape:
        return grad if shape is not None else None
    extra = grad.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + axis
        for axis, length in enumerate(shape)
        if length == 1 and grad.shape[extra + axis] != 1
    )
    return summed(module_of(grad), grad, axes, keepdims=True).reshape(shape)


def by_sample(name: str, rows: Array, shape: Shape, samples: int) -> Array:
    """The rows (count, w) of an input of ``shape``, by sample: (samples, count/samples, w).

    Raises ShapeError unless the samples are on the first axis of the input.
    """
    if not shape or shape[0] != samples:
        raise ShapeError(
            f"{name}: the gradient of each of {samples} samples was asked for, and the input has "
            f"shape {shape}: the samples must be on its first axis, from the first layer to the "
            "last"
        )
    count = len(rows) // samples if samples else 0
    return rows.reshape(samples, count, *rows.shape[1:])
