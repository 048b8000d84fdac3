"""Convolution in two dimensions, as a matrix product over patches ("im2col").

Every output pixel is a dot product of the kernel with a patch of the input. With the patches as
rows of a matrix, all pixels are one product:

    (pixels, KH·KW·C)  @  (KH·KW·C, out channels)  →  (pixels, out channels)

Chellapilla et al., "High performance convolutional neural networks for document processing", 2006.
The patch matrix contains each input pixel KH·KW times, so it is never computed as a whole, and
never saved. The batch is processed a few samples at a time, so that their patches stay in cache,
and the backward computes the patches again.

The product writes the channels of a pixel side by side, and they stay so: the *shape* of images is
always (n, c, h, w), but their order in memory is (n, h, w, c). NumPy's elementwise functions keep
this order. A row of a patch is then KW·C numbers side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.engine.array import Array, module_of, work
from minidist.engine.kernels import kernel
from minidist.engine.products import product
from minidist.engine.tensor import Into, Tensor, as_tensor
from minidist.ops.chunks import chunks
from minidist.ops.matmul import column_sums
from minidist.ops.operands import ShapeError, same_device, same_dtype

PATCHES = 1 << 20  # bytes of patches at a time


def convolved_length(length: int, kernel: int, stride: int, padding: int) -> int:
    """The number of positions of a kernel along one axis."""
    return (length + 2 * padding - kernel) // stride + 1


def conv2d(
    x: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """Convolution: slide the kernels over the images.

    Shapes: x (n, c, h, w), weight (o, c/groups, kh, kw), bias (o,) → (n, o, oh, ow) with oh = (h +
    2 padding - kh) // stride + 1. With groups, the o/groups output channels of group i use only the
    c/groups input channels of group i.
    """
    x = as_tensor(x)
    _check(x, weight, bias, stride, padding, groups)
    same_device("conv2d", x, weight)
    same_dtype("conv2d", x, weight)
    xp, data, shape = x.xp, x.data, x.shape
    n, _, h, w = shape
    o, cg, kh, kw = kernel_shape = weight.shape
    oh = convolved_length(h, kh, stride, padding)
    ow = convolved_length(w, kw, stride, padding)
    kernels = weight.data
    flops = 2 * n * o * oh * ow * cg * kh * kw
    work.flops += flops
    out = xp.empty((n, oh, ow, o), data.dtype)
    correlate(data, kernels, out, stride, padding, groups)
    if bias is not None:
        out += bias.data
    wants_input_grad, biased = x.node is not None, bias is not None

    def backward(grad: Array) -> Any:
        grad = grad.transpose(0, 2, 3, 1)  # (n, oh, ow, o)

        def weight_grad(out: Array | None) -> Array:
            work.flops += flops
            total = xp.zeros((groups, kh * kw * cg, o // groups), grad.dtype)
            for part, inputs, outputs, g in _pieces(data, grad, kernels, groups):
                rows = patch_matrix(data[part, inputs], kh, kw, oh, ow, stride, padding)
                # (kh·kw·c/g, m·oh·ow) @ (m·oh·ow, o/g) -> (kh·kw·c/g, o/g)
                product(xp, rows.T, grad[part].reshape(-1, o)[:, outputs], total[g], add=True)
            out = xp.empty(kernel_shape, grad.dtype) if out is None else out
            turned = total.reshape(groups, kh * kw, cg, o // groups).transpose(0, 3, 2, 1)
            out[...] = turned.reshape(kernel_shape)
            return out

        grad_x = None
        if wants_input_grad:
            work.flops += flops
            if stride == 1 and kh == kw > padding:
                # Each pixel meets the kernel's elements in reverse order: a convolution of the
                # gradient with the kernels turned by 180°, from outputs to inputs.
                turned = kernels.reshape(groups, o // groups, cg, kh, kw).swapaxes(1, 2)
                turned = turned[..., ::-1, ::-1].reshape(groups * cg, o // groups, kh, kw)
                grad_x = xp.empty((n, h, w, groups * cg), grad.dtype)
                images = grad.transpose(0, 3, 1, 2)
                correlate(images, turned, grad_x, 1, kh - 1 - padding, groups)
            else:
                grad_x = xp.zeros((n, h + 2 * padding, w + 2 * padding, groups * cg), grad.dtype)
                matrix = kernel_matrix(kernels, groups)
                for part, inputs, outputs, g in _pieces(data, grad, kernels, groups):
                    # (m·oh·ow, o/g) @ (o/g, kh·kw·c/g) -> (m·oh·ow, kh·kw·c/g)
                    pixels = grad[part].reshape(-1, o)[:, outputs]
                    rows = xp.empty((len(pixels), matrix.shape[1]), grad.dtype)
                    product(xp, pixels, matrix[g].T, rows)
                    add_patches(grad_x[part, :, :, inputs], rows, kh, kw, oh, ow, stride)
                grad_x = grad_x[:, padding : padding + h, padding : padding + w]
            grad_x = grad_x.transpose(0, 3, 1, 2)  # (n, c, h, w)
        if not biased:
            return grad_x, Into(weight_grad)
        return (
            grad_x,
            Into(weight_grad),
            Into(lambda out: column_sums(grad.reshape(-1, o), out)),
        )

    parents = (x, weight) if bias is None else (x, weight, bias)
    return Tensor.of(out.transpose(0, 3, 1, 2), parents, backward)


def correlate(
    images: Array, kernels: Array, out: Array, stride: int, padding: int, groups: int
) -> None:
    """Fill ``out`` (n, oh, ow, o) from images (n, c, h, w) and kernels (o, c/groups, kh, kw)."""
    xp = module_of(images)
    _, oh, ow, o = out.shape
    kh, kw = kernels.shape[2:]
    matrix = kernel_matrix(kernels, groups)
    for part, inputs, outputs, g in _pieces(images, out, kernels, groups):
        rows = patch_matrix(images[part, inputs], kh, kw, oh, ow, stride, padding)
        pixels = out[part].reshape(-1, o)[:, outputs]  # (m·oh·ow, o/g), the same memory
        # (m·oh·ow, kh·kw·c/g) @ (kh·kw·c/g, o/g) -> (m·oh·ow, o/g)
        product(xp, rows, matrix[g], pixels)


def _pieces(
    images: Array, out: Array, kernels: Array, groups: int
) -> Iterator[tuple[slice, slice, slice, int]]:
    """Yield some samples, the input and output channels of a group, and the group."""
    o, cg, kh, kw = kernels.shape
    og = o // groups
    for part in chunks(images, out.shape[1] * out.shape[2] * kh * kw * cg, PATCHES):
        for g in range(groups):
            yield part, slice(g * cg, (g + 1) * cg), slice(g * og, (g + 1) * og), g


def patch_matrix(
    images: Array, kh: int, kw: int, oh: int, ow: int, stride: int, padding: int
) -> Array:
    """Patches of (m, c, h, w), padded with zeros, as rows: (m·oh·ow, kh·kw·c).

    Copying is fast if many numbers lie side by side in memory. With many channels these are the
    rows of a patch, kw·c numbers; with few channels they are rows of the image, so the transposed
    matrix is filled.
    """
    xp = module_of(images)
    m, c, h, w = images.shape
    if xp is not np:
        rows = xp.empty((m * oh * ow, kh * kw * c), images.dtype)
        last = images.transpose(0, 2, 3, 1)  # (m, h, w, c)
        _patches(xp, rows, last, h, w, c, kh, kw, oh, ow, stride, padding)
        return rows
    images = pad_images(images, padding)
    if kw * c < ow:
        columns = xp.empty((kh, kw, c, m, oh, ow), images.dtype)
        for i in range(kh):
            for j in range(kw):
                columns[i, j] = images.transpose(1, 0, 2, 3)[window(i, j, oh, ow, stride)]
        return columns.reshape(kh * kw * c, m * oh * ow).T
    out = xp.empty((m, oh, ow, kh, kw * c), images.dtype)
    out[...] = overlapping(images, kh, kw, oh, ow, stride)
    return out.reshape(m * oh * ow, kh * kw * c)


def overlapping(images: Array, kh: int, kw: int, oh: int, ow: int, stride: int) -> Array:
    """A view of all patches, which overlap in memory: (m, oh, ow, kh, kw·c)."""
    xp = module_of(images)
    m, c = images.shape[:2]
    images = xp.ascontiguousarray(images.transpose(0, 2, 3, 1))  # (m, h, w, c): often a view
    # Not images.strides: for an axis of length 1, NumPy may report any stride.
    one = images.itemsize
    pixel = c * one
    row = images.shape[2] * pixel
    sample = images.shape[1] * row
    strides = (sample, stride * row, stride * pixel, row, one)
    return xp.lib.stride_tricks.as_strided(images, (m, oh, ow, kh, kw * c), strides)


@kernel(
    "T *rows, const T *images, long long h, long long w, long long c, long long kh, long long kw, "
    "long long oh, long long ow, long long stride, long long padding",
    """
    long long place = i / c % (kh * kw), pixel = i / (c * kh * kw);
    long long y = pixel / ow % oh * stride - padding + place / kw;
    long long x = pixel % ow * stride - padding + place % kw;
    bool inside = 0 <= y && y < h && 0 <= x && x < w;
    rows[i] = inside ? images[((pixel / (oh * ow) * h + y) * w + x) * c + i % c] : T(0);
