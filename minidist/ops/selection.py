"""Keep some elements and set the others to 0: the backward of every op with a mask.

For finite numbers a product with the mask is enough, but ∞ · 0 is NaN. In sqrt(relu(x)), where x is
negative, the gradient of sqrt is infinite, and the backward of relu must return 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.kernels import kernel
from minidist.ops.chunks import CHUNK, chunks

BITS = {np.dtype("f2"): np.int16, np.dtype("f4"): np.int32, np.dtype("f8"): np.int64}


def kept(xp: Any, x: Array, mask: Array, scale: float = 1.0, out: Array | None = None) -> Array:
    """x · scale where ``mask`` is true, else 0. Same shapes; in ``out`` if it is given."""
    out = xp.empty_like(x) if out is None else out
    _kept(xp, out, x, mask, float(scale))
    return out


@kernel(
    "T *out, const T *x, const bool *mask, double scale",
    "out[i] = mask[i] ? T((A)x[i] * A(scale)) : T(0);",
    over="points",
)
def _kept(xp: Any, out: Array, x: Array, mask: Array, scale: float) -> None:
    select(xp, out, x, mask)
    if scale != 1:
        out *= scale


def select(xp: Any, out: Array, x: Array, mask: Array) -> None:
    """Fill ``out`` with x where ``mask`` is true, else 0: by NumPy's functions, not by a kernel."""
    bits = BITS.get(out.dtype) if xp is np else None
    if bits is None or out.dtype != x.dtype or not out.shape:
        out[...] = xp.where(mask, x, 0)
        return
    # Keep all bits of an element, or none. On a random mask numpy.where takes eight times as long,
    # because the processor cannot predict its branches.
    if out.nbytes <= CHUNK:
        np.bitwise_and(x.view(bits), np.negative(mask.view(np.int8), dtype=bits), out.view(bits))
        return
    for part in chunks(out, out[:1].size):
        all_or_none = np.negative(mask[part].view(np.int8), dtype=bits)  # -1 is all bits
        np.bitwise_and(x[part].view(bits), all_or_none, out[part].view(bits))
