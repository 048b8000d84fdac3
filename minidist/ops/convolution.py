"""Convolution in one and two dimensions, as a matrix product over patches ("im2col").

Every output pixel is a dot product of the kernel with a patch of the input. With the patches as
rows of a matrix, all pixels are one product:

    (pixels, KH·KW·C)  @  (KH·KW·C, out channels)  →  (pixels, out channels)

Chellapilla et al., "High performance convolutional neural networks for document processing", 2006.
The patch matrix contains each input pixel KH·KW times, so it is never computed as a whole, and
never saved. The batch is processed a few samples at a time, so that their patches stay in cache,
and the backward computes the patches again.

The product writes the channels of a pixel side by side, and later layers keep this order: the
*shape* of images is always (n, c, h, w), but their order in memory is (n, h, w, c). NumPy's
elementwise functions keep it too. A row of a patch is then KW·C numbers side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.engine.arithmetic import work
from minidist.engine.array import Array, module_of
from minidist.engine.products import product
from minidist.engine.tensor import Into, Tensor, as_tensor
from minidist.ops.chunks import chunks
from minidist.ops.matmul import column_sums
from minidist.ops.operands import ShapeError, by_sample, same_kind
from minidist.ops.patches import (
    Pair,
    add_patches,
    convolved_length,
    kernel_matrix,
    patch_matrix,
)
from minidist.ops.patches import overlapping as overlapping  # where they were before
from minidist.ops.patches import pad_images as pad_images
from minidist.ops.patches import window as window
from minidist.ops.shape import reshape

PATCHES = 1 << 20  # bytes of patches that are computed at a time


def as_pair(op: str, name: str, value: int | Pair, least: int) -> Pair:
    """A setting for both axes: one whole number for both, or a pair (height, width)."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(isinstance(n, (int, np.integer)) and n >= least for n in both):
        raise ValueError(
            f"{op}: {name} is a whole number of at least {least}, or a pair of them, (height, "
            f"width), not {value!r}"
        )
    return int(both[0]), int(both[1])


def conv2d(
    x: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    groups: int = 1,
    dilation: int | Pair = 1,
) -> Tensor:
    """Convolution: slide the kernels over the images.

    Shapes: x (n, c, h, w), weight (o, c/groups, kh, kw), bias (o,) → (n, o, oh, ow) with oh = (h +
    2 padding - dilation (kh - 1) - 1) // stride + 1. With groups, the o/groups output channels of
    group i use only the c/groups input channels of group i. ``dilation`` is the distance between
    neighbouring elements of a kernel (arXiv 1511.07122). Stride, padding and dilation are numbers,
    or pairs (height, width), as in PyTorch.
    """
    return _convolution("conv2d", x, weight, bias, stride, padding, groups, dilation)