""",
)
def _patches(
    xp: Any,
    rows: Array,
    images: Array,
    h: int,
    w: int,
    c: int,
    kh: int,
    kw: int,
    oh: int,
    ow: int,
    stride: int,
    padding: int,
) -> None:
    """Fill ``rows`` (m·oh·ow, kh·kw·c) from images (m, h, w, c)."""
    padded = pad_images(images.transpose(0, 3, 1, 2), padding)
    patches = overlapping(padded, kh, kw, oh, ow, stride)
    rows[...] = patches.reshape(rows.shape)


def add_patches(
    images: Array, rows: Array, kh: int, kw: int, oh: int, ow: int, stride: int
) -> None:
    """The reverse of ``patch_matrix``: add every patch to (m, h, w, c) at its position.

    Patches overlap, so each element of the kernel is added separately.
    """
    rows = rows.reshape(-1, oh, ow, kh, kw, images.shape[3])
    for i in range(kh):
        for j in range(kw):
            place = images.transpose(0, 3, 1, 2)[window(i, j, oh, ow, stride)]
            place += rows[:, :, :, i, j].transpose(0, 3, 1, 2)


def kernel_matrix(kernels: Array, groups: int) -> Array:
    """(o, c/g, kh, kw) as matrices that patches are multiplied by: (g, kh·kw·c/g, o/g)."""
    o, cg, kh, kw = kernels.shape
    ordered = kernels.reshape(groups, o // groups, cg, kh * kw).transpose(0, 3, 2, 1)
    return module_of(kernels).ascontiguousarray(ordered).reshape(groups, kh * kw * cg, o // groups)


def pad_images(images: Array, padding: int, value: float = 0.0) -> Array:
    """(n, c, h, w) with ``padding`` zeros on each side; the same array if ``padding`` is 0."""
    if padding == 0:
        return images
    n, c, h, w = images.shape
    xp = module_of(images)
    padded = xp.full((n, h + 2 * padding, w + 2 * padding, c), value, images.dtype)
    padded = padded.transpose(0, 3, 1, 2)  # channels side by side in memory
    padded[:, :, padding : padding + h, padding : padding + w] = images
    return padded


def window(i: int, j: int, oh: int, ow: int, stride: int) -> tuple[slice, ...]:
    """The pixels that kernel element (i, j) meets at all positions."""
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
            + (": grey images get their one channel from x[:, None]" if x.ndim == 3 else "")
        )
