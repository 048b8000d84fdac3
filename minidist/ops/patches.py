"""Patches of images: the pixels that a kernel covers at each of its positions.

    images (m, c, h, w)   →   patch_matrix   →   rows (m·oh·ow, kh·kw·c)
                          ←   add_patches    ←

A convolution multiplies the rows by its kernels, and pooling takes the largest or the mean of each
window. The *shape* of images is (n, c, h, w), and their order in memory (n, h, w, c): a row of a
patch is kw·c numbers side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array, module_of
from minidist.engine.kernels import kernel

Pair = tuple[int, int]  # (along the height, along the width)


def convolved_length(length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """The number of positions along one axis of a kernel that spans dilation · (k - 1) + 1."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


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

    Copying is fast if many numbers are side by side in memory. With many channels these are the
    rows of a patch, kw·c numbers. With few channels they are the rows of the image; then the
    transposed matrix is filled.
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
    # Not images.strides: NumPy may give any stride to an axis of length 1.
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
    """Kernels (o, c/g, kh, kw) as matrices to multiply patches by: (g, kh·kw·c/g, o/g)."""
    o, cg, kh, kw = kernels.shape
    ordered = kernels.reshape(groups, o // groups, cg, kh * kw).transpose(0, 3, 2, 1)
    return module_of(kernels).ascontiguousarray(ordered).reshape(groups, kh * kw * cg, o // groups)


def pad_images(images: Array, padding: int | Pair, value: float = 0.0) -> Array:
    """(n, c, h, w) with ``padding`` times ``value`` on each side; the same array for padding 0."""
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
    """The index of the pixels that the kernel element (i, j) covers at all positions."""
    sh, sw = (stride, stride) if isinstance(stride, int) else stride
    return (
        slice(None),
        slice(None),
        slice(i, i + sh * (oh - 1) + 1, sh) if oh else slice(0, 0),
        slice(j, j + sw * (ow - 1) + 1, sw) if ow else slice(0, 0),
    )