def conv1d(
    x: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Convolution over sequences, computed as that of images with one row.

    Shapes: x (n, c, l), weight (o, c/groups, k), bias (o,) → (n, o, ol) with ol = (l + 2 padding -
    dilation (k - 1) - 1) // stride + 1.
    """
    x = as_tensor(x)
    if x.ndim != 3 or weight.ndim != 3:
        raise ShapeError(
            f"conv1d: input {x.shape} = (n, c, l) and weight {weight.shape} = (o, c/groups, k) "
            "must have three axes"
        )
    for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        if not isinstance(value, (int, np.integer)):
            raise ValueError(f"conv1d: {name} is a whole number, not {value!r}")
    y = _convolution(
        "conv1d",
        reshape(x, x.shape[0], x.shape[1], 1, x.shape[2]),
        reshape(weight, *weight.shape[:2], 1, weight.shape[2]),
        bias,
        (1, stride),
        (0, padding),
        groups,
        (1, dilation),
    )
    return reshape(y, *y.shape[:2], y.shape[3])


def _convolution(
    name: str,
    x: Any,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Pair,
    padding: int | Pair,
    groups: int,
    dilation: int | Pair,
) -> Tensor:
    x = as_tensor(x)
    stride, dilation = as_pair(name, "stride", stride, 1), as_pair(name, "dilation", dilation, 1)
    padding = as_pair(name, "padding", padding, 0)
    _check(name, x, weight, bias, padding, groups, dilation)
    same_kind(name, x, weight)
    xp, shape = x.xp, x.shape
    n, _, h, w = shape
    o, cg, kh, kw = kernel_shape = weight.shape
    (ph, pw), (dh, dw) = padding, dilation
    oh = convolved_length(h, kh, stride[0], ph, dh)
    ow = convolved_length(w, kw, stride[1], pw, dw)
    flops = 2 * n * o * oh * ow * cg * kh * kw
    work.flops += flops
    out = xp.empty((n, oh, ow, o), x.dtype)
    correlate(x.data, weight.data, out, stride, padding, groups, dilation)
    if bias is not None and xp is np:  # to whole images: NumPy is slow on rows of a few channels
        out.reshape(n, oh * ow * o)[...] += np.tile(bias.data, oh * ow)
    elif bias is not None:
        out += bias.data
    # Saved even if x needs no gradient, as in linear: PipeDream relies on the tape to keep weights.
    kernels, wants_input_grad = weight.data, x.node is not None
    data: Array = x.data if weight.node is not None else None  # for the gradient of the weight
    biased = bias is not None

    def backward(grad: Array) -> Any:
        grad = grad.transpose(0, 2, 3, 1)  # (n, oh, ow, o)

        def weight_grad(out: Array | None) -> Array:
            work.flops += flops
            total = xp.zeros((groups, kh * kw * cg, o // groups), grad.dtype)
            for part, inputs, outputs, g in _pieces(grad, kernel_shape, groups):
                images = data[part, inputs]
                rows = patch_matrix(images, kh, kw, oh, ow, stride, padding, dilation)
                # (kh·kw·c/g, m·oh·ow) @ (m·oh·ow, o/g) -> (kh·kw·c/g, o/g)
                product(xp, rows.T, grad[part].reshape(-1, o)[:, outputs], total[g], add=True)
            out = xp.empty(kernel_shape, grad.dtype) if out is None else out
            turned = total.reshape(groups, kh * kw, cg, o // groups).transpose(0, 3, 2, 1)
            out[...] = turned.reshape(kernel_shape)
            return out

        def each(samples: int) -> Array:
            by_sample(name, grad, shape, samples)  # raises an error if samples are not on axis 0
            work.flops += flops
            total = xp.empty((n, groups, kh * kw * cg, o // groups), grad.dtype)
            for part, inputs, outputs, g in _pieces(grad, kernel_shape, groups):
                images = data[part, inputs]
                rows = patch_matrix(images, kh, kw, oh, ow, stride, padding, dilation)
                m = len(images)
                # (m, kh·kw·c/g, oh·ow) @ (m, oh·ow, o/g) -> (m, kh·kw·c/g, o/g)
                pixels = rows.reshape(m, oh * ow, kh * kw * cg).swapaxes(1, 2)
                total[part, g] = pixels @ grad[part].reshape(m, oh * ow, o)[:, :, outputs]
            turned = total.reshape(n, groups, kh * kw, cg, o // groups).transpose(0, 1, 4, 3, 2)
            return turned.reshape(n, *kernel_shape)

        grad_x = None
        if wants_input_grad:
            work.flops += flops
            rest = dh * (kh - 1) - ph, dw * (kw - 1) - pw
            if stride == (1, 1) and min(rest) >= 0:
                # Each pixel is multiplied by the kernel's elements in reverse order: a convolution
                # of the gradient with the kernels rotated by 180°, from outputs to inputs.
                turned = kernels.reshape(groups, o // groups, cg, kh, kw).swapaxes(1, 2)
                turned = turned[..., ::-1, ::-1].reshape(groups * cg, o // groups, kh, kw)
                grad_x = xp.empty((n, h, w, groups * cg), grad.dtype)
                images = grad.transpose(0, 3, 1, 2)
                correlate(images, turned, grad_x, (1, 1), rest, groups, dilation)
            else:
                grad_x = xp.zeros((n, h + 2 * ph, w + 2 * pw, groups * cg), grad.dtype)
                matrix = kernel_matrix(kernels, groups)
                for part, inputs, outputs, g in _pieces(grad, kernel_shape, groups):
                    # (m·oh·ow, o/g) @ (o/g, kh·kw·c/g) -> (m·oh·ow, kh·kw·c/g)
                    pixels = grad[part].reshape(-1, o)[:, outputs]
                    rows = xp.empty((len(pixels), matrix.shape[1]), grad.dtype)
                    product(xp, pixels, matrix[g].T, rows)
                    place = grad_x[part, :, :, inputs]
                    add_patches(place, rows, kh, kw, oh, ow, stride, dilation)
                grad_x = grad_x[:, ph : ph + h, pw : pw + w]
            grad_x = grad_x.transpose(0, 3, 1, 2)  # (n, c, h, w)
        if not biased:
            return grad_x, Into(weight_grad, each)
        return (
            grad_x,
            Into(weight_grad, each),
            Into(
                lambda out: column_sums(grad.reshape(-1, o), out),
                lambda n: by_sample(name, grad, shape, n).sum(axis=(1, 2, 3)),
            ),
        )

    backward.__qualname__ = f"{name}.backward"
    parents = (x, weight) if bias is None else (x, weight, bias)
    return Tensor.of(out.transpose(0, 3, 1, 2), parents, backward)


def correlate(
    images: Array,
    kernels: Array,
    out: Array,
    stride: Pair,
    padding: Pair,
    groups: int,
    dilation: Pair = (1, 1),
) -> None:
    """Fill ``out`` (n, oh, ow, o) from images (n, c, h, w) and kernels (o, c/groups, kh, kw)."""
    xp = module_of(images)
    _, oh, ow, o = out.shape
    kh, kw = kernels.shape[2:]
    matrix = kernel_matrix(kernels, groups)
    for part, inputs, outputs, g in _pieces(out, kernels.shape, groups):
        rows = patch_matrix(images[part, inputs], kh, kw, oh, ow, stride, padding, dilation)
        pixels = out[part].reshape(-1, o)[:, outputs]  # (m·oh·ow, o/g), the same memory
        # (m·oh·ow, kh·kw·c/g) @ (kh·kw·c/g, o/g) -> (m·oh·ow, o/g)
        product(xp, rows, matrix[g], pixels)


def _pieces(
    out: Array, kernel_shape: tuple[int, ...], groups: int
) -> Iterator[tuple[slice, slice, slice, int]]:
    """Yield some samples of (n, oh, ow, o), input and output channels of a group, and the group."""
    o, cg, kh, kw = kernel_shape
    og = o // groups
    for part in chunks(out, out.shape[1] * out.shape[2] * kh * kw * cg, PATCHES):
        for g in range(groups):
            yield part, slice(g * cg, (g + 1) * cg), slice(g * og, (g + 1) * og), g


def _check(
    name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Pair,
    groups: int,
    dilation: Pair,
) -> None:
    if groups < 1:
        raise ValueError(f"{name}: groups {groups} must be at least 1")
    fits = (
        x.ndim == 4
        and weight.ndim == 4
        and x.shape[1] == weight.shape[1] * groups
        and weight.shape[0] % groups == 0
        and min(weight.shape[2:]) > 0
        and x.shape[2] + 2 * padding[0] > dilation[0] * (weight.shape[2] - 1)
        and x.shape[3] + 2 * padding[1] > dilation[1] * (weight.shape[3] - 1)
        and (bias is None or bias.shape == weight.shape[:1])
    )
    if not fits:
        raise ShapeError(
            f"{name}: input {x.shape} = (n, c, h, w) and weight {weight.shape} = (o, c/groups, kh, "
            f"kw) do not fit with groups {groups}, padding {padding} and dilation {dilation}"
            + (f", or bias {bias.shape} is not (o,)" if bias is not None else "")
            + (": add the channel axis of grey images with x[:, None]" if x.ndim == 3 else "")
        )
