"""Pooling: the largest, or the average, of each window of an image.

For windows of k × k pixels, pooling loops over k² *shifted* images, one for each position in the
window. The gradient of a window goes to its largest pixel (max), or in equal parts to all of its
pixels (average).
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.kernels import accumulator, kernel, wide
from minidist.engine.tensor import Tensor, recording
from minidist.ops.operands import ShapeError, floating_only
from minidist.ops.patches import convolved_length, pad_images, window
from minidist.ops.selection import kept


def max_pool2d(x: Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """The largest of each window; at a tie, the first. (n, c, h, w) → (n, c, oh, ow).

    Saves one byte for each output, where a gradient is wanted: the position of the largest in its
    window.
    """
    x = floating_only("max_pool2d", x)
    stride, oh, ow = _check("max_pool2d", x, kernel, stride, padding)
    if kernel > 16:
        raise ValueError(
            f"max_pool2d: kernel {kernel} is over 16: a position in the window must fit one byte"
        )
    xp, (n, c, h, w) = x.xp, x.shape
    if xp is np:  # in memory as ``conv2d`` leaves images: the channels of a pixel side by side
        y = np.empty((n, oh, ow, c), x.dtype).transpose(0, 3, 1, 2)
    else:
        y = xp.empty((n, c, oh, ow), x.dtype)
    winner = xp.empty_like(y, xp.uint8) if recording(x) else None
    _max_pool(xp, y, winner, x.data, h, w, oh, ow, kernel, stride, padding)

    def backward(grad: Array) -> Any:
        # (n, h, w, c) in memory, as ``conv2d`` leaves images
        grad_x = xp.empty((n, h + 2 * padding, w + 2 * padding, c), grad.dtype)
        _max_pool_backward(xp, grad_x, grad, winner, *grad_x.shape[1:], oh, ow, kernel, stride)
        grad_x = grad_x.transpose(0, 3, 1, 2)
        return (grad_x[:, :, padding : padding + h, padding : padding + w],)

    return Tensor.of(y, (x,), backward)


@kernel(
    "T *y, unsigned char *winner, const T *x, long long h, long long w, long long oh, "
    "long long ow, long long kernel, long long stride, long long padding",
    """
    x += i / (oh * ow) * h * w;  // this sample's, this channel's image
    long long top = i / ow % oh * stride - padding, left = i % ow * stride - padding;
    A best = __int_as_float(0xff800000);
    int place = 0;
    for (int k = 0; k < kernel * kernel; k++) {
        long long row = top + k / kernel, column = left + k % kernel;
        if (row < 0 || row >= h || column < 0 || column >= w) continue;
        A value = x[row * w + column];
        if (!(value <= best)) {  // the first of equal ones wins; NaN wins
            best = value;
            place = k;
        }
    }
    y[i] = T(best);
    if (winner) winner[i] = place;
""",
)
def _max_pool(
    xp: Any,
    y: Array,
    winner: Array | None,
    x: Array,
    h: int,
    w: int,
    oh: int,
    ow: int,
    kernel: int,
    stride: int,
    padding: int,
) -> None:
    """Fill y with the largest of each window of x, and ``winner`` with its position there."""
    images = pad_images(x, padding, -xp.inf)
    if winner is None:  # along the height, then along the width: 2k steps in place of k²
        tall = [images[window(i, 0, oh, images.shape[3], (stride, 1))] for i in range(kernel)]
        rows = reduce(xp.maximum, tall)
        columns = [rows[window(0, j, oh, ow, (1, stride))] for j in range(kernel)]
        y[...] = reduce(xp.maximum, columns)
        return
    y[...] = images[window(0, 0, oh, ow, stride)]
    winner.fill(0)
    for place in range(1, kernel * kernel):
        shifted = images[window(*divmod(place, kernel), oh, ow, stride)]
        # Positions come in order, so the last winner has the largest number.
        xp.maximum(winner, (shifted > y) * xp.uint8(place), out=winner)
        xp.maximum(y, shifted, out=y)


@kernel(
    "T *grad_x, const T *grad, const unsigned char *winner, long long h, long long w, "
    "long long channels, long long oh, long long ow, long long kernel, long long stride",
    """
    long long channel = i % channels, x = i / channels % w, y = i / channels / w % h;
    long long image = (i / channels / w / h * channels + channel) * oh * ow;
    A sum = 0;  // over the windows that lie on this pixel
    long long first_y = y < kernel ? 0 : (y - kernel) / stride + 1;
    long long first_x = x < kernel ? 0 : (x - kernel) / stride + 1;
    for (long long wy = first_y; wy < oh && wy * stride <= y; wy++)
        for (long long wx = first_x; wx < ow && wx * stride <= x; wx++) {
            long long place = (y - wy * stride) * kernel + x - wx * stride;
            long long at = image + wy * ow + wx;
            if (winner[at] == place) sum += (A)grad[at];
        }
    grad_x[i] = T(sum);
