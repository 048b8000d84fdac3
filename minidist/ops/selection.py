"""Keep some elements and set the others to 0: the backward of every op with a mask.

For finite numbers a product with the mask is enough, but ∞ · 0 is NaN. In sqrt(relu(x)), where x is
negative, the gradient of sqrt is infinite, and the backward of relu must return 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array
from minidist.engine.kernels import kernel

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
    # Times 1 keeps all bits of an element, times 0 none. numpy.where takes eight times as long on a
    # mask without a pattern, because the processor cannot predict its branches.
    np.multiply(x.view(bits), mask, out.view(bits))
