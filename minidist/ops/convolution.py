"""Convolution in two dimensions, as a matrix product over patches ("im2col").

Every output pixel is a dot product of the kernel with the patch of the input beneath it. Write
the patches as columns of a matrix and all of them are one product:

    (out channels, C·KH·KW)  @  (C·KH·KW, pixels)  →  (out channels, pixels)

The patch matrix holds each input pixel KH·KW times, so we neither make it whole nor keep it: we
go through the batch a few samples at a time, so that their patches stay in cache, and make them
again for the backward. Chellapilla et al., "High performance convolutional neural networks for
document processing", 2006.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.array import Array, module_of, work
from minidist.ops.elementwise import ShapeError, same_device
from minidist.tensor import Into, Tensor, as_tensor

PATCHES = 1 << 20  # bytes of patches at a time


def convolved_length(length: int, kernel: int, stride: int, padding: int) -> int:
    """How many places a kernel has along one axis."""
    return (length + 2 * padding - kernel) // stride + 1


def conv2d(
    x: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """Slide the kernels over the images.

    Shapes: x (n, c, h, w), weight (o, c/groups, kh, kw), bias (o,) → (n, o, oh, ow) with
    oh = (h + 2 padding - kh) // stride + 1. With groups, output channels o/groups · i and on see
    only input channels c/groups · i and on.
    """
    x = as_tensor(x)
    _check(x, weight, bias, stride, padding, groups)
    same_device("conv2d", x, weight)
    xp = x.xp
    n, c, h, w = x.shape
    o, cg, kh, kw = weight.shape
    oh = convolved_length(h, kh, stride, padding)
    ow = convolved_length(w, kw, stride, padding)
    data = x.data
    matrix = weight.data.reshape(groups, o // groups, cg * kh * kw)
    flops = 2 * n * o * oh * ow * cg * kh * kw
    work.flops += flops

    step = max(1, PATCHES // max(1, c * kh * kw * oh * ow * x.dtype.itemsize))
    if not isinstance(data, np.ndarray):
        step = max(1, n)  # a GPU wants few large products
    parts = [slice(start, min(start + step, n)) for start in range(0, n, step)]

    def patches(part: slice) -> Array:
        """The patches of some samples as columns: (groups, c/groups·kh·kw, samples·oh·ow)."""
        images = pad_images(data[part], padding).transpose(1, 0, 2, 3)  # (c, m, h, w)
        columns = xp.empty((c, kh, kw, images.shape[1], oh, ow), data.dtype)
        for i in range(kh):
            for j in range(kw):
                columns[:, i, j] = images[window(i, j, oh, ow, stride)]
        return columns.reshape(groups, cg * kh * kw, -1)

    out = xp.empty((n, o, oh, ow), data.dtype)
    for part in parts:
        # (g, o/g, c/g·kh·kw) @ (g, c/g·kh·kw, m·oh·ow) -> (g, o/g, m·oh·ow)
        product = (matrix @ patches(part)).reshape(o, -1, oh, ow).transpose(1, 0, 2, 3)
        if bias is None:
            out[part] = product
        else:
            xp.add(product, bias.data[:, None, None], out=out[part])
    shape, kernel_shape = x.shape, weight.shape
    wants_input_grad, biased = x.node is not None, bias is not None

    def columns_of(grad: Array, part: slice) -> Array:
        return grad[part].transpose(1, 0, 2, 3).reshape(groups, o // groups, -1)

    def backward(grad: Array) -> Any:
        def weight_grad(out: Array | None) -> Array:
            work.flops += flops
            total = xp.zeros(kernel_shape, grad.dtype) if out is None else out
            total.fill(0)
            view = total.reshape(groups, o // groups, cg * kh * kw)
            for part in parts:
                # (g, o/g, m·oh·ow) @ (g, m·oh·ow, c/g·kh·kw) -> (g, o/g, c/g·kh·kw)
                view += columns_of(grad, part) @ patches(part).swapaxes(1, 2)
            return total

        grad_x = None
        if wants_input_grad:
            work.flops += flops
            hp, wp = h + 2 * padding, w + 2 * padding
            grad_padded = xp.zeros((n, c, hp, wp), grad.dtype)
            for part in parts:
                # (g, c/g·kh·kw, o/g) @ (g, o/g, m·oh·ow) -> (g, c/g·kh·kw, m·oh·ow)
                columns = matrix.swapaxes(1, 2) @ columns_of(grad, part)
                columns = columns.reshape(c, kh, kw, -1, oh, ow)
                images = grad_padded[part].transpose(1, 0, 2, 3)  # (c, m, h, w): a view
                for i in range(kh):  # patches overlap, so each place is added separately
                    for j in range(kw):
                        images[window(i, j, oh, ow, stride)] += columns[:, i, j]
            inside = slice(padding, padding + h), slice(padding, padding + w)
            grad_x = grad_padded[:, :, inside[0], inside[1]].reshape(shape)
        if not biased:
            return grad_x, Into(weight_grad)
        return grad_x, Into(weight_grad), lambda: grad.sum(axis=(0, 2, 3))

    parents = (x, weight) if bias is None else (x, weight, bias)
    return Tensor.of(out, parents, backward)


def pad_images(images: Array, padding: int, value: float = 0.0) -> Array:
    """(n, c, h, w) with ``padding`` pixels around; the same array if there are none."""
    if padding == 0:
        return images
    n, c, h, w = images.shape
    xp = module_of(images)
    padded = xp.full((n, c, h + 2 * padding, w + 2 * padding), value, images.dtype)
    padded[:, :, padding : padding + h, padding : padding + w] = images
    return padded


def window(i: int, j: int, oh: int, ow: int, stride: int) -> tuple[slice, ...]:
    """The pixels that lie under kernel place (i, j) as it slides."""
    return (
        slice(None),
        slice(None),
        slice(i, i + stride * (oh - 1) + 1, stride) if oh else slice(0, 0),
        slice(j, j + stride * (ow - 1) + 1, stride) if ow else slice(0, 0),
    )


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int
) -> None:
    if stride < 1 or padding < 0 or groups < 1:
        raise ValueError(
            f"conv2d: stride {stride} and groups {groups} must be at least 1, padding {padding} "
            "at least 0"
        )
    fits = (
        x.ndim == 4
        and weight.ndim == 4
        and x.shape[1] == weight.shape[1] * groups
        and weight.shape[0] % groups == 0
        and x.shape[2] + 2 * padding >= weight.shape[2]
        and x.shape[3] + 2 * padding >= weight.shape[3]
        and (bias is None or bias.shape == weight.shape[:1])
    )
    if not fits:
        raise ShapeError(
            f"conv2d: input {x.shape} = (n, c, h, w) and weight {weight.shape} = (o, c/groups, kh, "
            f"kw) do not fit with groups {groups} and padding {padding}"
            + (f", or bias {bias.shape} is not (o,)" if bias is not None else "")
        )