""",
)
def _max_pool_backward(
    xp: Any,
    grad_x: Array,
    grad: Array,
    winner: Array,
    h: int,
    w: int,
    channels: int,
    oh: int,
    ow: int,
    kernel: int,
    stride: int,
) -> None:
    """Fill grad_x (n, h, w, channels), padding included, from grad (n, channels, oh, ow)."""
    grad_x.fill(0)
    images = grad_x.transpose(0, 3, 1, 2)
    for place in range(kernel * kernel):
        shifted = images[window(*divmod(place, kernel), oh, ow, stride)]
        if stride >= kernel:  # windows do not overlap, so these elements are still 0
            kept(xp, grad, winner == place, out=shifted)
        else:
            shifted += kept(xp, grad, winner == place)


def avg_pool2d(x: Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """The average of each window; padding counts as zeros. (n, c, h, w) → (n, c, oh, ow)."""
    x = floating_only("avg_pool2d", x)
    stride, oh, ow = _check("avg_pool2d", x, kernel, stride, padding)
    xp, (n, c, h, w) = x.xp, x.shape
    images = pad_images(x.data, padding)
    places = [window(i, j, oh, ow, stride) for i in range(kernel) for j in range(kernel)]
    y = images[places[0]].astype(accumulator(x.dtype))
    for place in places[1:]:
        y += images[place]
    scale = 1 / (kernel * kernel)
    y *= scale

    def backward(grad: Array) -> Any:
        share = wide(grad) * scale
        grad_x = xp.zeros((n, h + 2 * padding, w + 2 * padding, c), share.dtype)
        grad_x = grad_x.transpose(0, 3, 1, 2)  # in memory as ``conv2d`` leaves images
        for place in places:
            grad_x[place] += share
        inside = grad_x[:, :, padding : padding + h, padding : padding + w]
        return (inside.astype(grad.dtype, copy=False),)

    return Tensor.of(y.astype(x.dtype, copy=False), (x,), backward)


def _check(
    name: str, x: Tensor, kernel: int, stride: int | None, padding: int
) -> tuple[int, int, int]:
    """The stride (the kernel's length if not given) and the output's height and width."""
    stride = kernel if stride is None else stride
    if kernel < 1 or stride < 1 or not 0 <= padding <= kernel // 2:
        raise ValueError(
            f"{name}: kernel {kernel} and stride {stride} must be at least 1, and padding "
            f"{padding} at most half of the kernel, so that no window is padding alone"
        )
    if x.ndim != 4 or x.shape[2] + 2 * padding < kernel or x.shape[3] + 2 * padding < kernel:
        raise ShapeError(
            f"{name}: input {x.shape} is not (n, c, h, w) with room for a window of {kernel}"
        )
    return (
        stride,
        convolved_length(x.shape[2], kernel, stride, padding),
        convolved_length(x.shape[3], kernel, stride, padding),
    )
