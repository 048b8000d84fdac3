"""Convolution in one and two dimensions, as a matrix product over patches ("im2col").

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
from minidist.ops.operands import ShapeError, by_sample, same_kind
from minidist.ops.shape import reshape

PATCHES = 1 << 20  # bytes of patches at a time

Pair = tuple[int, int]  # (along the height, along the width)


def convolved_length(length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """The number of positions of a kernel along one axis; it covers dilation · (k - 1) + 1."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


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
    """Convolution over sequences: that of images with one row.

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
    if bias is not None:
        out += bias.data
    # Kept in any case, as by linear: PipeDream counts on it that a tape holds its own weights.
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
            by_sample(name, grad, shape, samples)  # refuses others
            work.flops += flops
            found = xp.empty((n, groups, kh * kw * cg, o // groups), grad.dtype)
            for part, inputs, outputs, g in _pieces(grad, kernel_shape, groups):
                images = data[part, inputs]
                rows = patch_matrix(images, kh, kw, oh, ow, stride, padding, dilation)
                m = len(images)
                # (m, kh·kw·c/g, oh·ow) @ (m, oh·ow, o/g) -> (m, kh·kw·c/g, o/g)
                pixels = rows.reshape(m, oh * ow, kh * kw * cg).swapaxes(1, 2)
                found[part, g] = pixels @ grad[part].reshape(m, oh * ow, o)[:, :, outputs]
            turned = found.reshape(n, groups, kh * kw, cg, o // groups).transpose(0, 1, 4, 3, 2)
            return turned.reshape(n, *kernel_shape)

        grad_x = None
        if wants_input_grad:
            work.flops += flops
            rest = dh * (kh - 1) - ph, dw * (kw - 1) - pw
            if stride == (1, 1) and min(rest) >= 0:
                # Each pixel meets the kernel's elements in reverse order: a convolution of the
                # gradient with the kernels turned by 180°, from outputs to inputs.
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


def patch_matrix(
    images: Array,
    kh: int,
    kw: int,
    oh: int,
    ow: int,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
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
        _patches(xp, rows, last, h, w, c, kh, kw, oh, ow, *stride, *padding, *dilation)
        return rows
    images = pad_images(images, padding)
    if kw * c < ow:
        columns = xp.empty((kh, kw, c, m, oh, ow), images.dtype)
        for i in range(kh):
            for j in range(kw):
                place = window(i * dilation[0], j * dilation[1], oh, ow, stride)
                columns[i, j] = images.transpose(1, 0, 2, 3)[place]
        return columns.reshape(kh * kw * c, m * oh * ow).T
    out = xp.empty((m, oh, ow, kh, kw, c), images.dtype)
    out[...] = overlapping(images, kh, kw, oh, ow, stride, dilation)
    return out.reshape(m * oh * ow, kh * kw * c)


def overlapping(
    images: Array, kh: int, kw: int, oh: int, ow: int, stride: Pair, dilation: Pair = (1, 1)
) -> Array:
    """A view of all patches, which overlap in memory: (m, oh, ow, kh, kw, c)."""
    xp = module_of(images)
    m, c = images.shape[:2]
    images = xp.ascontiguousarray(images.transpose(0, 2, 3, 1))  # (m, h, w, c): often a view
    # Not images.strides: for an axis of length 1, NumPy may report any stride.
    one = images.itemsize
    pixel = c * one
    row = images.shape[2] * pixel
    sample = images.shape[1] * row
    strides = (
        sample,
        stride[0] * row,
        stride[1] * pixel,
        dilation[0] * row,
        dilation[1] * pixel,
        one,
    )
    return xp.lib.stride_tricks.as_strided(images, (m, oh, ow, kh, kw, c), strides)


@kernel(
    "T *rows, const T *images, long long h, long long w, long long c, long long kh, long long kw, "
    "long long oh, long long ow, long long sh, long long sw, long long ph, long long pw, "
    "long long dh, long long dw",
    """
    long long place = i / c % (kh * kw), pixel = i / (c * kh * kw);
    long long y = pixel / ow % oh * sh - ph + place / kw * dh;
    long long x = pixel % ow * sw - pw + place % kw * dw;
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
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    dh: int,
    dw: int,
) -> None:
    """Fill ``rows`` (m·oh·ow, kh·kw·c) from images (m, h, w, c)."""
    padded = pad_images(images.transpose(0, 3, 1, 2), (ph, pw))
    patches = overlapping(padded, kh, kw, oh, ow, (sh, sw), (dh, dw))
    rows[...] = patches.reshape(rows.shape)


def add_patches(
    images: Array,
    rows: Array,
    kh: int,
    kw: int,
    oh: int,
    ow: int,
    stride: Pair,
    dilation: Pair = (1, 1),
) -> None:
    """The reverse of ``patch_matrix``: add every patch to (m, h, w, c) at its position.

    Patches overlap, so each element of the kernel is added separately.
    """
    rows = rows.reshape(-1, oh, ow, kh, kw, images.shape[3])
    for i in range(kh):
        for j in range(kw):
            where = window(i * dilation[0], j * dilation[1], oh, ow, stride)
            place = images.transpose(0, 3, 1, 2)[where]
            place += rows[:, :, :, i, j].transpose(0, 3, 1, 2)


def kernel_matrix(kernels: Array, groups: int) -> Array:
    """(o, c/g, kh, kw) as matrices that patches are multiplied by: (g, kh·kw·c/g, o/g)."""
    o, cg, kh, kw = kernels.shape
    ordered = kernels.reshape(groups, o // groups, cg, kh * kw).transpose(0, 3, 2, 1)
    return module_of(kernels).ascontiguousarray(ordered).reshape(groups, kh * kw * cg, o // groups)


def pad_images(images: Array, padding: int | Pair, value: float = 0.0) -> Array:
    """(n, c, h, w) with ``padding`` zeros on each side; the same array if ``padding`` is 0."""
    ph, pw = (padding, padding) if isinstance(padding, int) else padding
    if ph == pw == 0:
        return images
    n, c, h, w = images.shape
    xp = module_of(images)
    padded = xp.full((n, h + 2 * ph, w + 2 * pw, c), value, images.dtype)
    padded = padded.transpose(0, 3, 1, 2)  # channels side by side in memory
    padded[:, :, ph : ph + h, pw : pw + w] = images
    return padded


def window(i: int, j: int, oh: int, ow: int, stride: int | Pair) -> tuple[slice, ...]:
    """The pixels that the kernel element at (i, j) meets at all positions."""
    sh, sw = (stride, stride) if isinstance(stride, int) else stride
    return (
        slice(None),
        slice(None),
        slice(i, i + sh * (oh - 1) + 1, sh) if oh else slice(0, 0),
        slice(j, j + sw * (ow - 1) + 1, sw) if ow else slice(0, 0),
    )


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
            + (": grey images get their one channel from x[:, None]" if x.ndim == 3 else "")
        )
